"""The data that flows through a run, one frozen type per stage. No torch in here.

`Sample` (a question as read) -> `Prompt` (with its clip and tokens) -> `Rollout` (one completion)
-> `Group` (all completions of a prompt) -> `ScoredGroup` (with rewards and advantages). Packed rows,
the next stage, hold tensors and live in `packing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo.media.clip import Clip, ClipSource

Task = Literal["choice", "number", "text", "ocr", "regression", "span", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question with its answer and where its clip lies, as a reader translated it."""

    id: str
    question: str
    answer: str
    """For `task="choice"` the letter of the right option, "A" for the first."""
    task: Task
    source: str
    """File and line that it came from, for error messages."""
    options: tuple[str, ...] = ()
    video: str | None = None
    """Path of the video file; None for a question about images or about text alone."""
    frames: tuple[str, ...] = ()
    """In place of a video: paths of image files in their order, or of the one folder that holds them."""
    frame_fps: float | None = None
    """Images per second, if they are a constant time apart."""
    frame_times_s: tuple[float, ...] = ()
    """When each image is shown, on the clock of start_s; neither this nor frame_fps for a single picture."""
    start_s: float = 0.0
    """Where the clip starts in the file, or on the clock of its images."""
    end_s: float | None = None
    """Where the clip ends in the file; None for the file's end."""
    keyframes_s: tuple[tuple[float, float], ...] = ()
    """Annotated spans (start, end) in seconds from the *clip's* start; a moment is a span of no length."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the record, untouched, for rewards."""

    @property
    def clip_source(self) -> ClipSource | None:
        """What its clip is read from; None for a question about text alone."""
        if self.video is None and not self.frames:
            return None
        return ClipSource(
            video=self.video,
            frames=self.frames,
            frame_fps=self.frame_fps,
            frame_times_s=self.frame_times_s,
            start_s=self.start_s,
            end_s=self.end_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A sample's rendered input: what the engine is given and the learner trains behind."""

    sample: Sample
    clip: Clip | None
    token_ids: tuple[int, ...]
    """With one vision pad token for each vision feature of the clip."""
    tags: tuple[str, ...]
    """The output tags that it asks for, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of a prompt. This is what a reward receives."""

    sample: Sample
    clip: Clip | None
    """Frames and their times, exactly as the model saw them."""
    tags: tuple[str, ...]
    text: str
    """The completion without its end-of-turn token."""
    token_ids: tuple[int, ...]
    """With the end-of-turn token, if it was sampled."""
    logprobs: tuple[float, ...]
    """The sampler's, one for each token."""
    stopped: bool
    """It ended by itself, not at the token limit."""
    counterfactuals: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """Completions of the same question about changed frames, for the rewards that declare them
    (`rewards.counterfactual`), by how the frames were changed. Never trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A prompt and its G rollouts: the unit of work."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A group with its rewards, their weighted sum and the advantages, one value per rollout.

    In `rewards`, None is a reward that did not apply or that failed. In `totals`, None is a rollout on which a
    reward failed: it has no advantage and takes no part in the update.
    """

    group: Group
    rewards: Mapping[str, tuple[float | None, ...]]
    """Raw values, by the reward's name in the config."""
    parts: Mapping[str, tuple[float, ...]]
    """What each reward adds to the totals: gated, clipped, weighted."""
    totals: tuple[float | None, ...]
    advantages: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LostSample:
    """A sample that could not be used, and why, in one line."""

    sample_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts with the seeds of their rollouts, and what was lost on the way."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    places: tuple[int, ...]
    """Where each prompt's sample was among those that the batch was made of."""
    lost: tuple[LostSample, ...]
