"""Folders as runs leave them, with rollouts made up for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup
from grpo.media.clip import Clip
from grpo.run.rollout_files import rollout_rows, write_rollouts
from tests.support import tiny

CONFIG = """\
run_dir: made-up
num_steps: 2
model: {{path: {model}}}
data: {{train: [{{path: made-up.jsonl}}]}}
media: {{fps: 2.0, max_frames: 16, min_pixels: 784, max_pixels: 3136}}
rewards:
  accuracy: {{}}
  format: {{weight: 0.5}}
"""


def scored(
    texts: list[str], totals: list[float], sample: Sample | None = None, clip: Clip | None = None
) -> ScoredGroup:
    """A group as a run would have stored it, with these totals; a token is a character."""
    sample = sample or tiny.sample("s")
    tags = ("think", "answer")
    rollouts = tuple(
        Rollout(
            sample=sample,
            clip=clip,
            tags=tags,
            text=text,
            token_ids=(5,) * len(text),
            logprobs=(-1.0,) * len(text),
            stopped=True,
        )
        for text in texts
    )
    mean, rewards = sum(totals) / len(totals), {"accuracy": tuple(totals)}
    return ScoredGroup(
        group=Group(prompt=Prompt(sample=sample, clip=clip, token_ids=(), tags=tags), rollouts=rollouts),
        table=RewardTable(columns=rewards, parts=rewards, totals=tuple(totals), failures=()),
        advantages=tuple(total - mean for total in totals),
    )


def write_run(folder: Path, steps: Mapping[int, list[ScoredGroup]]) -> Path:
    """A run's folder with a config and rollouts."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(model=tiny.BASE_POLICY))
    for step, groups in steps.items():
        write_rollouts(folder / "rollouts", step, [row for group in groups for row in rollout_rows(group)])
    return folder
