"""Values of slow rewards, kept for the same completions, sample, arguments and code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Sequence

from grpo.groups import Rollout
from rewards.scoring.calling import Result
from rewards.scoring.loading import code_version
from rewards.scoring.specs import Reward

MAX_VALUES = 200_000
SLOW_S = 0.02
"""What a call has to take before its value is worth a key."""


class RewardCache:
    """The least recently used values go first. Failures are not kept: an outage may be over next time."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, float | None] = OrderedDict()
        self._prefixes: dict[str, bytes] = {}

    def keys(self, reward: Reward, rollouts: Sequence[Rollout]) -> list[bytes]:
        """A key per rollout; where a reward looks at the whole group, it stands for the whole group."""
        prefix = self._prefix(reward)
        parts = [_facts(rollout) for rollout in rollouts]
        if reward.calling == "rollout":
            return [_digest(prefix, part) for part in parts]
        together = _digest(prefix, *parts)
        return [_digest(together, str(index).encode()) for index in range(len(parts))]

    def get(self, key: bytes) -> Result:
        """The value; KeyError if there is none."""
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: bytes, value: Result) -> None:
        if isinstance(value, str):
            return
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > MAX_VALUES:
            self._values.popitem(last=False)

    def _prefix(self, reward: Reward) -> bytes:
        """What all calls of a reward share; read once, as the reward itself was."""
        if reward.name not in self._prefixes:
            args = json.dumps(reward.spec.args, sort_keys=True, default=repr)
            function = reward.spec.fn or reward.name  # a file may hold several
            parts = [code_version(reward.fn), function, args]
            self._prefixes[reward.name] = _digest(*(part.encode() for part in parts))
        return self._prefixes[reward.name]


def _facts(rollout: Rollout) -> bytes:
    """All that a reward can read, but frames: those follow from the file and the times."""
    sample, clip = rollout.sample, rollout.clip
    facts = [
        rollout.text, rollout.token_ids, rollout.logprobs, rollout.stopped, rollout.tags,
        sample.id, sample.question, sample.options, sample.answer, sample.task, sample.source, sample.keyframes_s,
        sample.clip_source, dict(sample.columns),
    ]  # fmt: skip
    if clip is not None:
        facts.append(clip.facts)
    for frames, others in sorted(rollout.counterfactuals.items()):
        facts += [frames, *map(_facts, others)]
    return pickle.dumps(facts)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
