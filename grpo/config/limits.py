"""The words in which a setting's field says what its value may be: `lr: Positive[float] = 1e-6`.

They are annotations (annotated-types), which OmegaConf and type checkers look through. A list's limit is that of each
entry, and None is never refused. Settings of media/ and rewards/, which lie below, use `Annotated` itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import astuple, is_dataclass
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")

Positive = Annotated[T, Gt(0)]
NotNegative = Annotated[T, Ge(0)]
Frac = Annotated[T, Ge(0), Le(1)]
PositiveFrac = Annotated[T, Gt(0), Le(1)]

FREE = "free"
Free = Annotated[T, FREE]
"""A setting, or a section of them, that a resumed run may change: how it is run and watched, and how long. Another
value of any other setting makes it another run."""

PATH = "path"
FilePath = Annotated[T, PATH]
"""A path, in which `~` and variables of the environment are filled in."""

LIMITS: dict[type, tuple[Any, str]] = {
    Gt: (operator.gt, "above"), Ge: (operator.ge, "at least"), Lt: (operator.lt, "below"), Le: (operator.le, "at most"),
}  # fmt: skip


class Setting(NamedTuple):
    """A single value of a config, with the words beside its field and beside the sections that it is in."""

    key: str
    value: Any
    words: tuple[object, ...]


def single_settings(value: Any, key: str = "", words: tuple[object, ...] = ()) -> Iterator[Setting]:
    """Every single value in a section, a list or a mapping; keys are dotted and begin with the given one."""
    if is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        inner = [
            (name, getattr(value, name), getattr(hint, "__metadata__", ())) for name, hint in hints.items()
        ]
    elif isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [(name, entry, ()) for name, entry in entries]
    else:
        yield Setting(key, value, words)
        return
    for name, entry, own in inner:
        yield from single_settings(entry, f"{key}.{name}" if key else str(name), (*words, *own))


def refusals(settings: object, key: str = "") -> Iterator[str]:
    """What is wrong with single values, in lines that begin with the dotted key."""
    for setting in single_settings(settings, key):
        if isinstance(setting.value, int | float):
            yield from (f"{setting.key} must be {must}, not {setting.value}" for must in _broken(setting))


def _broken(setting: Setting) -> Iterator[str]:
    if math.isnan(setting.value):
        yield "a number"
    for word in setting.words:
        if type(word) in LIMITS:
            holds, name = LIMITS[type(word)]
            [bound] = astuple(word)  # pyright: ignore[reportArgumentType] (all limits are dataclasses)
            if not holds(setting.value, bound):
                yield f"{name} {bound}"
