"""Checks a run before it is started: `egogrpo doctor CONFIG.yaml ... key=value ... [--json]`.

Takes what the run will be started with and needs no GPU. It goes on where the run would stop: every bad record is
named with file and line, every clip's file is opened (--clips: some of them), and tokens, memory, caches and decoding
are worked out; with --tokens-per-s also how long the run takes. Exit status 1 if the run would not start, or would
lose samples on its way.

With --compare it says what differs between two runs that were made. Exit status 1 if anything does but times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from grpo.commands.arguments import Parser
from grpo.commands.doctor import compare
from grpo.commands.doctor import plan as planned
from grpo.commands.doctor.records import Plans, examine, oddities, read_set, shared_ids
from grpo.commands.doctor.report import as_text
from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.data.errors import DataError
from grpo.learner.launching import make_accelerator, quiet_libraries
from grpo.media.places import Kind, kind_of
from grpo.run.folder import RunDir
from grpo.run.progress import under_way
from grpo.startup.assembly import make_planner, wording
from grpo.startup.checks import CHECKS, GOES_ON, Data, Start, describe


def main(argv: Sequence[str] | None = None) -> int:
    """Examine what the command line names; the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    quiet_libraries()
    if options.gpu:
        from grpo.commands.doctor import gpu

        return gpu.main()
    if options.compare:
        return compare_runs(*options.compare, as_json=options.json)
    if not options.configs:
        parser.error("name a config, or --gpu or --compare for what needs none")
    try:
        config = load_config(options.configs)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        print(json.dumps({"would_run": False, "error": reason}) if options.json else f"error: {reason}")
        return 1
    report = examine_run(
        config,
        num_clips=options.clips,
        num_decoded=options.decode,
        speeds=options.tokens_per_s,
        num_processes=options.processes,
    )
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0 if report["would_run"] else 1


def compare_runs(a: Path, b: Path, *, as_json: bool) -> int:
    """Print what differs between two runs; the exit status."""
    try:
        found = compare.compare(a, b)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 2
    # A date in a config, for one, has no form in JSON.
    print(json.dumps(found, indent=2, default=str) if as_json else compare.as_text(found))
    return 1 if compare.differs(found) else 0


def examine_run(
    config: Config,
    *,
    num_clips: int | None = None,
    num_decoded: int = 8,
    speeds: tuple[float, float] | None = None,
    num_processes: int = 8,
) -> dict[str, Any]:
    """What a run with this config would meet, as plain data for `as_text` and JSON.

    speeds: tokens per second in sampling and in the update, for an estimate of time.
    """
    with under_way("reading the data"):
        train = {f"data.train.{i}": read_set(dataset) for i, dataset in enumerate(config.data.train)}
        held_out = {f"data.eval.{i}": read_set(dataset) for i, dataset in enumerate(config.data.eval)}
    read = train | held_out
    labels = [dataset.label for dataset in config.data.eval]
    data = Data(
        train_sets=[samples for samples, _ in train.values()],
        held_out=dict(zip(labels, (samples for samples, _ in held_out.values()), strict=True)),
    )
    problems = [problem for _, bad in read.values() for problem in bad]
    notes: list[str] = []
    with ExitStack() as opened:
        start = Start(
            config=config,
            run_dir=RunDir(config.run_dir),
            accelerator=make_accelerator(),
            opened=opened,
            read=lambda _: data,
            say=notes.append,
            meant_for=num_processes,
        )
        failed = failures(start)
        everything = [sample for samples, _ in read.values() for sample in samples]
        has_family = "model.path" not in failed or "family" in vars(start)
        planner = make_planner(config, start.family) if has_family else None
        num_workers = len(os.sched_getaffinity(0))
        found, plans = examine(everything, planner, num_clips=num_clips, num_workers=num_workers)
        report: dict[str, Any] = {
            "sets": {key: describe(samples) for key, (samples, _) in read.items()},
            "num_clips": len({source for sample in everything for source in sample.sources}),
        }
        problems += shared_ids(data.train_sets)
        problems += [DataError(key, reason, "config") for key, reason in failed.items()]
        problems += noted(notes)
        problems += found
        problems += oddities(start.train, [*data.held_out.values()])
        if plans and "model.lora" not in failed:
            problems += _planned(start, plans, report, num_decoded, speeds, num_processes)
    report["findings"] = [
        {"kind": each.kind, "source": each.source, "reason": each.reason, "is_fatal": each.is_fatal}
        for each in problems
    ]
    report["would_run"] = not any(problem.is_fatal for problem in problems)
    return report


def _planned(
    start: Start,
    plans: Plans,
    report: dict[str, Any],
    num_decoded: int,
    speeds: tuple[float, float] | None,
    num_processes: int,
) -> list[DataError]:
    """Add to the report what the run takes; returns the clips that turned out damaged."""
    config, damaged = start.config, []
    eval_sizes = [len(samples) for samples in start.data.held_out.values()]
    report |= planned.tokens_and_caches(
        config,
        start.outline,
        plans,
        num_clips=report["num_clips"],
        eval_sizes=eval_sizes,
        num_processes=num_processes,
    )
    first = plans[0][0]
    kinds: list[Kind] = [kind_of(source) for source in first.sources]
    report["prompt"] = start.family.prompt_text(first, kinds, **wording(config))
    decode_step_s = 0.0
    if report["num_opened"] and num_decoded:
        with under_way("decoding clips"):
            damaged, report["decoding"] = planned.decoding(config, start.family, plans, num_decoded)
        decode_step_s = report["decoding"]["step_s"]
    if speeds:
        num_asked = sum(planned.num_asked(config, eval_sizes))
        report["time"] = planned.duration(config, report["tokens"], decode_step_s, speeds, num_asked)
    return damaged


def failures(start: Start) -> dict[str, str]:
    """Why a run would stop at its start, by the key of the check that fails; records are examined elsewhere."""
    reasons: dict[str, str] = {}
    said: set[str] = set()
    for check in (GOES_ON, *CHECKS):
        if check.of_records or check.key in reasons:
            continue
        try:
            with under_way(f"checking {check.key}"):
                check.run(start)
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            # What needs a model says once more that there is none.
            if reason not in said:
                said.add(reason)
                reasons[check.key] = reason.removeprefix("config: ").removeprefix(f"{check.key}: ")
    return reasons


def noted(notes: Iterable[str]) -> Iterator[DataError]:
    """What a run says of its rewards at its start; what it says of data is found record by record."""
    for note in notes:
        if match := re.fullmatch(r"note: (rewards\.\w+):? (.*)", note):
            yield DataError(match[1], match[2], "config", is_fatal=False)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="egogrpo doctor", description=__doc__)
    parser.add_argument("configs", nargs="*", default=[], metavar="CONFIG | key=value")
    parser.add_argument("--gpu", action="store_true", help="check this machine, and no run: takes no CONFIG")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="RUN_DIR", help="say what differs between two runs"
    )
    parser.add_argument("--clips", type=int, metavar="N", help="open only N clips' files, spread evenly")
    parser.add_argument("--decode", type=int, metavar="N", default=8, help="clips to measure decoding with")
    parser.add_argument(
        "--tokens-per-s",
        type=_speeds,
        metavar="SAMPLED,UPDATED",
        help="estimate the run's time from these speeds of all GPUs: in sampling, and through the update",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        default=8,
        help="GPUs that memory is worked out for; 8 by default",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _speeds(text: str) -> tuple[float, float]:
    sampled, updated = map(float, text.split(","))
    if not (sampled > 0 and updated > 0):
        raise ValueError(text)
    return sampled, updated
