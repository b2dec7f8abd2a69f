"""Everything that the golden trace asks of the product: a change of its interfaces ends in this file.

Plain dictionaries go in and come out, so that what is stored says nothing about types or places.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from grpo import train
from grpo.config.learner import LossConfig, OptimConfig
from grpo.config.load import load_config
from grpo.demo.clips import write_dataset
from grpo.groups import Group, Prompt, ScoredGroup
from grpo.learner.advantages import score_groups
from grpo.learner.losses import step_counts
from grpo.packing import Block, PackedRow
from grpo.policy.attention import completion_mask
from grpo.policy.model import Policy
from grpo.rollout import Engine, OnGroup, Sampling, as_rollout
from grpo.run.folder import RunDir, read_rows
from grpo.run.stopping import StopRequest
from rewards.scoring.runner import load_rewards
from tests.golden import cases
from tests.support import tiny
from tests.support.learners import make_learner, packed
from tests.support.runs import repeatable, reset_process_state

ROOT = tiny.ROOT

Stored = Any
"""What a JSON file holds."""


def batch_to_draw() -> Stored:
    """The ragged batch as it is stored: random completions with log-probs a little off the policy's, and advantages
    that are normalised, or nearly all ratios would go the same way."""
    policy, stored = tiny.policy(), []
    for index, scored in enumerate(tiny.ragged_groups()):
        lengths = [len(rollout.token_ids) for rollout in scored.group.rollouts]
        (row,) = packed([scored])
        logps_T = policy(row).logps_T.detach()
        noise_T = 0.3 * torch.randn(len(logps_T), generator=torch.Generator().manual_seed(index))
        advantages = np.array(scored.advantages, dtype=float)
        advantages = (advantages - advantages.mean()) / advantages.std() * (index != cases.FLAT_GROUP)
        stored.append(
            {
                "question": scored.group.prompt.sample.question,
                "advantages": advantages.tolist(),
                "token_ids": [list(rollout.token_ids) for rollout in scored.group.rollouts],
                "logprobs": [each.tolist() for each in (logps_T + noise_T).split(lengths)],
            }
        )
    group, rollout = cases.ROLLOUT_WITHOUT_ADVANTAGE
    stored[group]["advantages"][rollout] = None
    return stored


def updates(batch: Stored, names: Iterable[str]) -> dict[str, Stored]:
    """Three updates of the shipped policy with each of the named losses."""
    groups = [group for index, group in enumerate(_groups(batch)) if index != cases.LONG_PROMPT]
    return {name: _updates(groups, LossConfig(**cases.UPDATES[name])) for name in names}


def _updates(groups: Sequence[ScoredGroup], loss: LossConfig) -> Stored:
    rows = packed(groups, tokens_per_row=cases.TOKENS_PER_ROW, drop_flat=not loss.needs_flat_groups)
    policy = tiny.policy()
    start = {name: weight.clone() for name, weight in _stored_weights(policy).items()}
    learner = make_learner(policy, loss=loss, optim=OptimConfig(**cases.OPTIM), reference=_reference())
    counts = step_counts(groups, max_new_tokens=32)
    result = learner.update(rows, counts, 1)
    return {
        "num_rows": len(rows),
        "gradient_norms": result.norms,
        "figures": result.metrics.reduced(),
        "weights": weights_summary(_stored_weights(policy), start),
    }


def _stored_weights(policy: Policy) -> dict[str, Tensor]:
    """All weights, the tied head under its own name too."""
    return {**dict(policy.named_weights()), "lm_head.weight": policy.model.lm_head.weight.detach()}


@lru_cache
def _reference():
    """The shipped policy, a little surer."""
    policy = tiny.policy()
    with torch.no_grad():
        policy.model.lm_head.weight *= 1.02
    return policy


def rows(batch: Stored) -> Stored:
    """The batch's packed rows, and what the shipped policy says about them."""
    policy = tiny.policy()
    stored = []
    for row in packed(_groups(batch), tokens_per_row=cases.TOKENS_PER_ROW):
        with torch.no_grad():
            scores = policy(row)
        stored.append(
            {
                "tensors": _lists(row),
                "blocks": [
                    {**_lists(block), "mask": [*mask_LJ.shape, *mask_LJ.sum(1).tolist()]}
                    for block in row.layout.blocks
                    for mask_LJ in [_mask(block)]
                ],
                "restore_N": row.layout.restore_N.tolist(),
                "samples": [prompt.sample.id for prompt in row.prompts],
                "logps_T": scores.logps_T.tolist(),
                "entropy_T": scores.entropy_T.tolist(),
            }
        )
    return stored


def _mask(block: Block) -> Tensor:
    return completion_mask(block.completion_PGL.shape[-1], block.prompt_PS.shape[-1], "cpu")


def _lists(holder: Block | PackedRow) -> dict[str, Any]:
    """The tensors by their names without axes."""
    values = {name.rpartition("_")[0]: getattr(holder, name) for name in holder.__slots__}
    return {name: value.tolist() for name, value in values.items() if isinstance(value, Tensor)}


def _groups(batch: Stored) -> list[ScoredGroup]:
    return [
        _scored(index, entry, clip)
        for index, (entry, clip) in enumerate(zip(batch, cases.CLIPS, strict=True))
    ]


def _scored(index: int, entry: Stored, clip: Mapping[str, Any] | None) -> ScoredGroup:
    sample = tiny.sample(f"s{index}", question=entry["question"])
    prompt = tiny.prompt(sample, None if clip is None else tiny.clip(**clip))
    rollouts = [
        tiny.rollout(prompt, ids, logprobs)
        for ids, logprobs in zip(entry["token_ids"], entry["logprobs"], strict=True)
    ]
    advantages = tuple(entry["advantages"])
    group = Group(prompt=prompt, rollouts=tuple(rollouts))
    return ScoredGroup(group=group, table=tiny.table(advantages), advantages=advantages)


def weights_summary(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Stored:
    """How far each tensor went from its start, and two of its entries."""
    assert weights.keys() == start.keys()
    return {name: _summary(weight.detach().double(), start[name]) for name, weight in weights.items()}


def _summary(weight: Tensor, start: Tensor) -> list[float]:
    entries = weight.flatten()[[weight.numel() // 3, weight.numel() * 2 // 3]].tolist()
    return [(weight - start).norm().item(), *entries]


def reward_table() -> Stored:
    """What the demo's rewards and a few more say about fixed completions, and the advantages by each setting."""
    config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *_absolute(cases.REWARDS)])
    groups = [_texts(index, entry) for index, entry in enumerate(cases.COMPLETIONS)]
    stored: dict[str, Any] = {"advantages": {}}
    for name, settings in cases.ADVANTAGES.items():
        normalise = settings.get("normalised", False)
        with closing(load_rewards(config.rewards, normalise=normalise)) as rewards:
            tables = rewards.score(groups, cases.REWARDS_STEP)
        scored = score_groups(groups, tables, **settings)
        stored["advantages"][name] = [[*group.advantages] for group in scored]
        stored["normalised" if normalise else "plain"] = [
            {
                "rewards": {key: [*column] for key, column in table.columns.items()},
                "parts": {key: [*column] for key, column in table.parts.items()},
                "totals": [*table.totals],
                "failures": [[each.reward, each.rollout_index, each.summary] for each in table.failures],
            }
            for table in tables
        ]
    return stored


def _absolute(overrides: Sequence[str]) -> list[str]:
    return [each.replace("=tests/", f"={tiny.ROOT}/tests/") for each in overrides]


def _texts(index: int, entry: Stored) -> Group:
    fields = {key: _frozen(value) for key, value in entry["sample"].items()}
    prompt = Prompt(
        sample=tiny.sample(**fields),
        clip=tiny.clip(),
        token_ids=(1, 2),
        tags=tiny.TAGS,
    )
    rollouts = [
        tiny.rollout(prompt, [7] * length, text=text)
        for text, length in zip(entry["texts"], entry["lengths"], strict=True)
    ]
    if index == cases.CUT_OFF[0]:
        rollouts[cases.CUT_OFF[1]] = replace(rollouts[cases.CUT_OFF[1]], stopped=False)
    return Group(prompt=prompt, rollouts=tuple(rollouts))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Recording:
    """The run's own engine; it remembers what was asked and what it said."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[Stored] = []

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        self.engine.prepare(prompts, step)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        groups = self.engine.generate(prompts, sampling, seeds, on_group)
        for group, seed in zip(groups, seeds, strict=True):
            self.asked.append(
                {
                    "asked": _question(group.prompt, sampling, seed),
                    "token_ids": [list(rollout.token_ids) for rollout in group.rollouts],
                    "logprobs": [list(rollout.logprobs) for rollout in group.rollouts],
                }
            )
        return groups

    def sync(self) -> None:
        self.engine.sync()

    def sleep(self) -> None:
        self.engine.sleep()

    def cancel(self) -> None:
        self.engine.cancel()

    def close(self) -> None: ...


class Replay:
    """Says what was stored, question by question, in whatever batches they are asked."""

    def __init__(self, stored: Stored) -> None:
        self.answers: dict[tuple[Any, ...], deque[Stored]] = defaultdict(deque)
        for entry in stored:
            self.answers[tuple(entry["asked"])].append(entry)

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        groups = [self._answer(prompt, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        if on_group is not None:
            for group in groups:
                on_group(group)
        return groups

    def _answer(self, prompt: Prompt, sampling: Sampling, seed: int) -> Group:
        asked = tuple(_question(prompt, sampling, seed))
        assert self.answers[asked], f"the stored run has not asked, or not once more: {asked}"
        entry = self.answers[asked].popleft()
        family = tiny.family()
        rollouts = [
            as_rollout(
                prompt,
                text=family.decode(ids),
                token_ids=ids,
                logprobs=logprobs,
                stopped=ids[-1] in family.eos_ids,
            )
            for ids, logprobs in zip(entry["token_ids"], entry["logprobs"], strict=True)
        ]
        return Group(prompt=prompt, rollouts=tuple(rollouts))

    def sync(self) -> None: ...

    def sleep(self) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


def _question(prompt: Prompt, sampling: Sampling, seed: int) -> list[Any]:
    """What a question of a run is told by; the number of the prompt's tokens says whether it was rendered alike."""
    return [prompt.sample.id, len(prompt.token_ids), sampling.group_size, sampling.temperature, seed]


def demo(folder: Path, rollouts: Stored | None) -> tuple[Stored, Stored]:
    """A short demo in a folder with these rollouts; with None it samples its own. What it left, and its rollouts."""
    config = load_config(
        [
            str(tiny.ROOT / "configs" / "demo.yaml"),
            *cases.DEMO,
            f"model.path={tiny.BASE_POLICY}",
            f"run_dir={folder / 'run'}",
            *demo_data(folder / "clips"),
        ]
    )
    reset_process_state()
    loop = train.prepare(config, RunDir(config.run_dir))
    with closing(loop), closing(loop.trainer.engine):
        engine = Recording(loop.trainer.engine) if rollouts is None else Replay(rollouts)
        loop.trainer.engine = loop.trainer.sampler.engine = engine
        replace(loop, engine=engine).run(StopRequest())
    reset_process_state()
    if isinstance(engine, Replay):
        assert not any(engine.answers.values()), "the stored run has asked more"
    asked = engine.asked if isinstance(engine, Recording) else rollouts
    return _run_summary(folder / "run"), asked


def demo_data(folder: Path) -> list[str]:
    """A few of the demo's clips, written into the folder, as a config's data."""
    clips = write_dataset(folder, **cases.DEMO_CLIPS)
    return [
        f"data.train=[{{reader: jsonl, path: {clips}/train.jsonl}}]",
        f"data.eval=[{{reader: jsonl, path: {clips}/heldout.jsonl}}]",
    ]


def metrics(run_dir: Path) -> list[Stored]:
    """The rows of a run's metrics without times and what was decoded."""
    return repeatable(read_rows(run_dir / "metrics.jsonl"))


def _run_summary(run_dir: Path) -> Stored:
    return {
        "metrics": {f"step {row['step']:02d}": row for row in metrics(run_dir)},
        "rollouts": {file.stem: _table(file) for file in sorted((run_dir / "rollouts").glob("*.parquet"))},
        "weights": weights_summary(
            load_file(run_dir / "final" / "model.safetensors"),
            load_file(tiny.BASE_POLICY / "model.safetensors"),
        ),
    }


def _table(file: Path) -> Stored:
    """The columns of a step's rollouts that say what was asked, said and thought of it."""
    kept = ("sample_id", "completion", "total", "advantage")
    return {
        name: column
        for name, column in pq.read_table(file).to_pydict().items()
        if name in kept or name.startswith(("rewards/", "parts/"))
    }
