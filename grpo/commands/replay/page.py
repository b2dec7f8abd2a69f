"""The report of a replay as one HTML file: no script, nothing from the network, nothing unescaped.

Completions hold markup and scripts, some of them because a policy found out that it pays. Whatever a template prints
is escaped, and the page's policy forbids what would pass that nevertheless.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo.commands.replay.sections import number, percent, sections, spelt

MAX_CHARACTERS = 4000
"""The length up to which the page shows a completion."""


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    histograms = {reward["name"]: reward["histogram"] for reward in report["rewards"]}
    return TEMPLATES.get_template("page.html").render(
        sections=list(sections(report)),
        histograms=histograms | {"(total)": report["totals"]["histogram"]},
        max_characters=MAX_CHARACTERS,
    )


def visible(value: Any) -> Any:
    """A value as templates print it, before it is escaped: control characters spelt out in what is no markup yet."""
    return spelt(value, keep="\n\t") if type(value) is str else value


def colour(correlation: float) -> str:
    """Blue for a positive one, orange for a negative one, the fuller the stronger."""
    return (
        f"rgb({'59 125 216' if correlation > 0 else '224 138 43'} / {min(abs(correlation), 1.0) * 0.6:.2f})"
    )


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"number": number, "percent": percent, "colour": colour}
