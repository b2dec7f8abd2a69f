"""The report of a replay as one HTML file: no script, nothing from the network, nothing unescaped.

Completions hold markup and scripts, some of them because a policy found out that it pays. All text passes through
`esc`, and the page's policy forbids what would pass it nevertheless.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo.commands.replay.text import (
    EXAMPLES,
    REWARD_HEAD,
    WHERE_HEAD,
    facts,
    headline,
    number,
    percent,
    reward_rows,
    sentences,
    spelt,
    where_rows,
)

MAX_CHARACTERS = 4000
"""Of a completion on the page."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --now: #3b7dd8; --run: #e08a2b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; margin: .3rem 0 1rem;
      max-height: 20rem; overflow-y: auto; unicode-bidi: plaintext; }
figure { display: inline-block; margin: 0 1.2rem 1rem 0; } figcaption { font-weight: 600; overflow-wrap: anywhere; }
.now { fill: var(--now); } .run { fill: none; stroke: var(--run); stroke-width: 1.5; } text { font-size: 10px; }
svg text { fill: currentColor; } .key b:nth-child(1) { color: var(--now); } .key b:nth-child(2) { color: var(--run); }
.failed { border-left: 4px solid #d33; padding-left: .8rem; } summary { cursor: pointer; }
"""


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    title = esc(f"Replay of {report['run_dir']}")
    body = [
        f"<h1>{title}</h1>",
        f"<p>{esc(headline(report))}</p>",
        _failures(report),
        _table(REWARD_HEAD, reward_rows(report)),
        "".join(f"<p>{esc(sentence)}</p>" for sentence in sentences(report)),
        "<h2>Distributions</h2>",
        '<p class="key">Filled <b>blue</b>: here; <b>orange</b> line: in the run. Shares of completions.</p>',
        *(_histogram(reward["name"], reward["histogram"]) for reward in report["rewards"]),
        _histogram("(total)", report["totals"]["histogram"]),
        "<h2>Correlation</h2><p>Inside groups, which is what the update sees:</p>",
        _correlations(report, "within"),
        "<p>Over all completions:</p>",
        _correlations(report, "overall"),
        "<h2>Where the advantage goes</h2>",
        "<p>A kind whose share of what is raised exceeds its share of completions is what the policy is pushed to.</p>",
        _table(WHERE_HEAD, where_rows(report)),
        "<h2>Texts that came more than once, by their share of all that is raised</h2>",
        *(
            map(_repeated, report["examples"]["repeated"])
            if report["examples"]["repeated"]
            else ["<p>None.</p>"]
        ),
        *(_examples(title, report["examples"].get(kind, ())) for kind, title in EXAMPLES.items()),
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def esc(text: str) -> str:
    """Text as HTML; control characters, half surrogates and marks that turn the writing are spelt out."""
    return html.escape("".join(each if each in "\n\t" else spelt(each) for each in text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f"<th>{esc(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{esc(text)}</td>" for text in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _failures(report: Mapping[str, Any]) -> str:
    return "".join(
        f'<div class="failed"><p><b>{esc(name)} failed on {failures["count"]} completions</b>, which have no total. '
        "First reasons:</p><ul>"
        + "".join(
            f"<li>{esc(reason[:1000])} <small>({esc(where)})</small></li>"
            for reason, where in failures["reasons"].items()
        )
        + "</ul></div>"
        for name, failures in report["failures"].items()
    )


def _histogram(name: str, histogram: Mapping[str, Any]) -> str:
    """Bars for the replayed values and an outline for the run's."""
    width, height = 240, 90
    shares = histogram["shares"]
    highest = max((share for several in shares.values() for share in several), default=0.0) or 1.0
    bars = []
    for kind, css in (("replay", "now"), ("run", "run")):
        several = shares.get(kind, [])
        step = width / max(len(several), 1)
        bars += [
            f'<rect class="{css}" x="{index * step + 1:.1f}" y="{height * (1 - share / highest):.1f}" '
            f'width="{step - 2:.1f}" height="{height * share / highest:.1f}"><title>{percent(share)}</title></rect>'
            for index, share in enumerate(several)
            if share
        ]
    return (
        f'<figure><figcaption>{esc(name)}</figcaption><svg width="{width}" height="{height + 16}" role="img">'
        + "".join(bars)
        + f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="currentColor"/>'
        + f'<text x="0" y="{height + 13}">{number(histogram["low"])}</text>'
        + f'<text x="{width}" y="{height + 13}" text-anchor="end">{number(histogram["high"])}</text></svg></figure>'
    )


def _correlations(report: Mapping[str, Any], kind: str) -> str:
    """A table whose cells are coloured by how strong the correlation is, blue for positive ones."""
    names = report["correlations"]["names"]
    rows = []
    for name, row in zip(names, report["correlations"][kind], strict=True):
        cells = "".join(f'<td style="background: {_colour(value)}">{number(value)}</td>' for value in row)
        rows.append(f"<tr><td>{esc(name)}</td>{cells}</tr>\n")
    header = "".join(f"<th>{esc(name)}</th>" for name in ("", *names))
    return f'<div class="scroll"><table><tr>{header}</tr>\n{"".join(rows)}</table></div>'


def _colour(value: float | None) -> str:
    if value is None:
        return "none"
    return f"rgb({'59 125 216' if value > 0 else '224 138 43'} / {min(abs(value), 1.0) * 0.6:.2f})"


def _repeated(example: Mapping[str, Any]) -> str:
    heading = (
        f"{percent(example['share'])} of what is raised, {example['times']} times "
        f"({percent(example['share_of_completions'])}) in {example['groups']} groups, right in "
        f"{percent(example['right_frac'])}"
    )
    return f"<details><summary>{esc(heading)}</summary>{_text(example['completion'])}</details>"


def _examples(title: str, examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return ""
    return f"<h2>{esc(title)}</h2>" + "".join(
        f"<details><summary>{esc(facts(each))}</summary>{_question(each)}{_text(each['completion'])}</details>"
        for each in examples
    )


def _question(example: Mapping[str, Any]) -> str:
    options = "".join(f"<li>{esc(option)}</li>" for option in example["options"])
    listed = f'<ol type="A">{options}</ol>' if options else ""
    return f"<p>{esc(example['question'])} <b>{esc(example['answer'])}</b></p>{listed}"


def _text(text: str) -> str:
    cut = "" if len(text) <= MAX_CHARACTERS else f"<p>cut, of {len(text)} characters</p>"
    return f"<pre>{esc(text[:MAX_CHARACTERS])}</pre>{cut}"
