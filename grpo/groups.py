"""The data that flows through a run, one frozen type per stage; importable without torch.

`Sample` (a question as read) -> `Prompt` (with its clip and tokens) -> `Rollout` (one completion)
-> `Group` (all completions of a prompt) -> `RewardTable` (what the rewards say about it) -> `ScoredGroup` (both, with
the advantages). Packed rows, the next stage, hold tensors and live in `packing.py`.

The axes of arrays and tensors stand at the end of their names, each letter with one meaning
(codes and motion have letters of their own):

    P prompts (a step's groups)         F frames
    G completions of each prompt        C channels, H height, W width
    B = P * G completions               M vision features of the clips
    S tokens of a prompt                D width of a hidden state
    L tokens of the longest completion  A attention heads, K key-value heads
    J = S + L                           E width of a head
    T completion tokens of a row        V vocabulary, 1 an axis of one
    N all tokens of a row               O outputs, I inputs of a layer, R rank of its adapter
    Q blocks of tokens, or patches      X values of a patch
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from grpo.media.clip import Clip, ClipSource

ROUNDING = 1e-12
"""The most that equal values may be apart, as a share of their size, or of 1 if they are smaller: 0.1 + 0.2 and 0.3
differ by 6e-17."""

MAX_MEDIA = 32
"""The most media in a question."""

Task = Literal["choice", "number", "text", "ocr", "regression", "span", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question with its answer and where its clip lies, as a reader translated it."""

    id: str
    question: str
    answer: str
    """The right answer; where the task is a choice, the letter of the right option, "A" for the first."""
    task: Task
    source: str
    """The file and line that the sample came from, for error messages."""
    options: tuple[str, ...] = ()
    system: str = ""
    """The record's own system prompt, which `prompt.system` takes the place of; empty: none."""
    clip_source: ClipSource | None = None
    """The files and times that the clip is read from; None for a question about text alone.

    Of several media it is the one whose times are meant: the first video, or the first picture if there is none.
    """
    media: tuple[ClipSource, ...] = ()
    """All media in order, `clip_source` among them, where the record lists them; else empty.

    `<video>` and `<image>` in the question, or in options, then say where each stands; without any, all come first.
    """
    keyframes_s: tuple[tuple[float, float], ...] = ()
    """Annotated spans (start, end) in seconds from the *clip's* start; a moment is a span of no length."""
    other_keyframes_s: tuple[tuple[tuple[float, float], ...], ...] = ()
    """The annotated spans of the second video, the third and so on, each from its own start."""
    streams: Mapping[str, str] = field(default_factory=dict)
    """The files of sensors, motion or actions that go with the clip, by name: `<sensor>` stands for one's codes."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The record's other fields, untouched, for rewards."""

    @property
    def sources(self) -> tuple[ClipSource, ...]:
        """All that is shown, in order: several media, or the one clip."""
        return self.media or (() if self.clip_source is None else (self.clip_source,))

    @property
    def videos(self) -> tuple[ClipSource, ...]:
        """The videos among what is shown, in order."""
        return tuple(source for source in self.sources if not source.is_picture)

    @property
    def num_videos(self) -> int:
        return len(self.videos)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A sample's rendered input: the engine completes it, and the learner trains on the completions alone."""

    sample: Sample
    clip: Clip | None
    token_ids: tuple[int, ...]
    """The tokens of the input, with one vision pad token for each vision feature of its clips."""
    tags: tuple[str, ...]
    """The output tags that the prompt asks for, in order."""
    text: str = ""
    """The input as a text, with one pad token for each clip; empty for tokens that were made up."""
    media: tuple[Clip, ...] = ()
    """The clips of a sample's `media`, in order."""

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All that is shown, in order: several media, or the one clip."""
        return self.media or (() if self.clip is None else (self.clip,))


def clips_of(prompts: Iterable[Prompt]) -> list[Clip]:
    """Return the clips of prompts, each once."""
    return [*dict.fromkeys(clip for prompt in prompts for clip in prompt.clips)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of a prompt, as a reward receives it."""

    sample: Sample
    clip: Clip | None
    """The frames and their times, exactly as the model saw them."""
    tags: tuple[str, ...]
    text: str
    """The completion without its end-of-turn token."""
    token_ids: tuple[int, ...]
    """The sampled tokens, with the end-of-turn token if it was sampled."""
    logprobs: tuple[float, ...]
    """The engine's log-prob of each token when it was sampled."""
    stopped: bool
    """Whether the completion ended by itself, not at the token limit."""
    versions: tuple[int, ...] = ()
    """The version of the weights that sampled each token: the number of steps that they had behind them, whose updates
    were made or skipped; empty if all are of the step's own."""
    counterfactuals: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """Completions of the same question about changed frames, by how the frames were changed, for the rewards that
    declare them (`rewards.counterfactual`). Nothing trains on them."""
    media: tuple[Clip, ...] = ()
    """The clips of a sample's `media`, in order, `clip` among them."""

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All that was shown, in order: several media, or the one clip."""
        return self.media or (() if self.clip is None else (self.clip,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A prompt and its G rollouts: the unit of work."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardFailure:
    """A record of why a reward has no value for a rollout."""

    reward: str
    sample_id: str
    rollout_index: int
    completion: str
    kind: Literal["raised", "late", "died"]
    """Whether the reward raised an exception, took too long, or ended its process."""
    summary: str
    """The failure in one line: the exception's type and the first line of its message."""
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """The rewards' values for one group, one per rollout."""

    columns: Mapping[str, tuple[float | None, ...]]
    """The raw values of each reward, by its name; None where the reward abstained or failed."""
    parts: Mapping[str, tuple[float, ...]]
    """Each reward's part of the totals: its gated, clipped and weighted values, 0 where it does not count."""
    totals: tuple[float | None, ...]
    """The sums of the parts; None for a rollout on which a reward that counts failed, or all that have a weight
    abstained."""
    failures: tuple[RewardFailure, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A group with its reward table and its advantages, one per rollout."""

    group: Group
    table: RewardTable
    advantages: tuple[float | None, ...]
    """The rollouts' advantages; None for one that is not trained on: it has no total, or was cut off and is masked."""

    @property
    def has_signal(self) -> bool:
        """Whether some completion has an advantage other than 0; without one, the policy loss has no gradient."""
        return any(self.advantages)


@dataclass(frozen=True, kw_only=True, slots=True)
class LostSample:
    """A sample that could not be used, with the reason in one line."""

    sample_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts with the seeds of their rollouts, and the samples that were lost on the way."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    places: tuple[int, ...]
    """The index of each prompt's sample among the samples that the batch was made of."""
    lost: tuple[LostSample, ...]

    def answered(self, groups: Sequence[Group]) -> Batch:
        """Return the batch of the prompts that these groups are of; the samples of the others are lost."""
        have = {id(group.prompt) for group in groups}
        kept = [index for index, prompt in enumerate(self.prompts) if id(prompt) in have]
        if len(kept) == len(self.prompts):
            return self
        ids = [prompt.sample.id for prompt in self.prompts if id(prompt) not in have]
        return Batch(
            prompts=tuple(self.prompts[index] for index in kept),
            seeds=tuple(self.seeds[index] for index in kept),
            places=tuple(self.places[index] for index in kept),
            lost=self.lost
            + tuple(LostSample(sample_id=each, reason="no server sampled its group") for each in ids),
        )


def main_index(media: Sequence[ClipSource | Clip]) -> int:
    """Return the index of the one of several media whose times are meant: the first video, or 0 if all are pictures."""
    return next((index for index, each in enumerate(media) if not each.is_picture), 0)


def differ(low: Any, high: Any) -> Any:
    """Return whether values differ from lower ones by more than rounding: a bool for two numbers, else an array."""
    return high - low > ROUNDING * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))


def completion_key(rollout: Rollout) -> bytes:
    """Return what tells a completion from others of a step, wherever it was packed: a digest of its sample's id, its
    tokens and the engine's log-probs.

    Completions that agree in all three are equal as far as the learner's log-probs go.
    """
    parts = np.asarray(rollout.token_ids, np.int64), np.asarray(rollout.logprobs, np.float32)
    content = b"".join([*(part.tobytes() for part in parts), rollout.sample.id.encode()])
    # Processes send each other the keys of all completions: 16 bytes each in place of 12 for each token.
    return hashlib.blake2b(content, digest_size=16).digest()
