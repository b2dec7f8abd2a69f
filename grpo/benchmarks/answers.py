"""Answers on disk: a folder for each model and setting, with a JSON line for each answer, written as it is given.

`header.json` says what the answers depend on, and its digest is in the folder's name: answers under other settings, of
other weights or to other questions lie in another folder. Each process appends to a file of its own, `part-RANK.jsonl`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpo.benchmarks.benchmark import StoredAnswer
from grpo.benchmarks.prompts import digest
from grpo.data.fields import LETTERS
from grpo.groups import Prompt, Rollout, Sample
from grpo.media.clip import ClipSource
from grpo.rollout import as_rollout
from grpo.run.disk import write_text

HEADER = "header.json"
Key = tuple[str, str, int]
"""(sample's id, variant, index): what names an answer."""


def questions_digest(samples: Iterable[Sample], root: str = "") -> str:
    """A digest of what is asked, in order: ids, words, options, and which part of which files is shown at which times.

    root: the folder of the media, whose place does not count. A right answer that is mended asks nothing new.
    """
    asked = [
        (
            sample.id,
            sample.system,
            sample.question,
            sample.options,
            *_shown(sample, root),
            *_streams(sample, root),
        )
        for sample in samples
    ]
    return digest(json.dumps(asked))


def _shown(sample: Sample, root: str) -> list[dict[str, Any] | None]:
    """Return what is shown, in order; of a question about text alone, None."""
    return [_named(source, root) for source in sample.sources] or [None]


def _streams(sample: Sample, root: str) -> list[str]:
    return [path.removeprefix(f"{root}/") for path in sample.streams.values()]


def _named(source: ClipSource, root: str) -> dict[str, Any]:
    files = [path.removeprefix(f"{root}/") for path in (source.video, *source.frames) if path is not None]
    return {**asdict(source), "video": None, "frames": files}


def answers_folder(parent: Path, model: str, header: Mapping[str, Any]) -> Path:
    """The folder of a model's answers under a header."""
    return parent / f"{model}-{digest(json.dumps(header, sort_keys=True))[:8]}"


def key_of(answer: StoredAnswer) -> Key:
    return answer.sample_id, answer.variant, answer.index


def stored(
    prompt: Prompt, rollout: Rollout, index: int, variant: str = "", losses: tuple[float, ...] = ()
) -> StoredAnswer:
    """A completion as it is stored."""
    source, clip = prompt.sample.clip_source, prompt.clip
    return StoredAnswer(
        sample_id=prompt.sample.id,
        index=index,
        text=rollout.text,
        finish="stop" if rollout.stopped else "length",
        variant=variant,
        video=(source.video or source.frames[0]) if source else "",
        times_s=clip.times_s if clip else (),
        other_times_s=tuple(each.times_s for each in prompt.clips if each is not clip),
        num_tokens=len(rollout.token_ids),
        num_prompt_tokens=len(prompt.token_ids),
        prompt_hash=digest(prompt.text),
        losses=losses,
    )


def likeliest(prompt: Prompt, losses: tuple[float, ...], variant: str = "") -> StoredAnswer:
    """The letter of the candidate of lowest loss, as it is stored."""
    letter = LETTERS[losses.index(min(losses))]
    answer = as_rollout(prompt, text=letter, token_ids=[], logprobs=[], stopped=True)
    return stored(prompt, answer, 0, variant, losses=losses)


def is_first(answer: StoredAnswer) -> bool:
    """Whether it is the first answer to a question as it is."""
    return answer.variant == "" and answer.index == 0


class AnswerWriter:
    """The file that one process appends its answers to."""

    def __init__(self, folder: Path, header: Mapping[str, Any], rank: int = 0) -> None:
        """Open the file, without a last line that was torn; ValueError if another process is writing it."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / HEADER).exists():
            # Several processes may get here at once, so each has a file of its own to rename.
            own = folder / f".header-{rank}"
            own.write_text(json.dumps(header, indent=2) + "\n")
            own.replace(folder / HEADER)
        path = folder / f"part-{rank}.jsonl"
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"out_dir: another process is writing {path}") from error
        written = path.read_bytes()
        os.ftruncate(self._file.fileno(), written.rfind(b"\n") + 1)

    def write(self, answer: StoredAnswer) -> None:
        """Append an answer; it is with the system when this returns, and lost to a power failure at most."""
        self._file.write(json.dumps(asdict(answer)).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def note_missing(folder: Path, ids: Iterable[str], rank: int = 0) -> None:
    """Write down which questions could not be asked for want of their media, beside those of earlier calls."""
    path = folder / f"missing-{rank}.json"
    known = json.loads(path.read_bytes()) if path.exists() else []
    if everything := sorted({*known, *ids}):
        write_text(path, json.dumps(everything) + "\n")


def noted_missing(folder: Path) -> set[str]:
    """The questions that could not be asked for want of their media, by any process."""
    return {
        sample_id for path in folder.glob("missing-*.json") for sample_id in json.loads(path.read_bytes())
    }


def read_answers(folder: Path) -> dict[Key, StoredAnswer]:
    """All answers in a folder, the latest of each key; ValueError with file and line for one that is damaged."""
    parts = sorted(folder.glob("part-*.jsonl"))
    found = (answer for path in parts for answer in _read_part(path))
    answers: dict[Key, StoredAnswer] = {}
    for answer in found:
        known = answers.get(key_of(answer))
        # A question that failed is asked again, maybe by another process.
        if known is None or known.finish == "failed" or answer.finish != "failed":
            answers[key_of(answer)] = answer
    return answers


def _read_part(path: Path) -> Iterable[StoredAnswer]:
    # Behind the last newline is nothing, or a line that was torn.
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            tuples = {key: tuple(row[key]) for key in ("times_s", "losses")}
            others = tuple(map(tuple, row.get("other_times_s", ())))
            yield StoredAnswer(**{**row, **tuples, "other_times_s": others})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number} is damaged: {error}; mend or remove that line") from error


def unanswered(
    asked: Iterable[tuple[Sample, str]], known: Mapping[Key, StoredAnswer], *, num_samples: int
) -> list[tuple[Sample, str]]:
    """The questions that lack an answer of their num_samples, or have one that failed."""
    done = {key for key, answer in known.items() if answer.finish != "failed"}
    return [
        (sample, variant)
        for sample, variant in asked
        if not all((sample.id, variant, index) in done for index in range(num_samples))
    ]


def check_answers(answers: Iterable[StoredAnswer], samples: Sequence[Sample], folder: Path) -> None:
    """Raise ValueError if answers are to questions that are not among the samples."""
    known = {sample.id for sample in samples}
    strangers = sorted({answer.sample_id for answer in answers} - known)
    if strangers:
        raise ValueError(
            f"{folder}: {len(strangers)} of its answers are to other questions than those of data.path: "
            f"{', '.join(strangers[:3])}" + (", ..." if len(strangers) > 3 else "")
        )
