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
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.commands.arguments import Parser
from grpo.commands.doctor import compare
from grpo.commands.doctor.report import as_text
from grpo.config.load import load_config
from grpo.run.progress import under_way


def main(argv: Sequence[str] | None = None) -> int:
    """Examine what the command line names; the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    if options.gpu:
        with under_way("importing torch and transformers"):
            from grpo.commands.doctor import gpu
            from grpo.learner.launching import quiet_libraries

        quiet_libraries()
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
    # Late, since torch and transformers take seconds: a wrong key is reported before them.
    with under_way("importing torch and transformers"):
        from grpo.commands.doctor.examination import examine_run
        from grpo.learner.launching import quiet_libraries

    quiet_libraries()
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
