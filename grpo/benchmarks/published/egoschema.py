"""EgoSchema: the 500 questions with published answers, or all 5,031 for a submission.

There is no official prompt for a model that reads video and writes text, and no official rule for reading its reply:
the authors score letters. Prompt and rule are those of lmms-eval, which most published numbers come from.

Kaggle takes a CSV with the header `q_uid,answer`, the validation server a JSON object `{q_uid: 0 to 4}`. A question
whose answer can't be read is left out of the JSON, which the server counts as missing, and has -1 in the CSV, so that
no row is missing; whether Kaggle scores such a row as wrong could not be verified.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.replies import letter_of, lettered, written
from grpo.data.fields import LETTERS
from grpo.data.readers.egoschema import read_all_of_egoschema
from grpo.groups import Sample

SOURCES = (
    "https://arxiv.org/abs/2308.09126",
    "https://github.com/egoschema/EgoSchema",
    "https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/egoschema/utils.py",
)
ASKED = "Answer with the option's letter from the given choices directly."


def prompt(sample: Sample) -> str:
    return "\n".join([sample.question, *lettered(sample, "{letter}. {text}"), ASKED])


def official(sample: Sample, text: str) -> float:
    """lmms-eval's `parse_multi_choice_response`, taken over from MMMU.

    Known mistakes: an English article "A" counts as a letter, and so does the last letter of a capital word; of
    several letters the one counts whose last mention comes first; an option's text counts only behind its letter, in a
    reply of more than five words; and where nothing matches, an option is drawn without a seed, which counts here as
    its expectation.
    """
    letter = read(sample, text)
    return float(letter == sample.answer) if letter else 1 / len(sample.options)


def read(sample: Sample, text: str) -> str:
    """The letter by lmms-eval's rule; empty where it draws one."""
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(sample.options)]
    found = [form.format(letter) for form in ("({})", "{} ", "{}.") for letter in letters]
    found = [each for each in found if each in text]
    if not found and len(text.split()) > 5:
        text = text.lower()
        # Its options carry their letters: "a. goal 0".
        named = {
            letter: f"{letter}. {option}".strip().lower()
            for letter, option in zip(letters, sample.options, strict=True)
        }
        found = [letter for letter in letters if named[letter] in text]
        return min(found, key=lambda letter: text.rfind(named[letter]), default="")
    return min(found, key=text.rfind, default="").strip("(). ")


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """Both published forms: options are counted from 0."""
    chosen = [(each.sample.columns["q_uid"], letter_of(each)) for each in scored]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["q_uid", "answer"])
    rows.writerows((uid, LETTERS.index(letter) if letter else -1) for uid, letter in chosen)
    numbers = {uid: LETTERS.index(letter) for uid, letter in chosen if letter}
    return {"egoschema.json": written(numbers), "egoschema.csv": table.getvalue()}


EGOSCHEMA = Benchmark(
    name="egoschema",
    reader="egoschema",
    notes="Always the same option scores 23.4 at best (E), humans 76, chance 20.",
    sources=SOURCES,
    prompt=prompt,
    official=official,
    submission=submission,
)
EGOSCHEMA_FULL = Benchmark(
    name="egoschema_full",
    reader=read_all_of_egoschema,
    notes="4,531 of the 5,031 answers are not published: the score is that of the others, and the files are to submit.",
    sources=SOURCES,
    prompt=prompt,
    official=official,
    submission=submission,
)
