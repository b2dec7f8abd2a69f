"""Show runs as a web page: `egogrpo report RUN_DIR...`, while they go on or later.

Leaves a folder that a browser opens without a server: curves, and every completion with its frames, its rewards and
its tokens. With --serve the page is shown on this machine and grows with the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.commands.arguments import Parser
from grpo.report.build import Report, build
from grpo.report.serve import ReportServer, serve
from grpo.report.text import text_of


def main(argv: Sequence[str]) -> int:
    """Write or serve the report of the runs that the command line names; returns the exit status."""
    options = parser().parse_args(argv)
    out = options.out or options.run_dirs[0] / "report"
    try:
        if options.text:
            print("\n".join(map(text_of, options.run_dirs)), end="")
            return 0
        if options.serve:
            server = ReportServer(Report(out, options.run_dirs), options.port)
            print(f"serving: {server.url}", flush=True)
            serve(server)
        page, failed = build(out, options.run_dirs, with_clips=options.clips)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    for reason in sorted({*failed.values()})[:3]:
        print(f"no film strip: {reason}", file=sys.stderr)
    if len(failed) > 3:
        print(f"{len(failed)} clips have no film strip", file=sys.stderr)
    print(f"written: {page}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="egogrpo report", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="runs' folders")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: `report` in the first run's folder"
    )
    parser.add_argument("--no-clips", dest="clips", action="store_false", help="no film strips")
    parser.add_argument(
        "--serve", action="store_true", help="show the page on this machine and follow the runs"
    )
    parser.add_argument(
        "--text", action="store_true", help="print where the runs stand, with warnings, and write nothing"
    )
    parser.add_argument("--port", type=int, default=0, help="of --serve; default: any free one")
    return parser
