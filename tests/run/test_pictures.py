"""A group as a picture: what it shows, and that no completion breaks it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from grpo.media.clip import Clip, ClipFacts
from grpo.media.sampling import PatchShape
from grpo.run.pictures import FRAME_GAP_PX, MARGIN_PX, MAX_FRAMES, WIDTH_PX, draw_group, pictured
from tests.support import tiny
from tests.support.stored_runs import scored

HOSTILE = ["", "\0\x1b[2J\u202e", "n" * 100_000, "word " * 20_000, "日本語" * 500, "\n" * 1000, "🙂" * 300]


def clip(num_frames: int) -> Clip:
    """Frames of one grey each, brighter from one to the next."""
    frames = np.stack([np.full((28, 56, 3), 10 * index, np.uint8) for index in range(num_frames)])
    patches = PatchShape()
    return Clip(ClipFacts.at_fps(frames.shape, 2.0, path="x", patches=patches), frames)


@pytest.mark.parametrize(("num_frames", "shown"), [(2, [0, 10]), (16, [0, 20, 40, 60, 80, 100, 120, 140])])
def test_a_picture_begins_with_frames_from_the_whole_clip(num_frames: int, shown: list[int]) -> None:
    picture = np.asarray(draw_group(scored(["a", "b"], [0.0, 1.0], tiny.sample("s"), clip(num_frames))))
    width = (WIDTH_PX - 2 * MARGIN_PX) // MAX_FRAMES
    middles = [MARGIN_PX + (width - FRAME_GAP_PX) // 2 + width * place for place in range(MAX_FRAMES)]
    found = [int(picture[MARGIN_PX + 20, column, 0]) for column in middles]
    assert found == shown + [255] * (MAX_FRAMES - len(shown))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_completion_breaks_a_picture_or_makes_it_endless(text: str) -> None:
    picture = draw_group(scored([text] * 8, [0.0, 1.0] * 4))
    assert picture.width == WIDTH_PX and picture.height < 1000
    # Text fills the picture to its right end at most: the last pixels before the margin stay white.
    assert np.asarray(picture)[:, WIDTH_PX - MARGIN_PX + 2 :].min() == 255


def test_completions_without_a_total_or_an_advantage_are_shown_too() -> None:
    group = scored(["a", "b"], [0.0, 1.0])
    table = replace(group.table, totals=(None, None), columns={"accuracy": (None, 1.0)})
    assert draw_group(replace(group, table=table, advantages=(None, None))).height > 0


def test_groups_with_a_signal_are_shown_before_flat_ones() -> None:
    flat, other, last = scored(["a"], [1.0]), scored(["b", "c"], [0.0, 1.0]), scored(["d", "e"], [0.0, 1.0])
    assert pictured([flat, other, last], 2) == (other, last)
    assert pictured([flat, other], 2) == (other, flat) and pictured([], 2) == ()
