"""`python -m grpo.demo.make_base_policy OUT [--seed 0]` trains the demo's base policy from fresh weights.

What the demo shows: reinforcement learning brings out what a base model *can* do and mostly does not. The
base made here has the skills (it can say what happens in a clip and when, and finds an option's letter),
each under a prompt of its own. Under the demo's plain prompt it has a bad habit instead: a vague thought, a
missing tag, a guessed letter, second 0; now and then a good answer. GRPO selects the good ones.

What it does not show: learning to see from a reward. This script teaches seeing, with captions.

Phases, each stopped by its measured accuracy and not by a number of steps: `see` (captions), `look up` and
`look up from afar` (text only), `skills` (all of it, with two side prompts), `habit` (the plain prompt). A phase that
reaches its bound of steps without its accuracy stops the script with the phase's name. One core is enough. Read
`PHASES` first.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grpo.demo.base_policy_model import build_policy
from grpo.demo.base_policy_texts import (
    EXPLAIN,
    TIMELINE,
    VAGUE_THOUGHTS,
    Exchange,
    Habits,
    ask,
    captions,
    full_answer,
    grounded_thought,
    lookups,
    plain_answer,
    side_answers,
)
from grpo.demo.clips import COLOURS, LETTERS, NUM_SECONDS, Scene, clip_of, scene_at
from grpo.groups import Prompt, Sample
from grpo.media.clip import Clip
from grpo.packing import PackedRow, Segment, build_row
from grpo.rollout import Sampling, as_rollout
from grpo.rollout.transformers_engine import TransformersEngine
from rewards.parsing import ANSWER, KEYFRAMES, TAGS, blocks_in_order, only_block

logger = logging.getLogger("make_base_policy")

CLIPS_PER_STEP, LISTS_PER_STEP = 32, 48
NUM_PRETRAIN_CLIPS, NUM_PROBE_CLIPS = 6000, 192
HABITS = Habits()

Texts = Sequence[tuple[Clip | None, Sequence[Exchange]]]
"""Clips, and what is asked and replied about each; a request that follows its like is read once for both."""
Measures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of the training: what it teaches, how fast, and when it is over."""

    name: str
    texts: Callable[[Maker], Texts]
    """The function that makes a batch."""
    measure: Callable[[Maker], Measures]
    bounds: Mapping[str, tuple[float, float]]
    """The range of each measure within which the phase is over."""
    lr: tuple[float, float]
    """The learning rate at the start and, after a half cosine over `decay_steps`, at the end."""
    decay_steps: int
    max_steps: int
    min_steps: int = 0
    check_every: int = 20
    vision_lr_factor: float = 1.0


class Maker:
    """The policy under way, and its clips."""

    def __init__(self, *, seed: int) -> None:
        self.policy = build_policy(seed=seed).train()
        self.rng = random.Random(seed)
        self.clips = [scene_at("pretrain", i, seed=seed) for i in range(NUM_PRETRAIN_CLIPS)]
        self.probe = [scene_at("probe", i, seed=seed) for i in range(NUM_PROBE_CLIPS)]

    def sample_clips(self) -> list[Scene]:
        return self.rng.choices(self.clips, k=CLIPS_PER_STEP)

    def clip(self, scene: Scene) -> Clip:
        return clip_of(scene.frames_FHWC, self.policy.family.patches)

    def logits(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and targets (T,) of all reply tokens; texts of one shape keep their order."""
        row = self._packed(texts)
        return self.policy.logits(self.policy.hidden(row), row.input_ids_N[row.source_T]), row.target_T

    def prompt(self, request: str, clip: Clip | None) -> Prompt:
        sample = Sample(id="", question=request, answer="", task="text", source="")
        return self.policy.family.render(sample, clip, template="{question}", option="", tags=())

    def token_ids(self, text: str) -> list[int]:
        return self.policy.family.processor.tokenizer.encode(text, add_special_tokens=False)

    def save(self, folder: str) -> None:
        weights = dict(self.policy.named_weights())
        self.policy.family.save_model(Path(folder), weights, max_shard_size="50GB")

    def _packed(self, texts: Texts) -> PackedRow:
        segments = [
            self._segment(self.prompt(request, clip), [exchange.reply for exchange in same])
            for clip, exchanges in texts
            for request, same in groupby(exchanges, key=lambda exchange: exchange.request)
        ]
        return build_row(segments, self.policy.family)

    def _segment(self, prompt: Prompt, replies: Sequence[str]) -> Segment:
        """A prompt with the replies as its completions. Their log-probs and advantages are not used here."""
        token_ids = [[*self.token_ids(reply), self.policy.family.eos_ids[0]] for reply in replies]
        rollouts = tuple(
            as_rollout(prompt, text=text, token_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
            for text, ids in zip(replies, token_ids, strict=True)
        )
        return Segment(prompt=prompt, rollouts=rollouts, advantages=(0.0,) * len(rollouts))


def run_phase(maker: Maker, phase: Phase) -> None:
    """Train until the measures lie within the phase's bounds; RuntimeError names a phase that never gets there."""
    optimizer = _optimizer(maker, phase)
    started_s, measures = time.monotonic(), {}
    for step in range(1, phase.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _lr(phase, step) * group["lr_factor"]
        logits, target = maker.logits(phase.texts(maker))
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(maker.policy.parameters(), 1.0)
        optimizer.step()
        if step % phase.check_every == 0 and step >= phase.min_steps:
            measures = _measured(maker, phase)
            took_s = time.monotonic() - started_s
            shown = " ".join(f"{name} {value:.2f}" for name, value in measures.items())
            logger.info("%s: step %d, %.0f s, loss %.3f, %s", phase.name, step, took_s, loss.item(), shown)
            if all(low <= measures[name] <= high for name, (low, high) in phase.bounds.items()):
                return
    raise RuntimeError(f"phase {phase.name!r} ended after {phase.max_steps} steps with {measures}")


def _optimizer(maker: Maker, phase: Phase) -> torch.optim.AdamW:
    vision = list(maker.policy.model.model.visual.parameters())
    language = list(maker.policy.model.model.language_model.parameters())
    groups = [
        {"params": language, "lr_factor": 1.0},
        {"params": vision, "lr_factor": phase.vision_lr_factor},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)


def _lr(phase: Phase, step: int) -> float:
    start, end = phase.lr
    progress = min(1.0, step / phase.decay_steps)
    return min(1.0, step / 30) * (end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def _measured(maker: Maker, phase: Phase) -> Measures:
    maker.policy.eval()
    measures = phase.measure(maker)
    maker.policy.train()
    return measures


def lookup_texts(maker: Maker) -> Texts:
    """Option lists without a clip, each with a chain of look-ups of the shortest form.

    The chain has repeats: without them elimination solves half of it, and nothing is looked up.
    """
    return [(None, [_lookup_chain(maker.rng, num_forms=1, length=8)]) for _ in range(LISTS_PER_STEP)]


def distant_lookup_texts(maker: Maker) -> Texts:
    """Option lists without a clip, each with a chain of look-ups of one form, up to the demo's format."""
    return [(None, [_lookup_chain(maker.rng, num_forms=4, length=5)]) for _ in range(LISTS_PER_STEP)]


def _lookup_chain(rng: random.Random, *, num_forms: int, length: int) -> Exchange:
    options = tuple(rng.sample(list(COLOURS), len(LETTERS)))
    form = rng.randrange(num_forms)
    links = [lookups(options, rng.choice(options), rng.randrange(NUM_SECONDS))[form] for _ in range(length)]
    return Exchange(request=links[0].request, reply="".join(link.reply for link in links))


def caption_texts(maker: Maker) -> Texts:
    return [(maker.clip(scene), captions(scene)) for scene in maker.sample_clips()]


def skill_texts(maker: Maker) -> Texts:
    """Captions, look-ups and the side prompts of each clip."""
    return [(maker.clip(scene), _skills(maker, scene)) for scene in maker.sample_clips()]


def _skills(maker: Maker, scene: Scene) -> list[Exchange]:
    lookup = _lookup_chain(maker.rng, num_forms=4, length=4)
    return [*captions(scene), lookup, *side_answers(scene, HABITS, maker.rng)]


def habit_texts(maker: Maker) -> Texts:
    """The plain prompt for three clips of five, the skills for the others so that they last."""
    texts = []
    for scene in maker.sample_clips():
        plain = maker.rng.random() < 0.6
        replies = (
            [plain_answer(scene, HABITS, maker.rng) for _ in range(4)] if plain else _skills(maker, scene)
        )
        texts.append((maker.clip(scene), replies))
    return texts


def measure_lookups(maker: Maker) -> Measures:
    """How often a single look-up gives the right letter, in each of the forms."""
    rng = random.Random(0)
    texts = []
    for _ in range(48):
        options = tuple(rng.sample(list(COLOURS), len(LETTERS)))
        for asked in rng.sample(options, 2):
            texts.append((None, lookups(options, asked, rng.randrange(NUM_SECONDS))))
    logits, target = maker.logits(texts)
    is_letter = torch.isin(target, torch.tensor([maker.token_ids(letter)[0] for letter in LETTERS]))
    right = (logits.argmax(-1) == target)[is_letter].float().reshape(-1, 4).mean(0)
    return {f"form{i}": value for i, value in enumerate(right.tolist())}


def measure_captions(maker: Maker) -> Measures:
    """How often the second and the colour of the event are right, and the objects all are."""
    event, objects = ([(maker.clip(scene), [captions(scene)[i]]) for scene in maker.probe] for i in (0, 1))
    right_event, right_objects = _right(maker, event), _right(maker, objects)
    return {
        "moment": right_event[:, 1].mean().item(),
        "colour": right_event[:, 5].mean().item(),
        "objects": right_objects.mean().item(),
    }


def _right(maker: Maker, texts: Texts) -> Tensor:
    """1 where the most likely token is the right one: clips of the probe x tokens of a reply."""
    logits, target = maker.logits(texts)
    return (logits.argmax(-1) == target).float().reshape(len(maker.probe), -1)


def measure_skills(maker: Maker) -> Measures:
    """What each side prompt is asked to know, given the reply up to there."""
    what, when = [], []
    for scene in maker.probe:
        knows_what = full_answer(grounded_thought(scene.taken), scene.taken_at_s, scene.answer)
        knows_when = full_answer(next(iter(VAGUE_THOUGHTS)), scene.taken_at_s, scene.answer)
        what.append((maker.clip(scene), [Exchange(request=ask(scene.options, EXPLAIN), reply=knows_what)]))
        when.append((maker.clip(scene), [Exchange(request=ask(scene.options, TIMELINE), reply=knows_when)]))
    right_what, right_when = _right(maker, what), _right(maker, when)
    return {
        "colour": right_what[:, 4].mean().item(),
        "letter": right_what[:, 10].mean().item(),
        "moment": right_when[:, -6].mean().item(),
    }


def measure_habit(maker: Maker) -> Measures:
    """Accuracy, format and key moment under the plain prompt, greedy and sampled, and the skills still there."""
    greedy = _score(maker, Sampling(group_size=1, max_new_tokens=24, temperature=0.0))
    sampled = _score(maker, Sampling(group_size=4, max_new_tokens=24, temperature=1.0))
    return {
        **{f"greedy_{name}": value for name, value in greedy.items()},
        **{f"sampled_{name}": value for name, value in sampled.items()},
        **measure_skills(maker),
    }


def _score(maker: Maker, sampling: Sampling) -> Measures:
    prompts = [maker.prompt(ask(scene.options), maker.clip(scene)) for scene in maker.probe]
    groups = TransformersEngine(maker.policy).generate(prompts, sampling, range(len(prompts)))
    right, complete, on_time = [], [], []
    for scene, group in zip(maker.probe, groups, strict=True):
        for text in [rollout.text for rollout in group.rollouts]:
            right.append(only_block(text, ANSWER) == scene.answer)
            complete.append(blocks_in_order(text, TAGS) is not None)
            on_time.append(only_block(text, KEYFRAMES) == str(scene.taken_at_s))
    return {
        "accuracy": float(np.mean(right)),
        "format": float(np.mean(complete)),
        "moment": float(np.mean(on_time)),
    }


PHASES = (
    Phase(
        name="see",
        texts=caption_texts,
        measure=measure_captions,
        bounds={"moment": (0.97, 1), "colour": (0.97, 1), "objects": (0.95, 1)},
        lr=(2e-3, 4e-4),
        decay_steps=360,
        max_steps=800,
        vision_lr_factor=2.0,
    ),
    Phase(
        name="look up",
        texts=lookup_texts,
        measure=measure_lookups,
        bounds={"form0": (0.99, 1)},
        lr=(6e-4, 6e-4),
        decay_steps=1000,
        max_steps=1500,
    ),
    Phase(
        name="look up from afar",
        texts=distant_lookup_texts,
        measure=measure_lookups,
        bounds={f"form{i}": (0.98, 1) for i in range(4)},
        lr=(6e-4, 6e-4),
        decay_steps=1000,
        max_steps=1500,
    ),
    Phase(
        name="skills",
        texts=skill_texts,
        measure=measure_skills,
        bounds={"colour": (0.97, 1), "letter": (0.97, 1), "moment": (0.97, 1)},
        lr=(1e-3, 5e-4),
        decay_steps=300,
        max_steps=600,
    ),
    Phase(
        name="habit",
        texts=habit_texts,
        measure=measure_habit,
        bounds={
            "greedy_accuracy": (0.0, 0.35),
            "greedy_format": (0.0, 0.05),
            "sampled_accuracy": (0.3, 0.43),
            "sampled_format": (0.22, 0.38),
            "sampled_moment": (0.02, 0.12),
            "colour": (0.95, 1),
            "letter": (0.95, 1),
            "moment": (0.95, 1),
        },
        lr=(1e-3, 1e-4),
        decay_steps=150,
        min_steps=140,
        max_steps=300,
        check_every=10,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's base policy.")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A model this small is slower with more.
    torch.set_num_threads(1)
    maker = Maker(seed=args.seed)
    for phase in PHASES:
        run_phase(maker, phase)
    maker.save(args.out)


if __name__ == "__main__":
    main()
