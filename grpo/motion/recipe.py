"""The recipe `egolm_synthetic` from nothing to its table: `python -m grpo.motion.recipe [OUT] [--small] [--seed 0]`.

EgoLM's stages (arXiv 2409.18127) on the synthetic walker, and GRPO behind them: data, codecs of sensors and motion, the
demo's policy grown by their codes, supervised tracking, then GRPO on `mpjpe`; beside it the supervised stage again for
as many more samples; and supervised tracking without the clip. OUT/table.md has the held-out errors in millimetres.

Each stage is a command of its own, whose output is in OUT/logs; a stage that is done is not done again, and a folder
whose stages were done with other settings is refused. Read `stages`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from grpo.codec.codec import Codec, load_codec
from grpo.codec.stages import Stage, run
from grpo.codec.streams import read_stream
from grpo.codec.texts import parse_codes
from grpo.motion.features import local_positions
from grpo.motion.skeleton import LOWER
from rewards.scoring.motion import mpjpe_mm

BASE = "grpo/demo/base_policy"
CONFIG, SUPERVISED = "configs/egolm_synthetic.yaml", "configs/supervised/egolm_synthetic.yaml"
INPUTS = {"with video": "tracking", "without": "tracking_blind"}
"""What the policy is given, by the task whose records give it."""
ARMS = {"with video": ("supervised", "more", "grpo"), "without": ("supervised",)}
"""The supervised stage alone; with as many more samples as GRPO gets; and with GRPO behind it."""
POSITIONS_HZ = 5
"""Two positions for 0.4 seconds: a code step of two tokens, and a patch of two frames at 5 Hz."""
NUM_BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much of each there is."""

    num_train: int = 2048
    num_heldout: int = 192
    num_frames: int = 12
    """The motion of a clip, 1.2 seconds. What a body just did tells most of what it does next: in six seconds two
    tokens of thirty need the clip, and the policy does not learn to look at it."""
    codebook_size: int = 128
    codec_epochs: int = 30
    supervised_steps: int = 220
    supervised_prompts: int = 48
    """Prompts of each of these steps."""
    more_steps: int = 32
    """Steps of GRPO, and of the supervised stage that goes on in its place."""
    prompts_per_step: int = 16
    """Prompts of each of these, in both."""
    group_size: int = 8
    engine: str = "vllm"


SMALL = Sizes(
    num_train=16,
    num_heldout=4,
    codebook_size=16,
    codec_epochs=2,
    supervised_steps=2,
    supervised_prompts=4,
    more_steps=1,
    prompts_per_step=4,
    group_size=2,
)
"""Whether all stages work, and nothing that could be learned."""


def stages(out: Path, sizes: Sizes, seed: int) -> Iterator[Stage]:
    """All commands, in order."""
    command, data = [sys.executable, "-m", "grpo.commands"], out / "data"
    numbers = [
        f"--num-train={sizes.num_train}",
        f"--num-heldout={sizes.num_heldout}",
        f"--num-frames={sizes.num_frames}",
        f"--seed={seed}",
    ]
    yield Stage(name="data", command=[sys.executable, "-m", "grpo.motion.synthetic", f"{data}", *numbers])
    for name in ("sensor", "motion"):
        overrides = [
            f"streams=[{data}/streams/train-*.{name}.npz]",
            f"out={out}/codecs/{name}",
            f"codebook_size={sizes.codebook_size}",
            f"window_steps={sizes.num_frames}",
            f"num_epochs={sizes.codec_epochs}",
            f"seed={seed}",
        ]
        yield Stage(
            name=f"codec {name}",
            command=[*command, "codec", "train", f"configs/codecs/{name}.yaml", *overrides],
        )
    folders = [f"{out}/codecs/{name}" for name in ("sensor", "motion")]
    yield Stage(
        name="pace",
        command=[sys.executable, "-m", "grpo.motion.pace", BASE, f"{out}/policy", f"{POSITIONS_HZ}"],
    )
    yield Stage(name="grow", command=[*command, "codec", "grow", f"{out}/policy", f"{out}/base", *folders])
    for given, task in INPUTS.items():
        for arm in ARMS[given]:
            yield Stage(
                name=f"{task} {arm}", command=[*command, "train", *_training(out, sizes, seed, task, arm)]
            )
        for num_samples in _answers_each(given, sizes):
            overrides = _evaluation(out, sizes, given, num_samples)
            yield Stage(name=f"{task} evaluate {num_samples}", command=[*command, "evaluate", *overrides])


def _answers_each(given: str, sizes: Sizes) -> tuple[int, ...]:
    """How many answers each evaluation takes to a question: a greedy one, and where GRPO is, a group's number."""
    return (1, sizes.group_size) if "grpo" in ARMS[given] else (1,)


def _training(out: Path, sizes: Sizes, seed: int, task: str, arm: str) -> list[str]:
    """The arguments of a training, which starts where the one before it ended."""
    is_first = arm == "supervised"
    steps = sizes.supervised_steps if is_first else sizes.more_steps
    start = out / "base" if is_first else out / task / "supervised" / "final"
    prompts = sizes.supervised_prompts if is_first else sizes.prompts_per_step
    configs = [CONFIG] if arm == "grpo" else [CONFIG, SUPERVISED]
    # What is trained already goes on with a learning rate near the one that it ended with.
    configs += ["optim.lr=3.0e-4", "optim.warmup_steps=3"] if arm == "more" else []
    engine = (
        [f"rollout.engine={sizes.engine}", f"rollout.group_size={sizes.group_size}"] if arm == "grpo" else []
    )
    return [
        "--config_file", "launch/accelerate/single.yaml", *configs, *engine,
        f"seed={seed}", f"run_dir={out / task / arm}", f"model.path={start}", f"num_steps={steps}",
        f"optim.prompts_per_step={prompts}",
        f"data.train=[{{reader: jsonl, path: {out}/data/train.{task}.jsonl}}]",
        f"data.eval=[{{reader: jsonl, path: {out}/data/heldout.{task}.jsonl}}]",
        *[f"rewards.{name}.args.codec={out}/base/codecs/motion" for name in ("mpjpe", "lower", "token_validity")],
    ]  # fmt: skip


def _evaluation(out: Path, sizes: Sizes, given: str, num_samples: int) -> list[str]:
    """The arguments of an evaluation of all arms: a greedy answer, or several sampled ones."""
    task = INPUTS[given]
    return [
        "configs/eval/egolm_synthetic.yaml", f"out_dir={out / task / f'answers_{num_samples}'}",
        f"data.path={out}/data/heldout.{task}.jsonl", "rollout.engine=transformers",
        f"rollout.num_samples={num_samples}", f"rollout.temperature={float(num_samples > 1)}",
        *[f"models.{arm}={out / task / arm / 'final'}" for arm in ARMS[given]],
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The held-out errors of an arm's answers, one of each clip."""

    given: str
    arm: str
    answer: str
    """greedy; mean of so many sampled ones; or best of them, by the whole body's error."""
    full_mm: np.ndarray
    legs_mm: np.ndarray
    """NaN in both for a clip without any answer that is motion of its length."""
    no_motion_frac: float
    """The share of answers that are none."""

    @property
    def means_mm(self) -> tuple[float, float]:
        """The mean errors of the whole body and of the legs."""
        return float(np.nanmean(self.full_mm)), float(np.nanmean(self.legs_mm))


def measured(out: Path, sizes: Sizes) -> Iterator[Measured]:
    """The errors of all arms in all ways of answering."""
    for given in INPUTS:
        for arm in ARMS[given]:
            for num_samples in _answers_each(given, sizes):
                full, legs = _errors(out, given, arm, num_samples)
                # The legs of the best answer are those of the one that is best by its whole body.
                best = np.nanargmin(np.nan_to_num(full, nan=np.inf), axis=1)[:, None]
                chosen = {"greedy": [np.take_along_axis(each, best, axis=1)[:, 0] for each in (full, legs)]}
                if num_samples > 1:
                    means = [np.nanmean(each, axis=1) for each in (full, legs)]
                    chosen = {f"mean of {num_samples}": means, f"best of {num_samples}": chosen["greedy"]}
                for answer, (full_mm, legs_mm) in chosen.items():
                    yield Measured(
                        given=given,
                        arm=arm,
                        answer=answer,
                        full_mm=full_mm,
                        legs_mm=legs_mm,
                        no_motion_frac=float(np.isnan(full).mean()),
                    )


def table(out: Path, sizes: Sizes) -> str:
    """The held-out errors of all arms as Markdown, with intervals over clips."""
    lines = [
        f"| {each.given} | {each.arm} | {each.answer} | {_interval(each.full_mm)} | {_interval(each.legs_mm)} | "
        f"{each.no_motion_frac:.1%} |"
        for each in measured(out, sizes)
    ]
    head = "| input | policy | answer | full body, mm | legs, mm | no motion |\n| --- | --- | --- | --- | --- | --- |"
    return f"{head}\n" + "\n".join(lines) + f"\n\nThe codec alone: {codec_error_mm(out):.1f} mm.\n"


def _records(path: Path) -> dict[str, Mapping[str, str]]:
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["id"]: record["streams"] for record in records}


def _answers(folder: Path, model: str) -> dict[str, list[str]]:
    """A model's answers to each question."""
    found: dict[str, list[str]] = {}
    for part in sorted(folder.glob(f"{model}-*/part-*.jsonl")):
        for answer in map(json.loads, part.read_text(encoding="utf-8").splitlines()):
            found.setdefault(answer["sample_id"], []).append(answer["text"])
    return found


def _errors(out: Path, given: str, arm: str, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The errors of clips' answers (N, G) in millimetres, of the whole body and of the legs.

    NaN for an answer that is no motion of the recording's length.
    """
    codec, data, task = load_codec(out / "base" / "codecs" / "motion"), out / "data", INPUTS[given]
    records = _records(data / f"heldout.{task}.jsonl")
    answers = _answers(out / task / f"answers_{num_samples}" / "answers", arm)
    found = [
        [_error(text, read_stream(data / records[id]["motion"]).values_TC, codec) for text in answers[id]]
        for id in sorted(answers)
    ]
    full_NG, legs_NG = np.moveaxis(np.array(found), -1, 0)
    return full_NG, legs_NG


def _error(text: str, truth_TC: np.ndarray, codec: Codec) -> tuple[float, float]:
    try:
        made_TC = codec.decode(parse_codes(codec.spec, text))
    except ValueError:
        return float("nan"), float("nan")
    if not 0 <= len(made_TC) - len(truth_TC) < codec.spec.downsampling:
        return float("nan"), float("nan")
    bodies = local_positions(made_TC[: len(truth_TC)]), local_positions(truth_TC)
    return mpjpe_mm(*bodies, range(23)), mpjpe_mm(*bodies, LOWER)


def codec_error_mm(out: Path) -> float:
    """The mean error of what the codec makes of the held-out recordings themselves."""
    codec, data = load_codec(out / "base" / "codecs" / "motion"), out / "data"
    records = _records(data / f"heldout.{INPUTS['without']}.jsonl")
    truths = [read_stream(data / streams["motion"]).values_TC for streams in records.values()]
    made = [codec.decode(codec.encode(each))[: len(each)] for each in truths]
    pairs = zip(made, truths, strict=True)
    return float(np.mean([mpjpe_mm(local_positions(a), local_positions(b), range(23)) for a, b in pairs]))


def _interval(errors_N: np.ndarray) -> str:
    """The mean with its 95% interval over clips, by bootstrap."""
    errors_N = errors_N[np.isfinite(errors_N)]
    if not len(errors_N):
        return "-"
    drawn = np.random.default_rng(0).choice(errors_N, (NUM_BOOTSTRAPS, len(errors_N))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{errors_N.mean():.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="The recipe egolm_synthetic, from nothing to its table.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/egolm_synthetic"))
    parser.add_argument("--small", action="store_true", help="try all stages, and learn nothing")
    parser.add_argument("--engine", default="vllm", help="vllm, or transformers where it is not installed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = replace(SMALL if args.small else Sizes(), engine=args.engine)
    try:
        run(args.out, stages(args.out, sizes, args.seed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    text = table(args.out, sizes)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
