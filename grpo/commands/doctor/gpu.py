"""What is typed first on a new machine: `egogrpo doctor --gpu`, drivers to three steps of the demo, in one table.

Without a GPU it says what it left out, and runs what can be run there. `python -m tests.gpu` goes on from here: how
exact and how fast the attention kernels of a 3B model are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from grpo.commands.doctor.memory import GIB, LAUNCHES, peak_gib, sizes_of
from grpo.config.load import load_config
from grpo.policy.attention_backends import why_no_flash_attn
from grpo.policy.families import load_family
from grpo.run.folder import RunDir
from grpo.run.manifest import PACKAGES
from grpo.run.progress import under_way
from grpo.startup.assembly import build_outline

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
NUM_STEPS = 3
LIMIT_S = 600
"""The time after which a check that runs in other processes has failed."""

Status = Literal["ok", "left out", "FAILED"]


class Row(NamedTuple):
    """A line of the table."""

    what: str
    status: Status
    found: str
    seconds: float = 0.0


def main() -> int:
    """Print the table and the verdict; return the exit status, 1 if something failed."""
    rows = []
    for what, check in CHECKS.items():
        with under_way(what):
            rows.append(checked(what, check))
    print(as_table(rows))
    return 1 if any(row.status == "FAILED" for row in rows) else 0


def checked(what: str, check: Callable[[], tuple[Status, str]]) -> Row:
    """Return a check's line with the time that it took; what it raises is its finding."""
    begun_s = perf_counter()
    try:
        status, found = check()
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Row(what, "FAILED", lines[-1], perf_counter() - begun_s)
    return Row(what, status, found, perf_counter() - begun_s)


def as_table(rows: list[Row]) -> str:
    """Return the lines of the table, and the verdict."""
    width = max(len(row.what) for row in rows)
    lines = [f"{row.what:{width}}  {row.status:8}  {row.seconds:5.1f} s  {row.found}" for row in rows]
    failed = [row.what for row in rows if row.status == "FAILED"]
    left_out = [row.what for row in rows if row.status == "left out"]
    if failed:
        verdict = f"NOT ready: {', '.join(failed)}"
    elif torch.cuda.is_available():
        verdict = "ready for training on this GPU"
    else:
        verdict = "no GPU here: what runs without one is in order"
    return "\n".join([*lines, verdict + (f" (left out: {', '.join(left_out)})" if left_out else "")])


def gpus() -> tuple[Status, str]:
    """Return the driver and the GPUs."""
    if not torch.cuda.is_available():
        asked = shutil.which("nvidia-smi")
        why = (
            f"torch {torch.__version__} is not built for CUDA"
            if torch.version.cuda is None
            else "none is seen"
        )
        # A driver is there, and torch does not see what it sees.
        return ("FAILED", f"nvidia-smi is there, but {why}") if asked else ("left out", why)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = output_of(asked, limit_s=30).split()[0] if shutil.which("nvidia-smi") else "unknown"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "ok", f"{len(names)} x {names[0]}, driver {driver}, CUDA {torch.version.cuda}"


def memory() -> tuple[Status, str]:
    """Return the free memory of each GPU, of which others may have some, and what the demo is expected to take."""
    if not torch.cuda.is_available():
        return "left out", "there is no GPU"
    pairs = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    said = ", ".join(f"{free / GIB:.0f} of {total / GIB:.0f}" for free, total in pairs)
    expected = [expected_gib(total / GIB) for _, total in pairs]
    is_short = any(free / GIB < needed for (free, _), needed in zip(pairs, expected, strict=True))
    is_taken = any(free < 0.9 * total for free, total in pairs)
    hint = "; somebody else is on them" if is_taken else "; egogrpo doctor CONFIG says what another run needs"
    found = f"GiB free: {said}; the demo is expected to take {max(expected):.1f}{hint}"
    return "FAILED" if is_short or is_taken else "ok", found


def expected_gib(gpu_gib: float) -> float:
    """Return the most GiB of a GPU that the demo takes by the doctor's arithmetic, with vLLM if it is installed."""
    config = load_config([str(DEMO)])
    if find_spec("vllm") is None:
        config = replace(config, rollout=replace(config.rollout, engine="transformers"))
    outline = build_outline(config, load_family(str(ROOT / config.model.path)))
    # Its clips have as many tokens as a row.
    row = {"row_tokens": config.optim.tokens_per_row, "row_vision_tokens": config.optim.tokens_per_row}
    sizes = sizes_of(config, outline, **row)
    return peak_gib(config, outline, sizes, LAUNCHES["single"], processes=1, gpu_gib=gpu_gib)


def versions() -> tuple[Status, str]:
    """Return the versions of the packages that a run depends on."""
    return "ok", ", ".join(f"{name} {found}" for name, found in _versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def packages() -> tuple[Status, str]:
    """Return which optional packages can be imported.

    One that is installed and can't is a failure, and on a GPU also that vLLM is not there, with which runs sample.
    """
    said, failed = [], False
    for name in ("vllm", "deepspeed", "bitsandbytes"):
        if find_spec(name) is None:
            is_needed = name == "vllm" and torch.cuda.is_available()
            said.append(f"{name} is not installed" + (" (launch/install.sh)" if is_needed else ""))
            failed |= is_needed
            continue
        try:
            import_module(name)
            said.append(f"{name} loads")
        except (ImportError, OSError, RuntimeError) as error:
            said.append(f"{name} does not load ({str(error).splitlines()[0]})")
            failed = True
    return "FAILED" if failed else "ok", ", ".join(said)


def flash_attention() -> tuple[Status, str]:
    """Return whether flash-attn loads, and that it computes."""
    if (reason := why_no_flash_attn()) is not None:
        return (
            "left out" if "not installed" in reason else "FAILED"
        ), f"{reason}; PyTorch's kernels are used"
    if not torch.cuda.is_available():
        return "left out", "it loads, and computes on a GPU only"
    function = import_module("flash_attn").flash_attn_func
    states = [torch.randn(1, 64, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    found = function(*states, causal=True)
    query, key, value = (each.transpose(1, 2) for each in states)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    off = float((found - expected).abs().max())
    return "ok" if off < 0.05 else "FAILED", f"it loads and computes; {off:.2g} off PyTorch's"


def exchange() -> tuple[Status, str]:
    """Return whether the processes of this machine reach each other: one for each GPU, else two."""
    count = torch.cuda.device_count() or 2
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    said = output_of([*launcher, "-m", "grpo.commands.doctor.exchange"], limit_s=LIMIT_S)
    return "ok", said.strip().splitlines()[-1]


def demo() -> tuple[Status, str]:
    """Return how three steps of the demo went: whether the engine samples from the weights after each of them."""
    engine = "vllm" if find_spec("vllm") is not None else "transformers"
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"num_steps={NUM_STEPS}",
            f"run_dir={folder}/run",
            f"rollout.engine={engine}",
            "eval.every_steps=0",
        ]
        output_of(
            [sys.executable, "grpo/train.py", str(DEMO), *settings, "checkpoint.every_steps=0"],
            limit_s=LIMIT_S,
        )
        rows = [row for row in RunDir(f"{folder}/run").metrics() if row["step"]]
    # The steps after the first sample from weights that were trained: a sync that did nothing would show here.
    gap = max(row["sampler/gap_mean"] for row in rows[1:])
    moved = all("optim/grad_norm" in row for row in rows)
    said = f"{len(rows)} steps with {engine}, at most {gap:.2g} between its log-probs and the learner's after a sync"
    return "ok" if len(rows) == NUM_STEPS and moved else "FAILED", said


def output_of(command: list[str], *, limit_s: float) -> str:
    """Return what a command prints, run from the repository; RuntimeError with its last line if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}")
    return done.stdout


CHECKS: dict[str, Callable[[], tuple[Status, str]]] = {
    "GPUs": gpus,
    "memory": memory,
    "versions": versions,
    "packages": packages,
    "flash-attn": flash_attention,
    "processes": exchange,
    "demo": demo,
}
"""The checks in the order in which one's failure explains those below it."""
