"""Write the golden trace anew: `python -m tests.golden.write [--draw]`.

A commit that does so says why the figures are other ones now. The rollouts stay those that are stored;
`--draw` draws them anew, too, which is needed only where the batch or the demo's settings in `cases.py` change.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.golden import cases, files, product


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="draw the stored rollouts anew, too")
    if parser.parse_args(argv).draw:
        files.write("batch", product.batch_to_draw())
        with tempfile.TemporaryDirectory() as folder:
            files.write("demo_rollouts", product.demo(Path(folder), None)[1])
    batch = files.read("batch")
    files.write_updates(product.updates(batch, cases.UPDATES))
    files.write("rows", product.rows(batch))
    files.write("rewards", product.reward_table())
    with tempfile.TemporaryDirectory() as folder:
        files.write("demo", product.demo(Path(folder), files.read("demo_rollouts"))[0])


if __name__ == "__main__":
    main()
