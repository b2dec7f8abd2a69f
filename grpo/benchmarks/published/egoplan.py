"""EgoPlan-Bench, answered by the likeliest option or by a letter, and EgoPlan-Bench2: what should I do next?

`egoplan_frame` is the setting of the authors' fine-tuned model (`src/egoplan_video_llama_interface.py` at 1510afc): its
own question, and the current observation as a picture behind the clip.

EgoPlan-Bench's authors take the option with the lowest mean loss of its tokens after the record's question
(`src/video_llama_interface.py`), and leave tokens whose loss is exactly 0 out of the mean. Most published numbers of
chat models (EgoGPT's, to which EgoVLM compares itself) are of lmms-eval instead: other words, a letter, and the first
capital A to D in the reply. Its video ends in the current observation, as ours does.

EgoPlan-Test has no published answers: it is asked for the submission, and so is EgoPlan-Val.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.replies import first_letter, letter_of, lettered, written
from grpo.data.fields import Record
from grpo.data.readers.egoplan import (
    read_egoplan,
    read_egoplan_frame,
    translate,
    translate_with_frame,
)
from grpo.data.records import Place
from grpo.groups import Sample

SOURCES = ("https://arxiv.org/abs/2312.06722", "https://github.com/ChenYi99/EgoPlan")
LMMS_EVAL = "https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/egoplan/utils.py"
SOURCES_2 = ("https://arxiv.org/abs/2412.04447", "https://github.com/qiulu66/EgoPlan-Bench2")

AFTER_GOAL = (
    "The task's progress is demonstrated in the provided video. My current field of view is shown in the provided "
    "image. What should be my next action? Please output the most reasonable action you think, expressed in a short "
    "phrase."
)
ASKED = "Answer with the option's letter from the given choices"
BENCH_2 = (
    "\nSelect the best answer to the following multiple-choice question based on the video. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\n\nConsidering the progress shown in the video and my current "
    "observation in the last frame, what action should I take next in order to {goal}?\n\n{options}\n"
)
"""`QA_template` of EgoPlan-Bench2's eval.py, which begins with an empty line."""

# Missing commas join two pairs of these into one each, there as here.
JOINED = ("The best option isThe correct option is", "Best answer:Best option:")
PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer", *JOINED)
PREFIXES_2 = (*PREFIXES, "Answer:", "Option:", "The correct answer", "The correct option")


def _with_hidden(
    record: Record, place: Place, read: Callable[[Record, Place], Iterator[Sample]] = translate
) -> Iterator[Sample]:
    """The samples of a record, also of one without the right option, which gets an empty answer."""
    is_answered = record.get("golden_choice_idx") is not None or record.get("negative_answers") is not None
    # A file that went through pandas has the key with null.
    letter = record.get("golden_choice_idx")
    for sample in read({**record, "golden_choice_idx": "A" if letter is None else letter}, place):
        yield sample if is_answered else replace(sample, answer="")


def letters_prompt(sample: Sample) -> str:
    """lmms-eval's prompt, whose opening depends on whether the goal begins with a verb in -ing."""
    question = _goal_question(str(sample.columns["task_goal"]))
    return "\n".join([question, *lettered(sample, "{letter}. {text}"), ASKED])


def frame_prompt(sample: Sample) -> str:
    """`create_question_for_egoplan_task_planning` of the authors' fine-tuned model, in the mode `eval`."""
    return _goal_question(str(sample.columns["task_goal"]).strip(string.punctuation + " ").lower())


def _goal_question(goal: str) -> str:
    if "goal" in goal:
        goal = goal.split("to", 1)[-1].strip()
    is_gerund = goal.split()[0].endswith("ing")
    return (f"I am tasked with {goal}. " if is_gerund else f"My current task is to {goal}. ") + AFTER_GOAL


def bench2_prompt(sample: Sample) -> str:
    options = "\n".join(lettered(sample, "{letter}. {text}"))
    return BENCH_2.format(goal=sample.columns["task_goal"], options=options)


def letters_official(sample: Sample, text: str) -> float:
    """lmms-eval's rule, `first_letter`. Known mistakes: `Answer: B` is read as A, and so is `A knife, so B`."""
    return float(first_letter(text, PREFIXES) == sample.answer)


def bench2_official(sample: Sample, text: str) -> float:
    """The rule of eval.py, `first_letter` with more prefixes: `Answer: B` is B, and `A knife, so B` is A."""
    return float(first_letter(text, PREFIXES_2) == sample.answer)


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """A list of `sample_id`, a whole number, and `label`, A to D; where nothing was read, "N/A", as in the example."""
    rows = [
        {"sample_id": each.sample.columns["sample_id"], "label": letter_of(each) or "N/A"} for each in scored
    ]
    return {"submission.json": written(rows)}


EGOPLAN = Benchmark(
    name="egoplan",
    reader=replace(read_egoplan, translate=_with_hidden),
    notes="By the lowest loss, as the authors do it. A letter: egoplan_letters.",
    sources=SOURCES,
    prompt=lambda sample: sample.question,
    candidates=lambda sample: sample.options,
    groups=("video_source",),
    submission=submission,
)
EGOPLAN_FRAME = replace(
    EGOPLAN,
    name="egoplan_frame",
    reader=replace(read_egoplan_frame, translate=partial(_with_hidden, read=translate_with_frame)),
    notes="By the lowest loss, with the current observation as a picture of its own.",
    prompt=frame_prompt,
)
EGOPLAN_LETTERS = Benchmark(
    name="egoplan_letters",
    reader=replace(read_egoplan, translate=_with_hidden),
    notes="In lmms-eval's words and by its rule: EgoGPT 32.4 to 33.4, Qwen2-VL-7B 34.3, GPT-4o 32.8.",
    sources=(*SOURCES, LMMS_EVAL),
    prompt=letters_prompt,
    official=letters_official,
    groups=("video_source",),
    submission=submission,
)
EGOPLAN2 = Benchmark(
    name="egoplan2",
    reader="egoplan",
    sources=SOURCES_2,
    prompt=bench2_prompt,
    official=bench2_official,
    groups=("domain", "scenario"),
)
