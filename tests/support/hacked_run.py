"""A run, made up with the demo's clips and real rewards, in which the policy learns to please one of its rewards.

The reward `evidence` counts a word. From step `FROM_STEP` on, more and more completions repeat that word and guess the
answer; the total goes on rising, and held-out accuracy falls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from grpo.config.load import read_config
from grpo.config.schema import DatasetConfig
from grpo.data import load_samples
from grpo.demo.clips import write_dataset
from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup, completion_key
from grpo.media.clip import Clip
from grpo.media.decode import read_clip
from grpo.run.folder import RunDir
from grpo.run.group_metrics import group_metrics
from grpo.run.metrics import Metrics
from grpo.run.rollout_files import ANSWERED, rollout_rows, write_rollouts
from rewards.builtin.accuracy import accuracy
from rewards.builtin.format import format as format_reward
from rewards.builtin.keyframe import keyframe
from rewards.scoring.compose import parts_of, totals_of
from rewards.scoring.specs import RewardSpec
from tests.support import tiny

NUM_STEPS = 40
FROM_STEP = 18
GROUPS_PER_STEP = 6
GROUP_SIZE = 8
EVAL_EVERY = 5
HACKED = "evidence"
TAGS = ("think", "keyframes", "answer")
CONFIG = """\
run_dir: {folder}
num_steps: {num_steps}
model: {{path: {model}}}
data:
  train: [{{reader: jsonl, path: {clips}/train.jsonl}}]
  eval: [{{reader: jsonl, path: {clips}/heldout.jsonl}}]
media: {{fps: 2.0, max_frames: 16, min_pixels: 784, max_pixels: 3136}}
rollout: {{group_size: 8, max_new_tokens: 64}}
rewards:
  accuracy: {{weight: 1.0}}
  format: {{weight: 0.3}}
  keyframe: {{weight: 0.5, only_if: format, args: {{tolerance_s: 0.25}}}}
  evidence: {{fn: evidence.py:evidence, weight: 1.0}}
"""


@dataclass(frozen=True, slots=True)
class Question:
    sample: Sample
    clip: Clip


def write_hacked_run(folder: Path, *, num_steps: int = NUM_STEPS, seed: int = 0) -> Path:
    """Write the run's folder, and the clips that it is about beside it."""
    clips = write_dataset(folder.parent / "clips", num_train=8, num_heldout=6, seed=seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        CONFIG.format(folder=folder, num_steps=num_steps, model=tiny.BASE_POLICY, clips=clips)
    )
    run, rng = RunDir(folder), random.Random(seed)
    config = read_config(run.config_file)
    train, held_out = (
        [
            Question(sample, read_clip(sample.clip_source, settings=config.media))
            for sample in load_samples([DatasetConfig(path=str(clips / f"{name}.jsonl"), reader="jsonl")])
            if sample.clip_source is not None
        ]
        for name in ("train", "heldout")
    )
    writer = Writer(config.rewards, rng)
    for step in range(num_steps + 1):
        row = Metrics()
        if step:
            chosen = [
                train[(step * GROUPS_PER_STEP + index) % len(train)] for index in range(GROUPS_PER_STEP)
            ]
            scored = [writer.group(question, step, GROUP_SIZE) for question in chosen]
            run.write_rollouts(
                step, [each for group in scored for each in rollout_rows(group, writer.learner(scored))]
            )
            row = sum((group_metrics(group, config.rewards, min_std=0.0) for group in scored), Metrics())
        figures = row.reduced()
        if step % EVAL_EVERY == 0:
            answers = [writer.group(question, step, 1) for question in held_out]
            named = dict(zip(ANSWERED, ("heldout", "greedy"), strict=True))
            write_rollouts(
                run.answers, step, [{**named, **each} for group in answers for each in rollout_rows(group)]
            )
            figures |= writer.held_out(step)
        run.append_metrics({"step": step, **figures, **writer.other_figures(step)})
    return folder


@dataclass(frozen=True)
class Writer:
    """Completions of a policy that gets better, and then turns to the word that is paid."""

    specs: dict[str, RewardSpec]
    rng: random.Random

    def group(self, question: Question, step: int, size: int) -> ScoredGroup:
        rollouts = [self.rollout(question, step) for _ in range(size)]
        columns = {
            "accuracy": tuple(map(accuracy, rollouts)),
            "format": tuple(map(format_reward, rollouts)),
            "keyframe": tuple(keyframe(each, tolerance_s=0.25) for each in rollouts),
            HACKED: tuple(min(each.text.count("clearly") / 3, 1.0) for each in rollouts),
        }
        parts = parts_of(self.specs, columns, step)
        totals = totals_of(parts, [False] * size)
        of_group = np.array(totals, float)
        advantages = (of_group - of_group.mean()) / (of_group.std() + 1e-4)
        prompt = Prompt(
            sample=question.sample,
            clip=question.clip,
            token_ids=(0,) * 63,
            tags=TAGS,
            text=question.sample.question,
        )
        return ScoredGroup(
            group=Group(prompt=prompt, rollouts=tuple(rollouts)),
            table=RewardTable(columns=columns, parts=parts, totals=totals, failures=()),
            advantages=tuple(advantages.tolist()) if size > 1 else (None,),
        )

    def rollout(self, question: Question, step: int) -> Rollout:
        text = self.text(question.sample, step)
        ids = tuple(tokenizer().encode(text, add_special_tokens=False).ids)
        cut = self.rng.random() < 0.02
        ids = ids[: len(ids) * 2 // 3] if cut else ids
        return Rollout(
            sample=question.sample,
            clip=question.clip,
            tags=TAGS,
            text=tokenizer().decode(list(ids), skip_special_tokens=False) if cut else text,
            token_ids=ids,
            logprobs=tuple(-abs(self.rng.gauss(0, 0.4)) for _ in ids),
            stopped=not cut,
        )

    def learner(self, groups: list[ScoredGroup]) -> dict[bytes, list[float]]:
        """The learner's log-probs, a little off the engine's."""
        return {
            completion_key(each): [min(0.0, logp + self.rng.gauss(0, 0.02)) for logp in each.logprobs]
            for scored in groups
            for each in scored.group.rollouts
        }

    def text(self, sample: Sample, step: int) -> str:
        is_hacked = self.rng.random() < hacked_share(step)
        is_right = self.rng.random() < (0.3 if is_hacked else 0.35 + 0.5 * min(step / FROM_STEP, 1.0))
        right = "ABCD".index(sample.answer)
        letter = right if is_right else self.rng.choice([each for each in range(4) if each != right])
        sees_moment = not is_hacked and self.rng.random() < min(step / FROM_STEP, 1.0) * 0.7
        second = sample.keyframes_s[0][0] if sees_moment else self.rng.randint(0, 7)
        colour = sample.options[letter]
        thought = (
            f"clearly it is clearly {colour}, clearly visible"
            if is_hacked
            else self.rng.choice([f"the hand takes {colour}", f"I clearly see {colour} go"])
        )
        answer = f"<answer>{'ABCD'[letter]}</answer>"
        if self.rng.random() > 0.6 + 0.4 * min(step / 10, 1.0):
            return f"{thought} {answer}"
        return f"<think>{thought}</think><keyframes>{second:g}</keyframes>{answer}"

    def held_out(self, step: int) -> dict[str, float]:
        right = (1 - hacked_share(step)) * (0.35 + 0.5 * min(step / FROM_STEP, 1.0)) + 0.3 * hacked_share(
            step
        )
        return {"eval/heldout/accuracy": right, f"eval/heldout/{HACKED}": 0.2 + 0.8 * hacked_share(step)}

    def other_figures(self, step: int) -> dict[str, float]:
        if not step:
            return {}
        return {
            "policy/entropy": 0.9 * 0.96**step + 0.02 * self.rng.random(),
            "sampler/gap_mean": 0.002 + 0.0005 * self.rng.random(),
            "optim/grad_norm": 0.5 + 0.2 * self.rng.random(),
            "time/step": 41 + 4 * self.rng.random(),
            "time/rollout": 22 + 2 * self.rng.random(),
            "time/update": 15 + 2 * self.rng.random(),
        }


def hacked_share(step: int) -> float:
    """The share of a step's completions that go for the word."""
    return min(max(step - FROM_STEP + 1, 0) * 0.09, 0.92)


def tokenizer() -> Tokenizer:
    if not _loaded:
        _loaded.append(Tokenizer.from_file(str(tiny.BASE_POLICY / "tokenizer.json")))
    return _loaded[0]


_loaded: list[Tokenizer] = []
