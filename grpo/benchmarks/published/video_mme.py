"""Video-MME without subtitles.

The official rule reads the first capital A to D that is left after some opening words, and leaves an answer without any
of the four out of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.published.egoplan import PREFIXES
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
    """`extract_characters_regex`; None, and out of the denominator, where it finds no letter. Known mistakes: `Answer:
    B` is read as A, and so is `A knife is used, so B`."""
    letter = first_letter(text, PREFIXES)
    return float(letter == sample.answer) if letter else None


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The file of `eval_your_results.py`: a list of videos with their questions, and the reply as `response`."""
    videos = [
        {
            "video_id": columns["video_id"],
            "duration_category": columns["duration"],
            "video_category": columns["domain"],
            "video_subcategory": columns["sub_category"],
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
        "choices": lettered(sample, "{letter}. {text}"),
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
