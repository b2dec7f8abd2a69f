"""An ablation from one file: every arm with every seed, then a table and a picture.

    egogrpo sweep configs/sweeps/demo.yaml                       in turn, or a run per GPU
    egogrpo sweep configs/sweeps/demo.yaml num_steps=20 seeds=[0,1]  any key of the runs or of the sweep
    egogrpo sweep configs/sweeps/egovlm.yaml --slurm             a job per run, and wait for them
    egogrpo sweep configs/sweeps/demo.yaml --table               only what is there so far
    egogrpo sweep configs/sweeps/demo.yaml --search              Optuna over the file's search space

Typed again, it goes on: finished runs are not run again, a killed one resumes from its checkpoint. What a sweep file
holds: `plan.py`. The results are in the sweep's folder: results.md, .csv, .json, .png; search/search.md.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path

from grpo.commands.arguments import Parser
from grpo.commands.sweeps.execute import Runner, Slot, carry_out, environment_of, run_all, slots_of_machine
from grpo.commands.sweeps.plan import Run, Sweep, load_sweep, plan_runs
from grpo.commands.sweeps.results import check_results, write_results
from grpo.run.folder import RunDir


def main(argv: Sequence[str]) -> int:
    """Do what the command line asks for; the exit status is 1 if a run failed, 2 for a mistake, 130 if stopped."""
    args = parse(argv)
    try:
        sweep = load_sweep(args.file, args.overrides)
        runs = [] if args.search else plan_runs(sweep)
        if not args.search:
            check_results(sweep)
        if args.table:
            write_results(sweep, runs, {})
            return show(Path(sweep.out) / "results.md", {})
        with RunDir(sweep.out).locked():
            runner, slots = make_runner(args, sweep, runs)
            work = search(sweep, runner, slots) if args.search else ablate(sweep, runs, runner, slots)
            return asyncio.run(until_stopped(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; the same command goes on from here", flush=True)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="egogrpo sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="the sweep's YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: what the GPUs hold, 1 on a CPU")
    parser.add_argument(
        "--slurm",
        nargs="?",
        const="slurm",
        choices=["slurm", "local", "debug"],
        help="a SLURM job per run; local: jobs as processes of this machine, to try the setup out",
    )
    parser.add_argument("--search", action="store_true", help="search the file's space with Optuna instead")
    parser.add_argument(
        "--table", action="store_true", help="run nothing, write the results of what is there"
    )
    return parser.parse_intermixed_args(argv)


def make_runner(args: argparse.Namespace, sweep: Sweep, runs: Sequence[Run]) -> tuple[Runner, list[Slot]]:
    """The runner that carries the runs out, and a slot for each that it has at a time."""
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs: must be above 0, not {args.jobs}")
    if args.slurm:
        from grpo.commands.sweeps.slurm import ClusterRunner

        # A search learns from the trials before.
        jobs = args.jobs or (1 if args.search else len(runs))
        return ClusterRunner(args.slurm, Path(sweep.out) / "slurm", sweep.launch, sweep.slurm), [None] * jobs
    slots = slots_of_machine(args.jobs, sweep.launch.num_processes)
    return lambda run, slot: carry_out(run, sweep.launch, environment_of(slot)), slots


async def until_stopped(work: Coroutine[None, None, int]) -> int:
    """The result of the work, which SIGTERM cancels as Ctrl-C does."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


async def ablate(sweep: Sweep, runs: Sequence[Run], runner: Runner, slots: Sequence[Slot]) -> int:
    """Carry the runs out; the files of the results are up to date after each of them."""
    arms_and_seeds = f"{len(sweep.arms)} arms x {len(sweep.seeds)} seeds"
    say(f"{sweep.name}: {arms_and_seeds}, {len(slots)} at a time, in {sweep.out}")
    failures = await run_all(
        runs, runner, slots, say=say, after_each=lambda failed: write_results(sweep, runs, failed)
    )
    # Also where there was nothing left to run.
    write_results(sweep, runs, failures)
    return show(Path(sweep.out) / "results.md", failures)


async def search(sweep: Sweep, runner: Runner, slots: Sequence[Slot]) -> int:
    """Try weights out; search.md is up to date after each trial."""
    from grpo.commands.sweeps.search import run_search

    failures = await run_search(sweep, runner, slots, say=say)
    return show(Path(sweep.out) / "search" / "search.md", failures)


def show(report: Path, failures: dict[str, str]) -> int:
    print(report.read_text(encoding="utf-8"))
    for label, reason in failures.items():
        print(f"FAILED {label}: {reason}", file=sys.stderr)
    print(f"{report.parent}/: {report.name} and what is beside it", flush=True)
    return 1 if failures else 0


def say(text: str) -> None:
    print(text, flush=True)
