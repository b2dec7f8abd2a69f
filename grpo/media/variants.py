"""Changed clips, for completions that rewards and evaluation compare with: each function returns a new clip.

A changed clip obeys the same contract as any other: its times, rate and length are what the model is told
about it, not where its frames came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from grpo.media.clip import Clip

Span = tuple[float, float]


def shuffled(clip: Clip, *, seed: int) -> Clip:
    """Return the clip with its frames in random order, one by one as Video-R1 shuffles them; the times stay.

    At least one frame leaves its temporal patch, if there is more than one patch: the vision tower merges a
    patch's frames, so that an order that changes inside patches only would hardly be seen.
    """
    patch_of_F = np.arange(clip.num_frames) // clip.patches.temporal_frames
    rng = np.random.default_rng(seed)
    order_F = rng.permutation(clip.num_frames)
    while patch_of_F[-1] > 0 and np.array_equal(patch_of_F[order_F], patch_of_F):
        order_F = rng.permutation(clip.num_frames)
    return Clip(clip.facts, clip.frames_FHWC[order_F])


def backwards(clip: Clip) -> Clip:
    """Return the clip with its frames from last to first; the times stay."""
    return Clip(clip.facts, np.ascontiguousarray(clip.frames_FHWC[::-1]))


def blank(clip: Clip) -> Clip:
    """Return a clip of black frames, as many, as large and at the same times."""
    return Clip(clip.facts, np.zeros_like(clip.frames_FHWC))


def cited_patches(clip: Clip, cited: Sequence[Span]) -> tuple[int, ...]:
    """Return the indices of the clip's temporal patches that cited moments and spans fall into, ascending, each once.

    A moment falls into the patch of the frame that is nearest in time (the earlier of two), a span into all
    from its start's to its end's. Moments outside the clip have no frame and are to be left out before.
    """
    times_F = np.asarray(clip.times_s)
    patches: set[int] = set()
    for start_s, end_s in cited:
        first, last = (
            int(np.abs(times_F - time_s).argmin()) // clip.patches.temporal_frames
            for time_s in (start_s, end_s)
        )
        patches.update(range(first, last + 1))
    return tuple(sorted(patches))


def cut_to(clip: Clip, patches: Sequence[int]) -> Clip:
    """Return the frames of these temporal patches alone, in their order, as a clip that runs through without gaps.

    It keeps the sampling rate, and a model's positions are an even number of seconds apart. So the patches
    move together in time: where on the original's clock they were is lost, to the model and in `times_s`
    alike.
    """
    frames_FHWC = clip.frames_FHWC[frames_of(clip, patches)]
    times_s = tuple(index / clip.sample_fps for index in range(len(frames_FHWC)))
    duration_s = len(frames_FHWC) / clip.sample_fps
    return Clip(replace(clip.facts, times_s=times_s, duration_s=duration_s), frames_FHWC)


def black_but(clip: Clip, patches: Sequence[int]) -> Clip:
    """Return the clip with all frames black but those of these temporal patches; times and number of tokens stay."""
    kept = frames_of(clip, patches)
    frames_FHWC = np.zeros_like(clip.frames_FHWC)
    frames_FHWC[kept] = clip.frames_FHWC[kept]
    return Clip(clip.facts, frames_FHWC)


def frames_of(clip: Clip, patches: Sequence[int]) -> list[int]:
    """Return the indices of the frames of some of the clip's temporal patches."""
    per_patch = clip.patches.temporal_frames
    return [patch * per_patch + frame for patch in patches for frame in range(per_patch)]
