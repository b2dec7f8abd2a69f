"""Rollouts on disk: what is read back is what was scored, and what can't be read says why."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo.data.readers.jsonl import read_jsonl
from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup, completion_key
from grpo.media.clip import Clip, MediaError
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from grpo.run import disk
from grpo.run.rollout_files import (
    num_groups,
    read_columns,
    read_rollouts,
    rollout_files,
    rollout_rows,
    write_rollouts,
)
from tests.support import tiny
from tests.support.clips import source_of

SETTINGS = MediaSettings(fps=2.0, max_frames=16, min_pixels=784, max_pixels=3136)
TEXTS = ["<answer>A</answer>", "", "\x00\x1b[31m\u202e<script>\n\r\u2028</script>"]


def rollout(sample: Sample, clip: Clip | None, text: str, **fields: Any) -> Rollout:
    plain: dict[str, Any] = {
        "tags": ("think", "answer"),
        "token_ids": tuple(range(len(text))),
        "logprobs": tuple(float(np.float32(-0.1 * number)) for number in range(len(text))),
        "stopped": bool(text),
    }
    return Rollout(sample=sample, clip=clip, text=text, **(plain | fields))


def scored(sample: Sample, clip: Clip | None = None, texts: list[str] = TEXTS, **fields: Any) -> ScoredGroup:
    rollouts = tuple(rollout(sample, clip, text, **fields) for text in texts)
    values = tuple(float(number) for number in range(len(texts)))
    return ScoredGroup(
        group=Group(
            prompt=Prompt(sample=sample, clip=clip, token_ids=(), tags=("think", "answer")), rollouts=rollouts
        ),
        table=RewardTable(
            columns={"accuracy": values, "keyframe": (None, *values[1:])},
            parts={"accuracy": values, "keyframe": (0.0, *values[1:])},
            totals=(None, *values[1:]),
            failures=(),
        ),
        advantages=(None, *values[1:]),
    )


def stored(folder: Path, *groups: ScoredGroup, step: int = 3) -> Path:
    write_rollouts(folder / "rollouts", step, [row for group in groups for row in rollout_rows(group)])
    return rollout_files(folder / "rollouts")[step]


def read(file: Path) -> list[ScoredGroup]:
    return [group for _, group in read_rollouts(file, SETTINGS)]


@pytest.fixture(scope="module")
def cut(clips: Path) -> tuple[Sample, Clip]:
    """A sample whose clip starts inside its file, and the clip."""
    sample = read_jsonl(clips / "train.jsonl")[0]
    source = replace(source_of(sample), start_s=1.0, end_s=6.0)
    sample = replace(sample, clip_source=source, columns={"a": [1, {"b": None}]})
    return sample, read_source(source, settings=SETTINGS)


def test_groups_come_back_as_they_were_scored(tmp_path: Path) -> None:
    first = tiny.sample("first", columns={"level": 3, "words": ["é", "\ud800"], "none": None})
    streams = {"sensor": "a.npz", "motion": "b.npz"}
    second = tiny.sample("second", task="open", options=(), answer="It falls.", streams=streams)
    groups = [scored(first), scored(second, texts=["x"]), scored(first)]  # one question twice in a step
    file = stored(tmp_path, *groups)
    assert read(file) == groups and num_groups(file) == 3
    assert pq.read_table(file).column("group").to_pylist() == [0, 0, 0, 1, 2, 2, 2]


def test_a_clip_comes_back_with_its_times_and_decodes_to_the_same_frames(
    tmp_path: Path, cut: tuple[Sample, Clip]
) -> None:
    sample, clip = cut
    (group,) = read(stored(tmp_path, scored(sample, clip)))
    found = group.group.rollouts[0].clip
    assert found is not None and group.group.prompt.sample == sample
    assert found.facts == clip.facts
    found = pickle.loads(pickle.dumps(found))  # as on its way into another process
    assert np.array_equal(found.frames_FHWC, clip.frames_FHWC)


def test_frames_of_a_video_that_is_gone_or_another_one_are_refused(
    tmp_path: Path, cut: tuple[Sample, Clip]
) -> None:
    sample, clip = cut
    source = source_of(sample)
    gone = replace(sample, clip_source=replace(source, video=str(tmp_path / "gone.mp4")))
    other = replace(sample, clip_source=replace(source, start_s=2.0))  # another cut stands for another video
    first, second = read(stored(tmp_path, scored(gone, clip), scored(other, clip)))
    assert first.group.prompt.clip is not None and second.group.prompt.clip is not None
    with pytest.raises(MediaError, match="gone.mp4: no such file"):
        _ = first.group.prompt.clip.frames_FHWC
    with pytest.raises(MediaError, match="not the video that the run read"):
        _ = second.group.prompt.clip.frames_FHWC


def test_counterfactual_completions_come_back_by_kind(tmp_path: Path, cut: tuple[Sample, Clip]) -> None:
    sample, clip = cut
    contrast = {
        "shuffled": tuple(rollout(sample, None, text) for text in TEXTS),
        "blank": (rollout(sample, clip, "<answer>B</answer>"),),
        "cited": (),  # asked for, but there was nothing to sample
    }
    (group,) = read(stored(tmp_path, scored(sample, None, counterfactuals=contrast)))
    found = group.group.rollouts[1].counterfactuals
    assert list(found) == ["shuffled", "blank", "cited"] and found["cited"] == ()
    assert found["shuffled"] == contrast["shuffled"]
    blank = found["blank"][0].clip
    assert blank is not None and blank.duration_s == clip.duration_s
    with pytest.raises(ValueError, match="the blank frames of a counterfactual are not stored"):
        _ = blank.frames_FHWC


def test_only_each_so_manieth_group_is_read(tmp_path: Path) -> None:
    groups = [scored(tiny.sample(f"s{number}")) for number in range(5)]
    file = stored(tmp_path, *groups)
    assert list(read_rollouts(file, SETTINGS, every=2, first=1)) == [(3, groups[1]), (9, groups[3])]


@pytest.mark.parametrize("column", ["task", "token_ids", "clip"])
def test_a_file_without_a_column_is_refused_by_its_name(tmp_path: Path, column: str) -> None:
    file = stored(tmp_path, scored(tiny.sample()))
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(ValueError, match=f"step_000003.parquet: no column '{column}'"):
        read(file)


@pytest.mark.parametrize("content", [b"", b"PAR1 is how it starts", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = stored(tmp_path, scored(tiny.sample()))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + whole[-200:] if content is None else content)
    with pytest.raises(ValueError, match="step_000003.parquet: cannot be read as Parquet"):
        read(file)


def test_columns_that_are_not_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made-up:s: its columns are not JSON"):
        stored(tmp_path, scored(tiny.sample(columns={"x": {1, 2}})))


def test_values_that_are_all_missing_keep_their_types(tmp_path: Path) -> None:
    group = scored(tiny.sample(options=(), task="text"), texts=[""])
    schema = pq.read_schema(stored(tmp_path, group))
    assert schema.field("rewards/keyframe").type == schema.field("total").type == pa.float64()
    assert schema.field("token_ids").type == pa.list_(pa.int32())
    assert schema.field("video").type == pa.string()


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, list[Path]]] = []

    def flush(file: Path) -> None:
        flushed.append((file.stat().st_size, [*file.parent.glob("step_*")]))

    monkeypatch.setattr(disk, "flush", flush)
    file = stored(tmp_path, scored(tiny.sample()))
    assert flushed == [(file.stat().st_size, [])]


def test_a_step_without_rollouts_leaves_no_file(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "rollouts", 1, [])
    assert rollout_files(tmp_path / "rollouts") == {}


def test_the_learners_log_probs_stand_beside_their_completions(tmp_path: Path) -> None:
    group = scored(tiny.sample(), texts=["ab", "c"])
    first, _ = group.group.rollouts
    known = {completion_key(first): [-0.5, -0.25]}
    write_rollouts(tmp_path, 1, rollout_rows(group, known))
    file = tmp_path / "step_000001.parquet"
    assert read_columns(file, ["learner_logprobs", "nothing"]) == {"learner_logprobs": [[-0.5, -0.25], None]}
    write_rollouts(tmp_path, 2, rollout_rows(group))
    assert read_columns(tmp_path / "step_000002.parquet", ["learner_logprobs"]) == {}
