"""The page of items: each question with its frames, and what each model answered, in a folder for any browser.

Frames are kept as film strips while questions are asked, so that no clip is decoded for the page alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from grpo.benchmarks.answers import is_first
from grpo.benchmarks.benchmark import ScoredAnswer
from grpo.benchmarks.prompts import digest
from grpo.benchmarks.results import Results
from grpo.benchmarks.scoring import rollout_of
from grpo.groups import Sample
from grpo.media.clip import Clip, ClipSource
from grpo.media.sampling import MediaSettings
from grpo.report.page_files import PAGE, finite, write_data
from grpo.report.step_page import shown_media
from grpo.report.thumbnails import SeenClip, strip_file, write_strip
from grpo.run.disk import write_text
from rewards.builtin.moments import by_video, cited_moments

OWN = Path(__file__).parent / "page"
SHARED = ("base.js", "strip.js", "style.css", "viewer.css", "icon.svg")
"""The files of the report's page that this one is made of too."""


@dataclass(frozen=True, kw_only=True)
class Strips:
    """The film strips of clips as they were shown, under one setting of media."""

    folder: Path
    media: MediaSettings

    def keep(self, source: ClipSource, clip: Clip) -> None:
        """Write a clip's strip, and what the page has to know of it, unless they are there."""
        about = self._about(source)
        if about.exists():
            return
        seen = SeenClip(source, clip.facts)
        if not strip_file(self.folder, seen.name).exists():
            write_strip(self.folder, seen, clip)
        write_text(about, json.dumps(seen.strip()))

    def of(self, source: ClipSource | None) -> dict[str, Any] | None:
        """What the page is told of a clip's strip; None where there is none."""
        if source is None or not self._about(source).exists():
            return None
        return json.loads(self._about(source).read_bytes())

    def _about(self, source: ClipSource) -> Path:
        name = digest(json.dumps([asdict(source), {key: getattr(self.media, key) for key in MEDIA_KEYS}]))
        return self.folder / "clips" / f"{name}.json"


MEDIA_KEYS = tuple(MediaSettings.__dataclass_fields__)


def write_items(results: Results, strips: Strips, max_items: int) -> Path:
    """Write the page of the first so many questions into the strips' folder; return the file to open."""
    folder = strips.folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*(PAGE / name for name in SHARED), *sorted(OWN.iterdir())):
        copyfile(file, folder / file.name)
    first = [[each for each in scored if is_first(each.answer)] for scored in results.scored.values()]
    columns = results.benchmark.groups
    data = {
        "benchmark": results.benchmark.name,
        "models": [*results.scored],
        "groups": columns,
        "items": [item(answers, columns, strips) for answers in [*zip(*first, strict=True)][:max_items]],
        "total": len(first[0]),
    }
    write_data(folder, "items", finite(data))
    return folder / "index.html"


def item(answers: Sequence[ScoredAnswer], columns: Sequence[str], strips: Strips) -> dict[str, Any]:
    """A question with its frames, and each model's answer to it."""
    sample: Sample = answers[0].sample
    return {
        "id": sample.id,
        "question": sample.question,
        "options": sample.options,
        "answer": sample.answer,
        "groups": {column: str(sample.columns.get(column, "")) for column in columns},
        "clip": strips.of(sample.clip_source),
        "media": shown_media(sample, map(strips.of, sample.media)),
        "annotated": sample.keyframes_s,
        "answers": [
            {
                "text": each.answer.text,
                "outcome": each.verdict.outcome if each.verdict else "unpublished",
                "score": each.verdict.score if each.verdict else None,
                "official": each.official,
                "read": each.verdict.answer if each.verdict else "",
                "cited": cited[0],
                "cited_by_video": cited,
                "tokens": each.answer.num_tokens,
            }
            for each in answers
            for cited in (by_video(cited_moments(rollout_of(each)), sample.num_videos),)
        ],
    }
