"""The rollouts of a run on disk: a Parquet file per step, a row per completion, readable without this code.

A row holds all that a reward can read but the frames, which are decoded again from the video when somebody
looks at them. `rollout_rows` and `read_rollouts` are each other's inverse.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, cast

from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup
from grpo.media.clip import Clip, ClipFacts, ClipSource, MediaError
from grpo.media.sampling import MediaSettings, PatchShape

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

REWARD, PART = "rewards/", "parts/"
"""What the columns of raw values, and of what each reward adds to the total, begin with."""


def rollout_rows(scored: ScoredGroup) -> list[dict[str, Any]]:
    """What is kept of each completion of a group."""
    sample = scored.group.prompt.sample
    return [
        {
            "rollout": index,
            **_sample_columns(sample),
            "tags": list(rollout.tags),
            "clip": asdict(rollout.clip.facts) if rollout.clip else None,
            "num_tokens": len(rollout.token_ids),
            **_completion(rollout),
            "counterfactuals": [
                {
                    "frames": frames,
                    "completions": [
                        {"clip": asdict(each.clip.facts) if each.clip else None, **_completion(each)}
                        for each in several
                    ],
                }
                for frames, several in rollout.counterfactuals.items()
            ],
            **{REWARD + name: column[index] for name, column in scored.table.columns.items()},
            **{PART + name: column[index] for name, column in scored.table.parts.items()},
            "total": scored.table.totals[index],
            "advantage": scored.advantages[index],
        }
        for index, rollout in enumerate(scored.group.rollouts)
    ]


def write_rollouts(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of `rollout_rows`, group after group, as the step's file; it is there whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    if not rows:
        return
    group, numbered = -1, []
    for row in rows:
        group += row["rollout"] == 0
        numbered.append({"step": step, "group": group, **row})
    file = folder / f"step_{step:06d}.parquet"
    partial_file = file.with_name(f".{file.name}.partial")
    pq.write_table(pa.Table.from_pylist(numbered, _schema(rows[0])), partial_file, compression="zstd")
    os.replace(partial_file, file)


def rollout_files(folder: Path) -> dict[int, Path]:
    """The files of a run's rollouts by step, in order."""
    files = {int(file.stem.removeprefix("step_")): file for file in folder.glob("step_*.parquet")}
    return dict(sorted(files.items()))


def read_rollouts(
    file: Path, settings: MediaSettings, *, every: int = 1, first: int = 0
) -> Iterator[tuple[int, ScoredGroup]]:
    """The groups of a file as they were scored, each behind its number among the file's rows; one at a time.

    settings: the run's, by which frames are decoded again. every, first: only each so-manieth group, from a certain
    one on. A prompt has no tokens here, and a clip gets its frames when they are looked at; MediaError if the video is
    gone by then or another one. ValueError names a file that is damaged, or a column that it lacks.
    """
    table = _read_table(file)
    starts = [row for row, index in enumerate(table.column("rollout").to_pylist()) if index == 0]
    for start, end in list(zip(starts, [*starts[1:], len(table)], strict=True))[first::every]:
        yield start, _read_group(table.slice(start, end - start), settings)


def read_texts(file: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    """What a reader needs of some rows: the question, its answer, and what was said."""
    columns = ["sample_id", "question", "options", "answer", "task", "completion"]
    return _read_table(file, columns).take(list(rows)).to_pylist()


def num_groups(file: Path) -> int:
    """How many groups a file holds."""
    return _read_table(file, ["rollout"]).column("rollout").to_pylist().count(0)


def _sample_columns(sample: Sample) -> dict[str, Any]:
    try:
        columns = json.dumps(dict(sample.columns), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{sample.source}: its columns are not JSON: {error}") from error
    return {
        "sample_id": sample.id,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "task": sample.task,
        "source": sample.source,
        **_source_columns(sample.clip_source),
        "keyframes_s": [list(span) for span in sample.keyframes_s],
        "columns": columns,
    }


def _source_columns(source: ClipSource | None) -> dict[str, Any]:
    """Missing values, without a clip."""
    return {name: None if source is None else getattr(source, name) for name in SOURCE_COLUMNS}


def _completion(rollout: Rollout) -> dict[str, Any]:
    return {
        "completion": rollout.text,
        "stopped": rollout.stopped,
        "token_ids": list(rollout.token_ids),
        "logprobs": list(rollout.logprobs),
    }


def _schema(row: Mapping[str, Any]) -> pa.Schema:
    """Types of the columns, stated: they can't be told from values that are all missing or empty."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    clip = pa.struct(
        [("path", text), ("times_s", pa.list_(number)), ("sample_fps", number), ("duration_s", number)]
        + [("height_px", pa.int32()), ("width_px", pa.int32())]
        + [("patches", pa.struct([(field.name, pa.int32()) for field in fields(PatchShape)]))]
    )
    completion = {
        "completion": text,
        "stopped": pa.bool_(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
    }
    changed = pa.struct({"clip": clip, **completion})
    types = {
        **dict.fromkeys(("step", "group", "rollout", "num_tokens"), pa.int32()),
        **dict.fromkeys(("sample_id", "question", "answer", "task", "source", "video", "columns"), text),
        **dict.fromkeys(("options", "frames", "tags"), pa.list_(text)),
        **dict.fromkeys(("frame_fps", "start_s", "end_s", "total", "advantage"), number),
        "frame_times_s": pa.list_(number),
        "keyframes_s": pa.list_(pa.list_(number)),
        "clip": clip,
        **completion,
        "counterfactuals": pa.list_(pa.struct({"frames": text, "completions": pa.list_(changed)})),
    }
    names = ["step", "group", *row]
    return pa.schema([(name, number if name.startswith((REWARD, PART)) else types[name]) for name in names])


COLUMNS = (
    "step", "group", "rollout", "sample_id", "question", "options", "answer", "task", "source", "video", "frames",
    "frame_fps", "frame_times_s", "start_s", "end_s", "keyframes_s", "columns", "tags", "clip", "completion", "stopped",
    "token_ids", "logprobs", "counterfactuals", "total", "advantage",
)  # fmt: skip
"""Without which a rollout can't be rebuilt."""
SAMPLE_COLUMNS = list(COLUMNS[COLUMNS.index("sample_id") : COLUMNS.index("tags")])
SOURCE_COLUMNS = [field.name for field in fields(ClipSource)]


def _read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        for name in COLUMNS if columns is None else columns:
            if name not in names:
                raise ValueError(
                    f"{file}: no column {name!r}: an older version wrote it; run again with this one"
                )
        return pq.read_table(file, columns=columns).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _read_group(rows: pa.Table, settings: MediaSettings) -> ScoredGroup:
    """The group that these rows are."""
    sample = _read_sample(rows.slice(0, 1).select(SAMPLE_COLUMNS).to_pylist()[0])
    facts, tags = (rows.column(name)[0].as_py() for name in ("clip", "tags"))
    clip = None
    if facts is not None:
        assert sample.clip_source is not None
        facts = ClipFacts.from_dict(facts)
        clip = Clip(facts, partial(_decode_again, sample.clip_source, settings, facts))
    prompt = Prompt(sample=sample, clip=clip, token_ids=(), tags=tuple(tags))
    texts, stopped, counterfactuals = (
        rows.column(name).to_pylist() for name in ("completion", "stopped", "counterfactuals")
    )
    rollouts = tuple(
        Rollout(
            sample=sample,
            clip=clip,
            tags=prompt.tags,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            stopped=has_stopped,
            counterfactuals=_read_counterfactuals(kinds, prompt),
        )
        for text, token_ids, logprobs, has_stopped, kinds in zip(
            texts,
            _numbers(rows, "token_ids"),
            _numbers(rows, "logprobs"),
            stopped,
            counterfactuals,
            strict=True,
        )
    )
    return ScoredGroup(
        group=Group(prompt=prompt, rollouts=rollouts),
        table=RewardTable(
            columns=_columns_of(rows, REWARD),
            parts=_columns_of(rows, PART),
            totals=tuple(rows.column("total").to_pylist()),
            failures=(),  # they are in failures.jsonl
        ),
        advantages=tuple(rows.column("advantage").to_pylist()),
    )


def _read_sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        **{name: row[name] for name in ("question", "answer", "task", "source")},
        id=row["sample_id"],
        options=tuple(row["options"]),
        clip_source=_read_source(row),
        keyframes_s=tuple((start_s, end_s) for start_s, end_s in row["keyframes_s"]),
        columns=json.loads(row["columns"]),
    )


def _read_source(row: Mapping[str, Any]) -> ClipSource | None:
    if row["frames"] is None:
        return None
    values = {name: row[name] for name in SOURCE_COLUMNS}
    lists = {name: tuple(row[name]) for name in ("frames", "frame_times_s")}
    return ClipSource(**{**values, **lists})


def _read_counterfactuals(
    kinds: Sequence[Mapping[str, Any]], prompt: Prompt
) -> dict[str, tuple[Rollout, ...]]:
    """Completions about changed frames, by how these were changed; the changed frames themselves were not kept."""
    return {
        kind["frames"]: tuple(_read_changed(each, prompt, kind["frames"]) for each in kind["completions"])
        for kind in kinds
    }


def _read_changed(row: Mapping[str, Any], prompt: Prompt, frames: str) -> Rollout:
    sample, facts = prompt.sample, row["clip"]
    refuse = partial(_refuse_frames, sample.id, frames)
    return Rollout(
        sample=sample,
        clip=None if facts is None else Clip(ClipFacts.from_dict(facts), refuse),
        tags=prompt.tags,
        text=row["completion"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        stopped=row["stopped"],
    )


def _decode_again(source: ClipSource, settings: MediaSettings, facts: ClipFacts) -> np.ndarray:
    """The frames that the model saw; MediaError if the video is gone or another one now."""
    # Imported here: PyAV and torch are needed by rewards that look at frames, and by no others.
    from grpo.media.reading import read_source

    clip = read_source(source, settings=settings, patches=facts.patches)
    if clip.facts != facts:
        raise MediaError(f"{source.path}: not the video that the run read")
    return clip.frames_FHWC


def _refuse_frames(sample_id: str, kind: str) -> Never:
    raise ValueError(f"sample {sample_id}: the {kind} frames of a counterfactual are not stored")


def _columns_of(rows: pa.Table, prefix: str) -> dict[str, tuple[Any, ...]]:
    """Columns of a kind, by what follows the prefix."""
    names = [name for name in rows.column_names if name.startswith(prefix)]
    return {name.removeprefix(prefix): tuple(rows.column(name).to_pylist()) for name in names}


def _numbers(rows: pa.Table, name: str) -> list[tuple[Any, ...]]:
    """A column of lists of numbers, by way of numpy: Arrow takes a hundred times as long to make each a Python one."""
    lists = cast(Any, rows.column(name).chunk(0))
    values = lists.values.to_numpy()
    return [tuple(values[start:end].tolist()) for start, end in pairwise(lists.offsets.to_pylist())]
