"""Video-MME without subtitles.

The official rule (`eval_your_results.py` of https://github.com/thanku-all/parse_answer at afd52cf) reads the first
capital A to D that is left after some opening words, and leaves an answer without any of the four out of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.published.egoplan import PREFIXES_2
from grpo.benchmarks.replies import first_letter, grouped, lettered, written
from grpo.groups import Sample

ASKED = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
    "letter (A, B, C, or D) of the correct option."
)
CLOSING = "The best answer is:"


def prompt(sample: Sample) -> str:
    """The README's example without subtitles."""
    return "\n".join([ASKED, sample.question, *lettered(sample, "{letter}. {text}"), CLOSING])


def official(sample: Sample, text: str) -> float | None:
    """`extract_characters_regex`; None, and out of the denominator, where it finds no letter. Known mistakes: `A knife
    is used, so B` is read as A, and `Best answer: C` as the B of Best, since two of its opening words are one."""
    letter = first_letter(text, PREFIXES_2)
    return float(letter == sample.answer) if letter else None


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The file of `eval_your_results.py`: a list of videos with their questions, and the reply as `response`.

    Its keys are those of `evaluation/output_test_template.json` of Video-MME's repository, at 8889f31.
    """
    videos = [
        {
            "video_id": columns["video_id"],
            **{key: columns[key] for key in ("duration", "domain", "sub_category")},
            "missing": False,
            "questions": [_question(answer) for answer in answers],
        }
        for answers in grouped(scored, lambda sample: sample.columns["video_id"]).values()
        for columns in [answers[0].sample.columns]
    ]
    return {"video_mme_results.json": written(videos)}


def _question(scored: ScoredAnswer) -> dict[str, object]:
    sample = scored.sample
    return {
        **{key: sample.columns[key] for key in ("question_id", "task_type")},
        "question": sample.question,
        "options": lettered(sample, "{letter}. {text}"),
        "answer": sample.answer,
        "response": "" if scored.answer.finish == "failed" else scored.answer.text,
    }


VIDEO_MME = Benchmark(
    name="video_mme",
    reader="video_mme",
    notes="Published, without subtitles: Qwen3-VL-4B 69.3, 66.7 where lmms-eval measured it with 128 frames.",
    sources=("https://arxiv.org/abs/2405.21075", "https://github.com/BradyFU/Video-MME"),
    prompt=prompt,
    official=official,
    groups=("duration", "domain", "task_type"),
    submission=submission,
)
