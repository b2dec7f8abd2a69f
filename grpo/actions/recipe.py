"""The recipe `actions_reacher` from nothing to its table: `python -m grpo.actions.recipe [OUT] [--small] [--seed 0]`.

Action spaces side by side: uniform bins, one codebook, residual quantisation, and the model's own words. For each of
them the demo's policy is grown by the codes, trained on demonstrations, then by GRPO on what its chunks come to in the
simulator. OUT/table.md has the held-out success of each, and that of the demonstrations as they are said in that space.

Each stage is a command of its own, whose output is in OUT/logs; a stage that is done is not done again, and a folder
whose stages were done with other settings is refused. Read `stages`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from grpo.actions.dataset import STATE, STREAM, WORD_M
from grpo.actions.simulator import ARMS, read_state, simulator
from grpo.actions.words import Words
from grpo.codec.codec import load_codec
from grpo.codec.stages import Stage, run
from grpo.codec.streams import read_stream

BASE = "grpo/demo/base_policy"
CONFIG, SUPERVISED = "configs/actions_reacher.yaml", "configs/supervised/actions_reacher.yaml"
CODECS = {
    "bins": ("kind=bins", "levels=1", "codebook_size=64", "downsampling=1", "coverage=1.0"),
    "residual": ("kind=residual", "levels=2", "codebook_size=64"),
    "plain": ("kind=plain", "levels=1", "codebook_size=64"),
}
"""How the codec of each action space differs from configs/codecs/action.yaml."""
WORDS = "words"
SPACES = (*CODECS, WORDS)
REWARDS = ("task_success", "end_effector_distance", "action_error")
Z_95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much of each there is."""

    arm: str = "reacher"
    num_train: int = 512
    num_heldout: int = 128
    codec_epochs: int = 40
    supervised_steps: int = 100
    grpo_steps: int = 20
    prompts_per_step: int = 16
    group_size: int = 8
    engine: str = "vllm"


SMALL = Sizes(
    num_train=8,
    num_heldout=2,
    codec_epochs=2,
    supervised_steps=2,
    grpo_steps=1,
    prompts_per_step=4,
    group_size=2,
)
"""Whether all stages work, and nothing that could be learned."""


def stages(out: Path, sizes: Sizes, seed: int) -> Iterator[Stage]:
    """All commands, in order."""
    command, data = [sys.executable, "-m", "grpo.commands"], out / "data"
    numbers = [
        f"--arm={sizes.arm}",
        f"--num-train={sizes.num_train}",
        f"--num-heldout={sizes.num_heldout}",
        f"--seed={seed}",
    ]
    yield Stage(name="data", command=[sys.executable, "-m", "grpo.actions.dataset", f"{data}", *numbers])
    for space in SPACES:
        if space in CODECS:
            overrides = [
                f"streams=[{data}/streams/train-*.{STREAM}.npz]",
                f"out={out}/codecs/{space}",
                f"num_epochs={sizes.codec_epochs}",
                f"seed={seed}",
                *CODECS[space],
            ]
            yield Stage(
                name=f"{space} codec",
                command=[*command, "codec", "train", "configs/codecs/action.yaml", *overrides],
            )
            folders = [BASE, f"{out / space}/base", f"{out}/codecs/{space}"]
            yield Stage(name=f"{space} grow", command=[*command, "codec", "grow", *folders])
        for stage in ("supervised", "grpo"):
            arguments = _training(out, sizes, seed, space, is_grpo=stage == "grpo")
            yield Stage(name=f"{space} {stage}", command=[*command, "train", *arguments])


def _training(out: Path, sizes: Sizes, seed: int, space: str, *, is_grpo: bool) -> list[str]:
    """The arguments of a training; GRPO starts where the supervised stage ended."""
    own, kind = out / space, "_words" if space == WORDS else ""
    base = BASE if space == WORDS else f"{own}/base"
    codec = f"words:{WORD_M[sizes.arm]}" if space == WORDS else f"{base}/codecs/{STREAM}"
    steps = sizes.grpo_steps if is_grpo else sizes.supervised_steps
    stage = [
        CONFIG,
        f"run_dir={own}/grpo",
        f"model.path={own}/supervised/final",
        f"rollout.engine={sizes.engine}",
        f"rollout.group_size={sizes.group_size}",
        f"eval.every_steps={steps}",
        f"optim.prompts_per_step={sizes.prompts_per_step}",
    ]
    if not is_grpo:
        prompts = f"optim.prompts_per_step={sizes.prompts_per_step * 2}"
        stage = [CONFIG, SUPERVISED, f"run_dir={own}/supervised", f"model.path={base}", prompts]
    return [
        "--config_file", "launch/accelerate/single.yaml", *stage, f"seed={seed}", f"num_steps={steps}",
        f"data.train=[{{reader: jsonl, path: {out}/data/train{kind}.jsonl}}]",
        f"data.eval=[{{reader: jsonl, path: {out}/data/heldout{kind}.jsonl, name: heldout}}]",
        *[f"rewards.{name}.args.codec={codec}" for name in REWARDS],
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Successes:
    """An action space's shares of held-out starts from which the task was done."""

    num_tokens: int
    """The tokens of a chunk without tags; of words, the words."""
    demonstrations: float
    """The demonstrations themselves, when they are encoded and decoded."""
    supervised: float
    grpo: float
    """The share after GRPO behind the supervised stage."""
    sampled_supervised: float
    sampled_grpo: float
    """The same of sampled answers, at the temperature at which GRPO samples; the others are greedy."""


def successes(out: Path, sizes: Sizes) -> dict[str, Successes]:
    """What each action space came to, in a folder whose stages are all done."""
    found = {}
    for space in SPACES:
        num_tokens, ceiling = _ceiling(out, sizes, space)
        before, after = (_success(out / space / "grpo", step) for step in (0, sizes.grpo_steps))
        found[space] = Successes(
            num_tokens=num_tokens,
            demonstrations=ceiling,
            supervised=before[0],
            grpo=after[0],
            sampled_supervised=before[1],
            sampled_grpo=after[1],
        )
    return found


def table(out: Path, sizes: Sizes) -> str:
    """Held-out success by action space as Markdown, with 95% intervals over starts, first of greedy answers."""
    head = (
        "| action space | tokens of a chunk | demonstrations, as it says them | supervised | then GRPO "
        "| supervised, sampled | then GRPO, sampled |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    lines = []
    for space, each in successes(out, sizes).items():
        greedy = (each.demonstrations, each.supervised, each.grpo)
        shares = (*greedy, each.sampled_supervised, each.sampled_grpo)
        cells = [interval(round(share * sizes.num_heldout), sizes.num_heldout) for share in shares]
        lines.append(f"| {space} | {each.num_tokens} | {' | '.join(cells)} |\n")
    return head + "".join(lines)


def _ceiling(out: Path, sizes: Sizes, space: str) -> tuple[int, float]:
    """The tokens of a chunk without tags (of words: the words), and the success of demonstrations in that space."""
    found, num_tokens = [], 0
    for line in (out / "data" / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        true_TC = read_stream(out / "data" / record["streams"][STREAM]).values_TC
        if space == WORDS:
            words = Words(word_m=WORD_M[sizes.arm])
            said = words.say(true_TC)
            num_tokens, made_TC = len(said.split()), words.read(said)
        else:
            codec = load_codec(out / space / "base" / "codecs" / STREAM)
            codes_KQ = codec.encode(true_TC)
            num_tokens, made_TC = codes_KQ.size, codec.decode(codes_KQ)[: len(true_TC)]
        state = read_state(record[STATE])
        found.append(simulator(sizes.arm).execute(state, made_TC).is_success)
    return num_tokens, float(np.mean(found))


def _success(run_dir: Path, step: int) -> tuple[float, float]:
    """The held-out success of greedy answers after a step, and that of sampled ones."""
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["step"] == step and "eval/heldout/task_success" in row:
            return row["eval/heldout/task_success"], row["eval/heldout/sampled/task_success"]
    raise ValueError(f"{run_dir} has no held-out success after step {step}")


def interval(num_done: int, num: int) -> str:
    """A share with its 95% interval (Wilson, 1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, spread = num_done / num, Z_95**2 / num
    middle = share + spread / 2
    reach = Z_95 * (share * (1 - share) / num + spread / (4 * num)) ** 0.5
    low, high = ((middle + side * reach) / (1 + spread) for side in (-1, 1))
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def make(out: Path, sizes: Sizes, seed: int) -> str:
    """Run all stages that are not done, write the table beside them, and return it."""
    run(out, stages(out, sizes, seed))
    text = table(out, sizes)
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="The recipe actions_reacher, from nothing to its table.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/actions_reacher"))
    parser.add_argument("--arm", choices=[*ARMS], default="reacher")
    parser.add_argument("--small", action="store_true", help="try all stages, and learn nothing")
    parser.add_argument("--engine", default="vllm", help="vllm, or transformers where it is not installed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = replace(SMALL if args.small else Sizes(), engine=args.engine, arm=args.arm)
    try:
        print(make(args.out, sizes, args.seed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
