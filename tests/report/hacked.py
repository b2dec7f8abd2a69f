"""A run in which one reward is hacked, as its page and as pictures of it: for eyes that were told nothing about it.

    python -m tests.report.hacked FOLDER

Writes the run, `FOLDER/page/index.html`, and screenshots in `FOLDER/pictures/`: the page as it opens, a question early
and one late in the run, the last steps, and what was wrong but rewarded. To be asked of who looks: which reward is
hacked, which completions do it, and from which step on. `tests/support/hacked_run.py` has the answers, and is not to be
read before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.report.build import build
from tests.support.browser import chromium, new_page
from tests.support.hacked_run import NUM_STEPS, write_hacked_run

VIEWS = {
    "1_as_it_opens": "",
    "2_an_early_question": "tab=rollouts&group=0.rollouts.5.0",
    "3_a_late_question": f"tab=rollouts&group=0.rollouts.{NUM_STEPS}.0",
    "4_the_last_steps": f"tab=rollouts&steps={NUM_STEPS - 4}-{NUM_STEPS}",
    "5_wrong_but_rewarded": "tab=rollouts&show=wrong",
}
"""The pictures' names, and the address of what they show."""


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0])
    run = write_hacked_run(folder / "run")
    page, failed = build(folder / "page", [run])
    assert not failed
    pictures = folder / "pictures"
    pictures.mkdir()
    with chromium() as browser, new_page(browser) as opened:
        for name, address in VIEWS.items():
            opened.goto("about:blank")
            opened.goto(f"{page.as_uri()}#{address}")
            opened.wait_for_selector("html[data-ready=yes]")
            opened.wait_for_timeout(500)
            opened.screenshot(path=pictures / f"{name}.png", full_page=True)
    print(f"written: {page} and {pictures}/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
