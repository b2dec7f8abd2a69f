"""The examination of a run that is not started: the checks of its start, its records and its clips, as plain data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from grpo.commands.doctor import plan as planned
from grpo.commands.doctor.records import Plans, examine, oddities, read_set, shared_ids
from grpo.config.schema import Config
from grpo.data.errors import DataError
from grpo.data.summary import describe
from grpo.learner.launching import make_accelerator
from grpo.media.places import Kind, kind_of
from grpo.run.folder import RunDir
from grpo.run.progress import under_way
from grpo.startup.assembly import make_planner, wording
from grpo.startup.checks import CHECKS, GOES_ON, Data, Start


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
