"""Changed clips: what is changed, what stays, and that each is a clip like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.media.clip import Clip
from grpo.media.variants import backwards, black_but, blank, cited_patches, cut_to, shuffled
from tests.support import tiny
from tests.support.clips import clip_of


def numbered(num_frames: int = 8, fps: float = 2.0) -> Clip:
    """Frame i is filled with i + 1; 0 is black."""
    frames = np.arange(1, num_frames + 1, dtype=np.uint8)[:, None, None, None]
    return clip_of(np.broadcast_to(frames, (num_frames, 56, 84, 3)).copy(), fps=fps)


def numbers(clip: Clip) -> list[int]:
    return clip.frames_FHWC[:, 0, 0, 0].tolist()


VARIANTS = {
    "shuffled": lambda clip: shuffled(clip, seed=3),
    "backwards": backwards,
    "blank": blank,
    "black but": lambda clip: black_but(clip, (0, 2)),
    "cut": lambda clip: cut_to(clip, (0, 2)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_original_is_left_alone_and_the_changed_clip_is_a_clip(name: str) -> None:
    clip = numbered()
    changed = VARIANTS[name](clip)
    assert numbers(clip) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(changed) != numbers(clip)
    assert changed.frames_FHWC.dtype == np.uint8 and changed.frames_FHWC.flags.c_contiguous
    assert not changed.frames_FHWC.flags.writeable
    assert changed.num_frames % 2 == 0 and len(changed.times_s) == changed.num_frames
    assert changed.duration_s == pytest.approx(changed.num_frames / changed.sample_fps)


@pytest.mark.parametrize("name", ["shuffled", "backwards", "blank", "black but"])
def test_changed_in_place_means_the_same_prompt_and_positions(name: str) -> None:
    clip = tiny.clip()
    prompt, changed = (tiny.prompt(tiny.sample(), each) for each in (clip, VARIANTS[name](clip)))
    assert changed.token_ids == prompt.token_ids
    assert changed.clip is not None and changed.clip.times_s == clip.times_s
    assert torch.equal(tiny.family().positions(changed), tiny.family().positions(prompt))


def test_shuffled_frames_are_the_same_frames_by_seed() -> None:
    orders = [numbers(shuffled(numbered(), seed=seed)) for seed in range(20)]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6, 7, 8] for order in orders)
    assert len({tuple(order) for order in orders}) > 15
    assert numbers(shuffled(numbered(), seed=7)) == orders[7]


def test_shuffling_always_moves_a_frame_into_another_temporal_patch() -> None:
    for seed in range(200):  # of the 24 orders of four frames 4 only change inside patches
        first_patch = numbers(shuffled(numbered(4), seed=seed))[:2]
        assert set(first_patch) != {1, 2}


def test_a_clip_of_one_temporal_patch_can_be_shuffled() -> None:
    assert sorted(numbers(shuffled(numbered(2), seed=0))) == [1, 2]


def test_backwards_and_blank() -> None:
    assert numbers(backwards(numbered())) == [8, 7, 6, 5, 4, 3, 2, 1]
    assert not blank(numbered()).frames_FHWC.any()


CLIP = numbered()  # frames at 0, 0.5, ... 3.5: patches of 1 s


@pytest.mark.parametrize(
    ("cited", "patches"),
    [
        ([(0.0, 0.0)], (0,)),
        ([(0.7, 0.7)], (0,)),  # nearest: 0.5
        ([(0.75, 0.75)], (0,)),  # between 0.5 and 1.0: the earlier
        ([(0.8, 0.8)], (1,)),
        ([(4.0, 4.0)], (3,)),  # the clip's end, after its last frame
        ([(0.5, 2.0)], (0, 1, 2)),
        ([(2.1, 2.2)], (2,)),
        ([(3.0, 3.0), (0.0, 0.0), (3.4, 3.4)], (0, 3)),  # ascending, each once
        ([(0.0, 4.0)], (0, 1, 2, 3)),
        ([], ()),
    ],
)
def test_a_cited_moment_falls_into_the_temporal_patch_of_the_nearest_frame(
    cited: list[tuple[float, float]], patches: tuple[int, ...]
) -> None:
    assert cited_patches(CLIP, cited) == patches


def test_black_but_keeps_the_cited_patches_where_they_were() -> None:
    assert numbers(black_but(numbered(), (1, 3))) == [0, 0, 3, 4, 0, 0, 7, 8]


def test_a_cut_clip_runs_through_at_the_same_rate() -> None:
    cut = cut_to(numbered(fps=4.0), (0, 3))
    assert numbers(cut) == [1, 2, 7, 8]
    assert (cut.times_s, cut.sample_fps, cut.duration_s) == ((0.0, 0.25, 0.5, 0.75), 4.0, 1.0)


def test_a_cut_clip_has_the_positions_of_a_clip_of_its_length() -> None:
    cut = cut_to(tiny.clip(16, fps=1.3), (0, 3, 7))
    plain = tiny.clip(6, fps=1.3)
    prompts = [tiny.prompt(tiny.sample(), clip) for clip in (cut, plain)]
    assert prompts[0].token_ids == prompts[1].token_ids
    assert torch.equal(*(tiny.family().positions(prompt) for prompt in prompts))


moments = st.floats(0, 4).map(lambda time_s: (time_s, time_s))
spans = st.tuples(st.floats(0, 4), st.floats(0, 4)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(moments | spans, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_the_cut_clip_holds_the_frames_that_black_but_leaves(cited: list[tuple[float, float]]) -> None:
    patches = cited_patches(CLIP, cited)
    in_place = numbers(black_but(numbered(), patches))
    assert numbers(cut_to(numbered(), patches)) == [each for each in in_place if each]
