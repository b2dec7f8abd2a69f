"""The rollouts of a run on disk: a Parquet file per step, a row per completion, readable without this code.

A row holds all that a reward can read except the frames, which are decoded again from the video when they are first
used. `rollout_rows` and `read_rollouts` are each other's inverse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Never, get_args, get_origin, get_type_hints

from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup, completion_key, main_index
from grpo.media.clip import Clip, ClipFacts, ClipSource, MediaError
from grpo.media.sampling import MediaSettings
from grpo.run.disk import whole_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

REWARD, PART = "rewards/", "parts/"
"""The prefixes of the columns of rewards' raw values, and of their parts of the total."""
SAMPLE = get_type_hints(Sample) | {"streams": tuple[tuple[str, str], ...]}
"""The fields of a sample, each a column, with their types; of streams pairs of name and file."""
SOURCE = get_type_hints(ClipSource)
"""The fields of a sample's `clip_source`, which are columns beside its others."""
COMPLETION = {name: get_type_hints(Rollout)[name] for name in ("text", "stopped", "token_ids", "logprobs")}
"""The fields of a rollout that it does not share with its group, with their types."""
RENAMED = {"id": "sample_id", "text": "completion"}
"""The columns whose names differ from the fields that they hold, by field."""


LATER: tuple[str, ...] = ("media", "other_keyframes_s", "media_clips", "streams")
"""The columns, of lists, that files of older versions lack; they are empty there."""


ANSWERED = ("set", "pass")
"""The columns that answers to held-out questions have besides: of which set, and whether greedy or sampled."""


VERSIONS = "versions"
"""The column of the number of steps behind the weights that sampled each token, where they may be older ones."""

SLOT, OF_STEP, FAILURES = "slot", "of_step", "failures"
"""The columns that groups in a checkpoint have besides: their place, in which step, and rewards' failures as JSON."""

LEARNER_LOGPROBS = "learner_logprobs"
"""The column of the learner's log-probs before the step's update; empty in a row of which it has none."""


def rollout_rows(
    scored: ScoredGroup, learner_logps: Mapping[bytes, Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """Return the row of each completion of a group. learner_logps: the learner's, by `groups.completion_key`."""
    sample, table = _sample_row(scored.group.prompt.sample), scored.table
    has_versions = any(each.versions for each in scored.group.rollouts)
    return [
        {
            "rollout": index,
            **sample,
            "prompt": scored.group.prompt.text,
            "tags": rollout.tags,
            "num_tokens": len(rollout.token_ids),
            **_completion_row(rollout),
            "counterfactuals": [
                {"frames": frames, "completions": [*map(_completion_row, several)]}
                for frames, several in rollout.counterfactuals.items()
            ],
            **{REWARD + name: column[index] for name, column in table.columns.items()},
            **{PART + name: column[index] for name, column in table.parts.items()},
            "total": table.totals[index],
            "advantage": scored.advantages[index],
            **({VERSIONS: rollout.versions} if has_versions else {}),
            **_learner_row(rollout, learner_logps),
        }
        for index, rollout in enumerate(scored.group.rollouts)
    ]


def write_rollouts(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of `rollout_rows`, group after group, as the step's file, whole or not at all."""
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
    # A checkpoint is flushed too, and must not know of a step whose rollouts a power failure has cut.
    with whole_file(file) as partial_file:
        pq.write_table(pa.Table.from_pylist(numbered, _schema(numbered[0])), partial_file, compression="zstd")


def rollout_files(folder: Path) -> dict[int, Path]:
    """Return the files of a run's rollouts by step, in order."""
    names = {file: re.fullmatch(r"step_(\d+)\.parquet", file.name) for file in folder.glob("step_*")}
    return dict(sorted((int(name[1]), file) for file, name in names.items() if name))


def read_rollouts(
    file: Path, settings: MediaSettings, *, every: int = 1, first: int = 0
) -> Iterator[tuple[int, ScoredGroup]]:
    """Yield the groups of a file as they were scored, each with the number of its first row in the file.

    settings: the run's media settings, by which frames are decoded again. Only every `every`-th group is yielded,
    from group `first` on. A prompt has no tokens here, and a clip gets its frames when they are first used: MediaError
    if the video is gone by then or has changed. Raises ValueError for a damaged file or one that lacks a column.
    """
    table = _read_table(file)
    starts = [row for row, index in enumerate(table.column("rollout").to_pylist()) if index == 0]
    for start, end in list(zip(starts, [*starts[1:], len(table)], strict=True))[first::every]:
        yield start, _read_group(table.slice(start, end - start), settings)


def read_texts(file: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return what a person reads of some rows: the question, its answer and the completion."""
    columns = ["sample_id", "question", "options", "answer", "task", "completion"]
    return _read_table(file, columns).take(list(rows)).to_pylist()


def read_columns(file: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of those of the columns that a file has."""
    import pyarrow.parquet as pq

    present = [name for name in names if name in pq.read_schema(file).names]
    return _read_table(file, present).to_pydict() if present else {}


def num_groups(file: Path) -> int:
    """Return the number of groups in a file."""
    return _read_table(file, ["rollout"]).column("rollout").to_pylist().count(0)


def column_types() -> dict[str, pa.DataType]:
    """Return the type of every column except the rewards', from the annotations of the fields that they hold."""
    import pyarrow as pa

    sample = {name: hint for name, hint in SAMPLE.items() if name != "clip_source"} | SOURCE
    completion = {
        "clip": _arrow(ClipFacts),
        "media_clips": pa.list_(_arrow(ClipFacts)),
        **_arrow_columns(COMPLETION),
        "logprobs": pa.list_(pa.float32()),
    }
    changed = pa.struct({"frames": pa.string(), "completions": pa.list_(pa.struct(completion))})
    return {
        **dict.fromkeys(("step", "group", "rollout", "num_tokens"), pa.int32()),
        **_arrow_columns(sample),
        "prompt": pa.string(),
        "tags": pa.list_(pa.string()),
        **completion,
        "counterfactuals": pa.list_(changed),
        **dict.fromkeys(("total", "advantage"), pa.float64()),
    }


def _arrow_columns(hints: Mapping[str, Any]) -> dict[str, pa.DataType]:
    return {RENAMED.get(name, name): _arrow(hint) for name, hint in hints.items()}


def _arrow(hint: Any) -> pa.DataType:
    """Return the Arrow type of values with an annotation; a mapping is stored as JSON."""
    import pyarrow as pa

    if is_dataclass(hint):
        return pa.struct({name: _arrow(each) for name, each in get_type_hints(hint).items()})
    if get_origin(hint) is tuple:
        return pa.list_(_arrow(get_args(hint)[0]))
    if NoneType in get_args(hint):
        return _arrow(get_args(hint)[0])
    if get_origin(hint) in (Literal, Mapping):
        return pa.string()
    return {str: pa.string(), bool: pa.bool_(), int: pa.int32(), float: pa.float64()}[hint]


def _schema(row: Mapping[str, Any]) -> pa.Schema:
    """Return the columns' types, which can't be inferred from values that are all missing or empty."""
    import pyarrow as pa

    types = column_types() | dict.fromkeys((*ANSWERED, FAILURES), pa.string())
    types |= {
        SLOT: pa.int32(),
        OF_STEP: pa.int32(),
        VERSIONS: pa.list_(pa.int32()),
        LEARNER_LOGPROBS: pa.list_(pa.float32()),
    }
    is_reward = {name: name.startswith((REWARD, PART)) for name in row}
    return pa.schema([(name, pa.float64() if is_reward[name] else types[name]) for name in row])


def _sample_row(sample: Sample) -> dict[str, Any]:
    """Return the values of a sample's columns; those of the clip are None if it has none."""
    try:
        columns = json.dumps(dict(sample.columns), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{sample.source}: its columns are not JSON: {error}") from error
    media = [_row(source, SOURCE) for source in sample.media]
    row = _row(sample, SAMPLE) | {"columns": columns, "media": media, "streams": [*sample.streams.items()]}
    source = row.pop("clip_source")
    return row | (_row(source, SOURCE) if source else dict.fromkeys(SOURCE))


def _completion_row(rollout: Rollout) -> dict[str, Any]:
    """Return the values that a rollout does not share with its group, also of one about changed frames."""
    return {
        "clip": rollout.clip.facts.as_dict() if rollout.clip else None,
        "media_clips": [clip.facts.as_dict() for clip in rollout.media],
        **_row(rollout, COMPLETION),
    }


def _learner_row(rollout: Rollout, logps: Mapping[bytes, Sequence[float]] | None) -> dict[str, Any]:
    """Return the learner's log-probs of a rollout, if any are known of its step."""
    return {LEARNER_LOGPROBS: logps.get(completion_key(rollout))} if logps else {}


def _row(of: object, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of an object's fields, by the columns that hold them."""
    return {RENAMED.get(name, name): getattr(of, name) for name in names}


def _read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        wanted = [*column_types()] if columns is None else columns
        for name in wanted:
            if name not in names and name not in LATER:
                raise ValueError(
                    f"{file}: no column {name!r}: an older version wrote it; run again with this one"
                )
        table = pq.read_table(file, columns=columns).combine_chunks()
        for name in set(wanted) - {*names}:
            table = table.append_column(name, pa.array([[]] * len(table), column_types()[name]))
        return table
    except (pa.ArrowException, OSError) as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _read_group(rows: pa.Table, settings: MediaSettings) -> ScoredGroup:
    """Return the scored group that rows hold."""
    first = rows.slice(0, 1).drop_columns(["token_ids", "logprobs", "counterfactuals"]).to_pylist()[0]
    sample = _read_sample(first)
    clips = _read_clips(first, sample, lambda source, facts: partial(_decode_again, source, settings, facts))
    prompt = Prompt(sample=sample, **clips, token_ids=(), tags=tuple(first["tags"]), text=first["prompt"])
    columns = {name: _values(rows, RENAMED.get(name, name)) for name in COMPLETION}
    if VERSIONS in rows.column_names:
        columns[VERSIONS] = _values(rows, VERSIONS)
    changed = rows.column("counterfactuals").to_pylist()
    rollouts = tuple(
        Rollout(
            sample=sample,
            **clips,
            tags=prompt.tags,
            **{name: column[index] for name, column in columns.items()},
            counterfactuals=_read_counterfactuals(kinds, prompt),
        )
        for index, kinds in enumerate(changed)
    )
    return ScoredGroup(
        group=Group(prompt=prompt, rollouts=rollouts),
        table=RewardTable(
            columns=_columns_of(rows, REWARD),
            parts=_columns_of(rows, PART),
            totals=tuple(rows.column("total").to_pylist()),
            # failures.jsonl has them.
            failures=(),
        ),
        advantages=tuple(rows.column("advantage").to_pylist()),
    )


def _read_sample(row: Mapping[str, Any]) -> Sample:
    # A video has an empty list of frames; only without a clip the list is missing.
    source = None if row["frames"] is None else ClipSource(**_fields(row, SOURCE))
    media = tuple(ClipSource(**_fields(each, SOURCE)) for each in row["media"])
    own = _fields(row, SAMPLE.keys() - {"clip_source", "columns", "media", "streams"})
    streams, columns = dict(row["streams"]), json.loads(row["columns"])
    return Sample(**own, clip_source=source, media=media, streams=streams, columns=columns)


def _read_clips(
    row: Mapping[str, Any], sample: Sample, frames_of: Callable[[ClipSource, ClipFacts], Callable[[], Any]]
) -> dict[str, Any]:
    """Return the clip and the media that a row's completion is about. frames_of: gives a clip's frames later."""

    def clip_of(source: ClipSource, stored: Mapping[str, Any]) -> Clip:
        facts = ClipFacts.from_dict(stored)
        return Clip(facts, frames_of(source, facts))

    # Counterfactuals of files of older versions lack the key.
    seen = row.get("media_clips") or []
    if seen:
        media = tuple(map(clip_of, sample.media, seen))
        return {"clip": media[main_index(media)], "media": media}
    if row["clip"] is None or sample.clip_source is None:
        return {"clip": None}
    return {"clip": clip_of(sample.clip_source, row["clip"])}


def _read_counterfactuals(
    kinds: Sequence[Mapping[str, Any]], prompt: Prompt
) -> dict[str, tuple[Rollout, ...]]:
    """Return completions about changed frames, by how the frames were changed; the frames were not stored."""
    return {
        kind["frames"]: tuple(_read_changed(each, prompt, kind["frames"]) for each in kind["completions"])
        for kind in kinds
    }


def _read_changed(row: Mapping[str, Any], prompt: Prompt, kind: str) -> Rollout:
    clips = _read_clips(row, prompt.sample, lambda *_: partial(_refuse_frames, prompt.sample.id, kind))
    return Rollout(sample=prompt.sample, **clips, tags=prompt.tags, **_fields(row, COMPLETION))


def _fields(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the values of an object's fields from a row, with tuples for Parquet's lists: the inverse of `_row`."""
    return {name: _tuples(row[RENAMED.get(name, name)]) for name in names}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _decode_again(source: ClipSource, settings: MediaSettings, facts: ClipFacts) -> np.ndarray:
    """Decode once more the frames that the model saw; raise MediaError if the video is gone or has changed."""
    # Imported here, since only rewards that look at frames need PyAV and torch.
    from grpo.media.reading import read_source

    clip = read_source(source, settings=settings, patches=facts.patches)
    if clip.facts != facts:
        raise MediaError(f"{source.path}: not the video that the run read")
    return clip.frames_FHWC


def _refuse_frames(sample_id: str, kind: str) -> Never:
    raise ValueError(f"sample {sample_id}: the {kind} frames of a counterfactual are not stored")


def _columns_of(rows: pa.Table, prefix: str) -> dict[str, tuple[Any, ...]]:
    """Return the columns with a prefix, by what follows it."""
    names = [name for name in rows.column_names if name.startswith(prefix)]
    return {name.removeprefix(prefix): tuple(rows.column(name).to_pylist()) for name in names}


def _values(rows: pa.Table, name: str) -> list[Any]:
    """Return a column's values; lists of numbers through numpy, since Arrow takes a hundred times as long."""
    import pyarrow as pa

    column = rows.column(name).chunk(0)
    if not isinstance(column, pa.ListArray):
        return column.to_pylist()
    values = column.values.to_numpy()
    return [tuple(values[start:end].tolist()) for start, end in pairwise(column.offsets.to_pylist())]
