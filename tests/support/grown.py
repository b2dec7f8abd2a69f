"""A tiny model grown by the codes of tiny codecs: "motion" with two levels of 6 codes, "action" with one of 5."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from grpo.codec.bins import Bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.spec import CodecSpec
from grpo.codec.vocabulary import OUTSIDE, Vocabulary
from grpo.commands.codec.grow import grow
from grpo.groups import Group, ScoredGroup
from grpo.policy.families import ModelFamily, load_family
from tests.support import tiny

SIZES = {"motion": (2, 6), "action": (1, 5)}
"""Levels and codes of each codec."""


def bins(name: str, *, levels: int, codes: int, high: float = 1.0) -> Codec:
    """A codec of uniform bins, whose levels are its channels."""
    channels = tuple(f"c{number}" for number in range(levels))
    spec = CodecSpec(
        name=name,
        kind="bins",
        levels=levels,
        codebook_size=codes,
        downsampling=1,
        rate_hz=10.0,
        channels=channels,
        units=("m",) * levels,
    )
    return Codec(spec, Bins(np.full(levels, -1.0), np.full(levels, high), codes))


def write_codecs(folder: Path) -> list[Path]:
    for name, (levels, codes) in SIZES.items():
        save_codec(bins(name, levels=levels, codes=codes), folder / name)
    return [folder / name for name in SIZES]


@lru_cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


def model(family: str = "qwen2_5_vl") -> Path:
    """The folder of a grown model of a family, by its name in `tiny`."""
    return _model(family)


@lru_cache
def _model(family: str) -> Path:
    out = Path(_folder().name) / family
    with tiny.of_family(family):
        grow(tiny.family().path, out, write_codecs(Path(_folder().name) / f"{family}_codecs"))
    return out


def family(name: str = "qwen2_5_vl") -> ModelFamily:
    return _family(name)


@lru_cache
def _family(name: str) -> ModelFamily:
    return load_family(str(model(name)))


def coded_groups() -> list[ScoredGroup]:
    """Ragged groups of a grown family whose completions have spans of codes; one prompt ends inside of one."""
    rng = np.random.default_rng(0)
    groups = []
    for number, lengths in enumerate(([5, 30, 1, 9], [40, 3, 22])):
        prompt = tiny.prompt(tiny.sample(f"s{number}"), tiny.clip(4, seed=number) if number else None)
        if number:
            prompt = replace(prompt, token_ids=(*prompt.token_ids, vocabulary().codecs[0].open_id))
        completions = [walk(prompt.token_ids[-1], length, rng) for length in lengths]
        rollouts = tuple(tiny.rollout(prompt, token_ids) for token_ids in completions)
        advantages = tuple(rng.normal(size=len(lengths)).tolist())
        group = Group(prompt=prompt, rollouts=rollouts)
        groups.append(ScoredGroup(group=group, table=tiny.table(advantages), advantages=advantages))
    return groups


def walk(last: int, length: int, rng: np.random.Generator) -> list[int]:
    """Random tokens that obey the rules, half of them of spans."""
    rules, found = vocabulary(), list[int]()
    for _ in range(length):
        state = rules.state_after(last)
        choices = [token for tokens in rules.allowed.get(state, [range(400)]) for token in tokens]
        if state == OUTSIDE and rng.random() < 0.5:
            choices = [codec.open_id for codec in rules.codecs]
        last = int(rng.choice(choices))
        found.append(last)
    return found


def vocabulary() -> Vocabulary:
    found = family().vocabulary
    assert found is not None
    return found
