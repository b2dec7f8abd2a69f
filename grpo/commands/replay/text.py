"""The report of a replay as Markdown, which is also what the terminal shows."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CHARACTERS = 160
"""What is shown of a completion here; the page shows more."""

EXAMPLES = {
    "gain_most": "What gains most: the largest advantages",
    "wrong_but_raised": "Wrong answers that are raised",
    "risen_most": "What the run would have raised more under this reward set",
}
NO_SIGNAL = "Groups without signal (all totals equal): {run} in the run, {replay} here ({lost} lose it, {won} gain it)."
RANKING = (
    "Order inside the {groups_compared} groups with signal in both: Kendall's tau {kendall_tau}; another best "
    "completion in {best_changed_frac}."
)
ADVANTAGES = (
    "Advantages: correlation with the run's {advantage_correlation}, mean change {mean_abs_change}; {turned_up_frac} "
    "of the completions are raised and were not, {turned_down_frac} are lowered and were not."
)


def markdown(report: Mapping[str, Any], *, num_examples: int) -> str:
    """The report with some examples of each kind."""
    parts = [
        f"# Replay of {cell(report['run_dir'])}",
        cell(headline(report)),
        table(REWARD_HEAD, reward_rows(report)),
        "\n".join(failure_lines(report)),
        "\n\n".join(sentences(report)),
        "## Correlation inside groups\n\n" + correlation_table(report, "within"),
        "## Correlation over all completions\n\n" + correlation_table(report, "overall"),
        "## Where the advantage goes\n\n" + table(WHERE_HEAD, where_rows(report)),
        "## Texts that came more than once, by their share of all that is raised\n\n"
        + ("\n".join(repeated_lines(report["examples"]["repeated"][:num_examples])) or "None."),
        *(
            f"## {title}\n\n" + "\n".join(example_lines(report["examples"][kind][:num_examples]))
            for kind, title in EXAMPLES.items()
            if report["examples"].get(kind)
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def headline(report: Mapping[str, Any]) -> str:
    first, last = report["steps"]
    rewards = " ".join(report["configs"]) or "the run's own"
    return (
        f"{report['num_rollouts']} completions in {report['num_groups']} groups of {report['num_steps']} steps "
        f"({first} to {last}); rewards: {shown(rewards, 1000)}"
    )


REWARD_HEAD = (
    "reward",
    "weight",
    "mean",
    "in the run",
    "std",
    "p10",
    "median",
    "p90",
    "adds",
    "flat",
    "none",
    "failed",
)


def reward_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each reward, and one for the total."""
    rows = []
    for reward in report["rewards"]:
        values, run = reward["values"], reward["run_values"] or {}
        weights = [number(weight) for weight in reward["weight"]]
        spread = [number(values[key]) for key in ("std", "p10", "median", "p90")]
        shares = [percent(reward[key]) for key in ("flat_frac", "abstained_frac", "failed_frac")]
        rows.append(
            (
                reward["name"],
                weights[0] if len({*weights}) == 1 else " to ".join(weights),
                number(values["mean"]),
                number(run.get("mean")),
                *spread,
                number(reward["adds"]),
                *shares,
            )
        )
    totals, run = report["totals"]["replay"], report["totals"]["run"]
    spread = [number(totals[key]) for key in ("std", "p10", "median", "p90")]
    flat = percent(report["no_signal"]["replay"])
    rows.append(("(total)", "", number(totals["mean"]), number(run["mean"]), *spread, "", flat, "", ""))
    return rows


def failure_lines(report: Mapping[str, Any]) -> list[str]:
    """Which rewards failed, how often, and why."""
    return [
        f"- **{cell(name)} failed on {failures['count']} completions**, which have no total: "
        f"{cell(shown(reason, 300))} ({cell(where)})"
        for name, failures in report["failures"].items()
        for reason, where in failures["reasons"].items()
    ]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What changes for learning, against the run's own totals."""
    signal = {name: percent(frac) for name, frac in report["no_signal"].items()}
    ranking = {
        name: value if isinstance(value, int) else percent(value) if name.endswith("_frac") else number(value)
        for name, value in report["ranking"].items()
    }
    return [text.format(**signal, **ranking) for text in (NO_SIGNAL, RANKING, ADVANTAGES)]


def correlation_table(report: Mapping[str, Any], kind: str) -> str:
    names = report["correlations"]["names"]
    rows = [
        (name, *(number(value) for value in row))
        for name, row in zip(names, report["correlations"][kind], strict=True)
    ]
    return table(("", *names), rows)


WHERE_HEAD = (
    "completions",
    "",
    "number",
    "share",
    "of what the run raised",
    "of what is raised",
    "mean advantage",
)


def where_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            row["feature"],
            row["bucket"],
            str(row["num"]),
            *(percent(row[key]) for key in ("share_of_completions", "run_share", "replay_share")),
            number(row["mean_advantage"]),
        )
        for row in report["where"]
    ]


def repeated_lines(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        line
        for each in examples
        for line in (
            f"- {percent(each['share'])} of what is raised, {each['times']} times "
            f"({percent(each['share_of_completions'])}) in {each['groups']} groups, right in "
            f"{percent(each['right_frac'])}:",
            "",
            f"      {shown(each['completion'], CHARACTERS)}",
            "",
        )
    ]


def example_lines(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line for each in examples for line in (f"- {facts(each)}:", "", *_quoted(each), "")]


def facts(example: Mapping[str, Any]) -> str:
    """A completion's figures in one line."""
    parts = ", ".join(f"{cell(name)} {number(value)}" for name, value in example["rewards"].items())
    right = {None: "", 0.0: ", wrong", 1.0: ", right"}[example["right"]]
    return (
        f"{percent(example['share_of_step'])} of step {example['step']}, advantage {number(example['advantage'])} (in "
        f"the run {number(example['run_advantage'])}), {parts}{right}, {number(example['tokens'])} tokens, "
        f"{number(example['moments'])} moments, {cell(shown(example['sample_id'], 60))}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are lined up for the terminal too."""
    lines = [[cell(text) for text in row] for row in (head, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([padded[0], "| " + " | ".join("-" * width for width in widths) + " |", *padded[1:]])


def cell(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    for mark in "\\`*<[|":
        text = text.replace(mark, "\\" + mark)
    return shown(text, 1000)


def shown(text: str, characters: int) -> str:
    """Text in one line, cut, with what can't be printed or would turn the line around spelt out."""
    cut = " ".join(text[: 4 * characters].split())[:characters]
    safe = "".join(spelt(character) for character in cut)
    return safe if len(cut) == len(" ".join(text.split())) else f"{safe} ... ({len(text)} characters)"


def spelt(character: str) -> str:
    """A character, or its code if it is a control, a half surrogate, or changes the direction of writing."""
    is_unsafe = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(
        character
    ) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return f"\\u{ord(character):04x}" if is_unsafe else character


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def percent(frac: float | None) -> str:
    return "-" if frac is None else f"{100 * frac:.3g} %"


def _quoted(example: Mapping[str, Any]) -> list[str]:
    """Question and completion as indented blocks, in which nothing is markup."""
    question = f"{example['question']} ({example['answer']})"
    return [f"      Q: {shown(question, CHARACTERS)}", f"      {shown(example['completion'], CHARACTERS)}"]
