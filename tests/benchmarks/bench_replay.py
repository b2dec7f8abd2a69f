"""Replaying stored rollouts under the three default rewards, on one core.

    python -m tests.benchmarks.bench_replay [--rollouts 100000] [--group-size 8] [--tokens 160]

Writes rollouts files of synthetic completions first: choice questions with a clip, groups of right, wrong, cut and
badly formed completions, tokens and log-probs of their length. Prints JSON: seconds of the whole command, which
loads Python's packages, reads, scores, compares and writes the report, and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Never

from grpo.groups import Group, Prompt, Rollout, Sample
from grpo.learner.advantages import score_groups
from grpo.media.clip import Clip, ClipSource
from grpo.run.rollout_files import rollout_rows, write_rollouts
from rewards.parsing import TAGS
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import RewardSpec
from tests.support.clips import facts_of

ROOT = Path(__file__).parents[2]
PROMPTS_PER_STEP = 128
LETTERS = "ABCD"
OBJECTS = ("a red cup", "a knife", "the white plate", "a box of salt")
WORDS = (
    "the",
    "hand",
    "reaches",
    "then",
    "takes",
    "puts",
    "object",
    "table",
    "while",
    "camera",
    "moves",
    "so",
)
ONE_CORE = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
CONFIG = """\
run_dir: {folder}
num_steps: {num_steps}
model: {{path: {model}}}
data: {{train: [{{path: made-up.jsonl}}]}}
rewards:
  accuracy: {{}}
  format: {{weight: 0.5}}
  keyframe: {{weight: 0.5, args: {{tolerance_s: 0.5}}}}
"""


def make_group(number: int, group_size: int, num_tokens: int, rng: random.Random) -> Group:
    """A question with its completions; nothing looks at the clip's frames."""
    sample = Sample(
        id=f"q-{number:06d}",
        question=f"What did I pick up before I opened the door, number {number}?",
        answer=rng.choice(LETTERS),
        task="choice",
        source=f"made-up.jsonl:{number + 1}",
        options=OBJECTS,
        clip_source=ClipSource(video=f"clips/{number}.mp4", start_s=12.0, end_s=42.0),
        keyframes_s=((6.0, 7.5), (20.0, 20.0)),
        columns={"split": "train", "scene": number % 17},
    )
    clip = Clip(facts_of(60, 224, 308, 3, path=f"clips/{number}.mp4"), _no_frames)
    prompt = Prompt(sample=sample, clip=clip, token_ids=(), tags=TAGS)
    return Group(
        prompt=prompt, rollouts=tuple(make_rollout(prompt, num_tokens, rng) for _ in range(group_size))
    )


def make_rollout(prompt: Prompt, num_tokens: int, rng: random.Random) -> Rollout:
    length = rng.randint(num_tokens // 2, num_tokens * 3 // 2)
    thought = " ".join(rng.choices(WORDS, k=length * 3 // 4))
    moments = ", ".join(f"{rng.uniform(0, 30):.1f}" for _ in range(rng.randint(0, 3)))
    text = f"<think>{thought}</think><keyframes>{moments}</keyframes><answer>{rng.choice(LETTERS)}</answer>"
    is_cut = rng.random() < 0.1
    return Rollout(
        sample=prompt.sample,
        clip=prompt.clip,
        tags=prompt.tags,
        text=text[: len(text) // 2] if is_cut else text,
        token_ids=tuple(rng.randrange(150_000) for _ in range(length)),
        logprobs=tuple(-rng.random() for _ in range(length)),
        stopped=not is_cut,
    )


def write_run(folder: Path, num_rollouts: int, group_size: int, num_tokens: int) -> None:
    """A run's folder with so many rollouts, scored as its config says."""
    rng = random.Random(0)
    rewards = load_rewards(
        {"accuracy": RewardSpec(), "format": RewardSpec(weight=0.5), "keyframe": RewardSpec()}
    )
    num_groups = num_rollouts // group_size
    num_steps = -(-num_groups // PROMPTS_PER_STEP)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, num_steps=num_steps, model="none"))
    for step in range(num_steps):
        numbers = range(step * PROMPTS_PER_STEP, min((step + 1) * PROMPTS_PER_STEP, num_groups))
        groups = [make_group(number, group_size, num_tokens, rng) for number in numbers]
        write_rollouts(folder / "rollouts", step + 1, scored_rows(rewards, groups))


def scored_rows(rewards: RewardSet, groups: list[Group]) -> list[dict[str, object]]:
    scored = score_groups(groups, rewards.score(groups), scale="group_std")
    return [row for group in scored for row in rollout_rows(group)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        write = (folder, args.rollouts, args.group_size, args.tokens)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_run, write)
        size_mib = sum(file.stat().st_size for file in (folder / "rollouts").iterdir()) / 2**20
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # for the replay and its workers
        start = time.perf_counter()
        command = [sys.executable, "-m", "grpo.commands", "replay", str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE_CORE, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit("the replay failed")
    result = {
        "rollouts": args.rollouts,
        "group_size": args.group_size,
        "mean_tokens": args.tokens,
        "files_mib": size_mib,
        "seconds": seconds,
        "own_cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mib": used.ru_maxrss / 1024,
    }
    print(json.dumps(result, indent=2))


def _no_frames() -> Never:
    raise AssertionError("a string reward looks at no frames")


if __name__ == "__main__":
    main()
