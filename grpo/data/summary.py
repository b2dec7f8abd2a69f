"""Samples in one line, for a user who has to see that they were read as they were meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from grpo.data.native import own_fields
from grpo.data.readers.jsonl import OWN_KEYS
from grpo.groups import Sample


def describe(samples: Sequence[Sample]) -> str:
    """Describe samples in one line: a misspelt field shows up as an unexpected column."""
    tasks = Counter(sample.task for sample in samples)
    with_moments = sum(bool(sample.keyframes_s) for sample in samples)
    without_clip = sum(sample.clip_source is None for sample in samples)
    kinds = ", ".join(f"{count} {task}" for task, count in tasks.most_common())
    about_text = f", {without_clip} about text alone" if without_clip else ""
    named = [*_named_columns(samples)]
    extra = f"; other columns: {', '.join(named)}" if named else ""
    return f"{len(samples)} questions ({kinds or 'none'}), {with_moments} with key moments{about_text}{extra}"


def _named_columns(samples: Sequence[Sample]) -> Iterator[str]:
    """The columns that samples have beside their own fields, with the field that a name may be a misspelling of."""
    beside: dict[str, set[str]] = {}
    for sample in samples:
        fields = own_fields(sample) if sample.columns else set()
        for name in sample.columns.keys() - fields:
            beside.setdefault(name, set()).update(fields)
    for name, fields in sorted(beside.items()):
        # Other data sets have columns of such names beside what they mean.
        meant = get_close_matches(name, set(OWN_KEYS) - fields, n=1, cutoff=0.75)
        yield f"{name} (did you mean {meant[0]!r}?)" if meant and name not in OWN_KEYS else name
