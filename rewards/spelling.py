"""How one answer may be spelt: forms of Unicode that mean the same, and marks around the whole of it.

Every comparison of answers folds both sides first (`folded`). Marks are Markdown's, LaTeX's and quotes (`layers`).
All functions take time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import groupby

STOPS = ".。।॥۔։።။។᠃"
"""Full stops; the full-width and the half-width one are folded to the first two."""

PAIRS = (
    ("***", "***"), ("**", "**"), ("*", "*"), ("__", "__"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"),
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("「", "」"), ("【", "】"), ("『", "』"), ("«", "»"),
)  # fmt: skip
MAX_LAYERS = 5

# A superscript, a fraction or a circled digit is no digit of the number that it stands in: 2² is not 22.
_SAME_MEANING = frozenset(
    {"<wide>", "<narrow>", "<small>", "<vertical>", "<noBreak>", "<font>", "<compat>", "<square>"}
    | {"<initial>", "<medial>", "<final>", "<isolated>"}
)
_ALIKE = {"\u2212": "-", "\u2010": "-", "‘": "'", "’": "'", "ʼ": "'", "“": '"', "”": '"'}
# The limit of Unicode's stream-safe text (UAX 15): normalising a run takes time quadratic in it.
_MAX_ACCENTS = 30

_IN_BRACES = r"[^{}]"
for _ in range(3):
    _IN_BRACES = rf"(?:{_IN_BRACES}|\{{{_IN_BRACES}*+\}})"
_COMMAND = re.compile(
    rf"\\(?:boxed|fbox|mbox|text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt))\s?\{{({_IN_BRACES}*+)\}}(.*)",
    re.DOTALL,
)


def folded(text: str) -> str:
    """The text in one form of Unicode: NFC, and of NFKC what changes no meaning (width, presentation, ligatures).

    The minus sign and the hyphen are one, and so are straight and curly quotes.
    """
    if text.isascii():
        return text
    plain = "".join(map(_fold, text))
    accents = {char for char in set(plain) if unicodedata.category(char)[0] == "M"}
    runs = (len([*run]) for is_accent, run in groupby(plain, accents.__contains__) if is_accent)
    return plain if accents and max(runs) > _MAX_ACCENTS else unicodedata.normalize("NFC", plain)


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    if char in _ALIKE:
        return _ALIKE[char]
    tag, *codes = unicodedata.decomposition(char).split() or [""]
    if tag not in _SAME_MEANING:
        return char
    parts = [chr(int(code, 16)) for code in codes]
    # ⒈ is "1.", 3⒈ is not 31.
    is_numbering = not char.isdecimal() and any(part.isdecimal() for part in parts)
    # ´ is " " and an accent, ﷺ four words
    is_accent_or_phrase = len(parts) > 1 and " " in parts
    return char if is_numbering or is_accent_or_phrase else "".join(map(_fold, parts))


def layers(content: str) -> list[str]:
    """The content, folded; then what the marks around the whole of it enclose, from the outside to the inside.

    `\\boxed{\\text{B}}`, `\\text{B}`, `B`. A full stop may follow the marks.
    """
    found = [folded(content).strip()]
    while len(found) < MAX_LAYERS and (parts := opened(found[-1])) and without_stop(parts[1]) == "":
        found.append(parts[0])
    return found


def opened(content: str) -> tuple[str, str] | None:
    """The text inside the marks that the content begins with, and the text after them; None without such marks."""
    if content[:1].isalnum():
        return None
    if command := _COMMAND.fullmatch(content):
        inside, behind = command.groups()
    else:
        for left, right in PAIRS:
            end = content.find(right, len(left)) if content.startswith(left) else -1
            if end > 0:
                inside, behind = content[len(left) : end], content[end + len(right) :]
                break
        else:
            return None
    return (inside.strip(), behind.strip()) if inside.strip() else None


def without_stop(text: str) -> str:
    """The text without one full stop at the end."""
    return text[:-1].rstrip() if text.endswith(tuple(STOPS)) else text
