"""Scoring: what the rewards cost a step.

    python -m tests.benchmarks.bench_rewards

Prints JSON, in milliseconds: 512 completions (64 groups of 8, each with a clip) with the three default rewards, which
are called in this process, and with three of a plugin, which are called in workers; eight rewards that sleep 100 ms for
each of 64 completions, the first time and later; what a reward that hangs on one completion in eight, with a time limit
of 1 s, adds to each step; and what `import rewards` takes, beside an interpreter that imports nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from grpo.groups import Group
from rewards.hostile import make_group, moving_clip, synthetic_samples
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings

COMPLETION = (
    f"<think>{'The hand moves to the shelf and takes the red cup. ' * 8}</think>"
    "<keyframes>3.5, {moment}</keyframes><answer>{letter}</answer>"
)
DEFAULTS = {name: RewardSpec() for name in ("accuracy", "format", "keyframe")}
LENGTH = """
from rewards import reward

@reward
def length(rollout):
    return float(len(rollout.text))
"""
SLEEPER = """
import time
from rewards import reward

@reward
def sleeper(rollout):
    time.sleep(0.1)
    return 1.0

@reward
def hangs(rollout):
    while "<answer>A</answer>" in rollout.text and "<keyframes>3.5, 0<" in rollout.text:
        time.sleep(0.1)
    return 1.0
"""


def groups(num_groups: int, group_size: int) -> list[Group]:
    """Completions that differ, about 130 tokens each."""
    sample = synthetic_samples({})[0]
    texts = [
        [COMPLETION.format(moment=(p + g) % 8, letter="ABCD"[g % 4]) for g in range(group_size)]
        for p in range(num_groups)
    ]
    return [make_group(column, sample, clip=moving_clip()) for column in texts]


def milliseconds(rewards: RewardSet, many: list[Group]) -> float:
    start = perf_counter()
    rewards.score(many)
    return round(1000 * (perf_counter() - start), 1)


def quick_rewards(folder: Path) -> Mapping[str, float]:
    """The median and the least of twenty steps, after one to start the processes."""
    plugin = folder / "length.py"
    plugin.write_text(LENGTH)
    plugins = {f"length_{n}": RewardSpec(fn=f"{plugin}:length") for n in range(3)}
    many = groups(64, 8)
    result = {}
    for name, specs in (("default", DEFAULTS), ("of a plugin", plugins)):
        rewards = load_rewards(specs, WorkerSettings())
        milliseconds(rewards, many)
        times = [milliseconds(rewards, many) for _ in range(20)]
        result |= {name: round(median(times), 1), f"{name}, least": min(times)}
        rewards.close()
    return result


def sleeping_rewards(folder: Path) -> Mapping[str, float]:
    plugin = folder / "sleeper.py"
    plugin.write_text(SLEEPER)
    specs = {f"sleeper_{n}": RewardSpec(fn=f"{plugin}:sleeper") for n in range(8)}
    rewards = load_rewards(specs, WorkerSettings())
    times = [milliseconds(rewards, groups(8, 8)) for _ in range(4)]
    rewards.close()
    return {"first step": times[0], "later": median(times[1:])}


def hanging_reward(folder: Path) -> Mapping[str, float]:
    """Steps of 64 completions, of which one in eight makes it hang, and the same steps without that reward."""
    plugin = folder / "sleeper.py"
    many = groups(8, 8)
    specs = {**DEFAULTS, "hangs": RewardSpec(fn=f"{plugin}:hangs", timeout_s=1.0)}
    result = {}
    for name, chosen in (("without", DEFAULTS), ("with", specs)):
        rewards = load_rewards(chosen, WorkerSettings())
        milliseconds(rewards, many)
        result[name] = median(milliseconds(rewards, many) for _ in range(5))
        rewards.close()
    return result


def start_ms(code: str) -> float:
    def once() -> float:
        start = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return 1000 * (perf_counter() - start)

    return median(once() for _ in range(9))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "512 completions, 3 rewards, ms": quick_rewards(Path(folder)),
            "64 completions, 8 rewards of 100 ms each, ms": sleeping_rewards(Path(folder)),
            "64 completions, a reward that hangs (limit 1000 ms), ms": hanging_reward(Path(folder)),
            "import rewards, ms": round(start_ms("import rewards") - start_ms("pass"), 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
