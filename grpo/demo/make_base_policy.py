"""`python -m grpo.demo.make_base_policy OUT [--family qwen2_5_vl] [--seed 0]` trains the demo's base policy from fresh
weights.

What the demo shows: reinforcement learning brings out what a base model *can* do and mostly does not. The
base made here has the skills (it can say what happens in a clip and when, and finds an option's letter),
each under a prompt of its own. Under the demo's plain prompt it has a bad habit instead: a vague thought, a
missing tag, a guessed letter, second 0; now and then a good answer. GRPO selects the good ones.

What it does not show: learning to see from a reward. This script teaches seeing, with captions.

Phases, each stopped by its measured accuracy and not by a number of steps: `see` (captions), `look up` and
`look up from afar` (text only), `skills` (all of it, with two side prompts), `habit` (the plain prompt). Where captions
alone teach seeing slowly, `name` comes first: the tower alone learns to say in the words' embeddings what is there. A
phase that reaches its bound of steps without its accuracy stops the script with the phase's name. One core is enough.
Read `PHASES` first.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grpo.demo.base_policy_maker import Maker, Texts
from grpo.demo.base_policy_model import SHIPPED
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
from grpo.demo.clips import COLOURS, LETTERS, NUM_SECONDS, Scene
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from rewards.parsing import ANSWER, KEYFRAMES, TAGS, blocks_in_order, only_block

logger = logging.getLogger("make_base_policy")

HABITS = Habits()

Measures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of the training: what it teaches, how fast, and when it is over."""

    name: str
    batch: Callable[[Maker], tuple[Tensor, Tensor]]
    """The function that makes a batch: the logits of tokens, and the tokens that they are to be."""
    measure: Callable[[Maker], Measures]
    bounds: dict[str, tuple[float, float]]
    """The range of each measure within which the phase is over."""
    lr: tuple[float, float]
    """The learning rate at the start and, after a half cosine over `decay_steps`, at the end."""
    decay_steps: int
    max_steps: int
    min_steps: int = 0
    check_every: int = 20
    vision_lr_factor: float = 1.0


def run_phase(maker: Maker, phase: Phase) -> None:
    """Train until the measures lie within the phase's bounds; RuntimeError names a phase that never gets there."""
    optimizer = _optimizer(maker, phase)
    started_s, measures = time.monotonic(), {}
    for step in range(1, phase.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _lr(phase, step) * group["lr_factor"]
        logits, target = phase.batch(maker)
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


def name_batch(maker: Maker) -> tuple[Tensor, Tensor]:
    return maker.named(maker.sample_clips())


def reading(texts: Callable[[Maker], Texts]) -> Callable[[Maker], tuple[Tensor, Tensor]]:
    """Batches of replies to be read."""
    return lambda maker: maker.logits(texts(maker))


def lookup_texts(maker: Maker) -> Texts:
    """Option lists without a clip, each with a chain of look-ups of the shortest form.

    The chain has repeats: without them elimination solves half of it, and nothing is looked up.
    """
    return [(None, [_lookup_chain(maker.rng, num_forms=1, length=8)]) for _ in range(maker.lists_per_step)]


def distant_lookup_texts(maker: Maker) -> Texts:
    """Option lists without a clip, each with a chain of look-ups of one form, up to the demo's format."""
    return [(None, [_lookup_chain(maker.rng, num_forms=4, length=5)]) for _ in range(maker.lists_per_step)]


def _lookup_chain(rng: random.Random, *, num_forms: int, length: int) -> Exchange:
    options = tuple(rng.sample(list(COLOURS), len(LETTERS)))
    form = rng.randrange(num_forms)
    links = [lookups(options, rng.choice(options), rng.randrange(NUM_SECONDS))[form] for _ in range(length)]
    return Exchange(request=links[0].request, reply="".join(link.reply for link in links))


def measure_names(maker: Maker) -> Measures:
    """How often a vision token is nearest to the right word: those of standing objects, and those of the taken one."""
    logits, target = maker.named(maker.probe)
    right = (logits.argmax(-1) == target).float().reshape(-1, 4)
    is_taken = target.reshape(-1, 4)[:, 3] != maker.token_ids(" none")[0]
    return {
        "objects": right[:, :3].mean().item(),
        "taken": right[is_taken, 3].mean().item(),
        "none": right[~is_taken, 3].mean().item(),
    }


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


NAME = Phase(
    name="name",
    batch=name_batch,
    measure=measure_names,
    bounds={"objects": (0.97, 1), "taken": (0.92, 1), "none": (0.99, 1)},
    lr=(2e-3, 3e-4),
    decay_steps=500,
    max_steps=1500,
    check_every=50,
)

SEE = Phase(
    name="see",
    batch=reading(caption_texts),
    measure=measure_captions,
    bounds={"moment": (0.97, 1), "colour": (0.97, 1), "objects": (0.95, 1)},
    lr=(2e-3, 4e-4),
    decay_steps=360,
    max_steps=800,
    vision_lr_factor=2.0,
)

LOOK_UP = Phase(
    name="look up",
    batch=reading(lookup_texts),
    measure=measure_lookups,
    bounds={"form0": (0.99, 1)},
    lr=(6e-4, 6e-4),
    decay_steps=1000,
    max_steps=1500,
)

LOOK_UP_FROM_AFAR = replace(
    LOOK_UP,
    name="look up from afar",
    batch=reading(distant_lookup_texts),
    bounds={f"form{i}": (0.98, 1) for i in range(4)},
)

SKILLS = Phase(
    name="skills",
    batch=reading(skill_texts),
    measure=measure_skills,
    bounds={"colour": (0.97, 1), "letter": (0.97, 1), "moment": (0.97, 1)},
    lr=(1e-3, 5e-4),
    decay_steps=300,
    max_steps=600,
)

HABIT = Phase(
    name="habit",
    batch=reading(habit_texts),
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
)

ALMOST = {"colour": (0.93, 1.0)}
"""What is enough where a later phase goes on with it."""

PHASES = {
    "qwen2_5_vl": (SEE, LOOK_UP, LOOK_UP_FROM_AFAR, SKILLS, HABIT),
    "qwen3_vl": (
        NAME,
        replace(SEE, lr=(1e-3, 4e-4), vision_lr_factor=0.3, bounds=SEE.bounds | ALMOST),
        LOOK_UP,
        LOOK_UP_FROM_AFAR,
        replace(SKILLS, bounds=SKILLS.bounds | ALMOST),
        HABIT,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's base policy.")
    parser.add_argument("out")
    parser.add_argument("--family", choices=SHIPPED, default="qwen2_5_vl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips-per-step", type=int, default=32)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A model this small is slower with more.
    torch.set_num_threads(1)
    maker = Maker(args.family, seed=args.seed, clips_per_step=args.clips_per_step)
    for phase in PHASES[args.family]:
        run_phase(maker, phase)
    maker.save(args.out)


if __name__ == "__main__":
    main()
