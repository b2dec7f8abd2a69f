"""The output tags and how completions are read: the only file that knows either.

Reading never guesses: what is ambiguous (two answers, a cut tag, an unknown letter) reads as None.
Every function takes time linear in the text, whatever the text; the patterns are possessive (`*+`)
or bounded for that reason. Digits are ASCII once their width is folded, because `\\d` also matches foreign numerals.
How one answer may be spelt, in Unicode and with marks around it, is in `rewards/spelling.py`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from rewards.spelling import STOPS, folded, layers, opened, without_stop

THINK = "think"
KEYFRAMES = "keyframes"
ANSWER = "answer"
TAGS = (THINK, KEYFRAMES, ANSWER)

# Bounded, as int() refuses more than 4,300 digits, float() makes inf of 400 and no clip lasts 30 years.
_SECONDS = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"
_MOMENT = re.compile(rf"({_SECONDS})(?:(?:\s*+-\s*+|\s++to\s++)({_SECONDS}))?")
# A space behind the colon, or `2:15` would be a time of the second video.
_VIDEO = re.compile(r"(?:[Vv]ideo\s++)?([0-9]{1,2}):\s++(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,100}(?:\.[0-9]{0,100})?|\.[0-9]{1,100})")
# Letters and a sign without ink: Hangul fillers, blank Braille.
_EMPTY = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# A dash needs a space behind it: `A -5` may be a minus.
_LETTER = re.compile(
    rf"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?=$|\s*+[{STOPS}:)、]|\s*+[-–]\s|\s*+—|\s++\())"
    rf"\s*+[{STOPS}:)、]?+\s*+(?:[-–]\s++|—\s*+)?+(.*)",
    re.DOTALL,
)


def only_block(text: str, tag: str) -> str | None:
    """Content of the text's one block of that tag, else None.

    None as well where the tag occurs a second time, open, closed or misspelt (`<Answer>`,
    `<answer x>`), or where another output tag lies inside the block.
    """
    markers = list(_marker_pattern((tag,)).finditer(text))
    at = [index for index, marker in enumerate(markers) if marker[1].casefold() == tag.casefold()]
    if len(at) != 2 or at[1] != at[0] + 1:
        return None
    opening, closing = markers[at[0]], markers[at[1]]
    if (opening[0], closing[0]) != (f"<{tag}>", f"</{tag}>"):
        return None
    return text[opening.end() : closing.start()]


def blocks_in_order(text: str, tags: Sequence[str]) -> tuple[str, ...] | None:
    """Contents of the blocks if the text is exactly these blocks in this order, else None.

    White space may stand around the blocks, nothing else; no block is blank; no output tag, well
    written or misspelt, occurs anywhere else.
    """
    markers = list(_marker_pattern(tuple(tags)).finditer(text))
    expected = [marker for tag in tags for marker in (f"<{tag}>", f"</{tag}>")]
    if [marker[0] for marker in markers] != expected:
        return None
    edges = [0, *(edge for marker in markers for edge in marker.span()), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    # Outside, <tag>, inside, </tag>, outside, ...
    outside, inside = pieces[0::4], pieces[2::4]
    if any(piece.strip() for piece in outside) or any(is_blank(piece) for piece in inside):
        return None
    return tuple(inside)


def is_blank(text: str) -> bool:
    """Nothing to see in it: a zero-width space, which `strip` keeps, is nothing either, nor an accent alone."""
    visible = (char for char in text if char.isprintable() and not char.isspace() and char not in _EMPTY)
    return all(unicodedata.category(char)[0] == "M" for char in visible)


def normalise(text: str) -> str:
    """Text without what an answer may vary in: form of Unicode, case and white space."""
    return " ".join(folded(text).casefold().split())


def read_letter(content: str, options: Sequence[str]) -> str | None:
    """Upper-case letter of the option that an answer names, else None.

    Accepted are the letter (`B`, `b`, `(B)`, `[B]`, `B.`, `B:`, `B)`), the letter followed by that option's own
    text (`B: a knife`, `B - a knife`), and the bare text of exactly one option; each with marks around it or around
    the letter, and with a full stop. Where an option's text is itself a letter, the letter is meant: that is what the
    prompt asks for. Without options any letter counts.
    """
    letters = string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase
    texts = dict(zip(letters, options, strict=False))
    for layer in layers(content):
        letter, text = _letter_and_text(layer)
        if letter and letter in letters and _bare(text) in ("", _bare(texts.get(letter, ""))):
            return letter
        if found := [letter for letter in texts if normalise(texts[letter]) == normalise(layer)]:
            return found[0] if len(found) == 1 else None
    bare = _bare(content)
    found = [letter for letter in texts if bare and _bare(texts[letter]) == bare]
    return found[0] if len(found) == 1 else None


def _letter_and_text(content: str) -> tuple[str, str]:
    """The letter that the content begins with and the text behind it; two empty texts if it begins with none."""
    found = _LETTER.fullmatch(content)
    if found is None and (parts := opened(content)):
        # **B.** a knife
        alone = _LETTER.fullmatch(layers(parts[0])[-1])
        found = _LETTER.fullmatch(f"({_letter(alone)}) {parts[1]}") if alone and not alone[4] else None
    return (_letter(found), found[4]) if found else ("", "")


def _letter(found: re.Match[str]) -> str:
    return (found[1] or found[2] or found[3]).upper()


def _bare(text: str) -> str:
    """An option's text without marks or brackets around it and without its full stop, for comparisons."""
    return normalise(without_stop(unbracketed(layers(without_stop(text))[-1])))


def read_number(content: str) -> Decimal | None:
    """The number that the whole content is, in plain decimal notation, up to marks around it, else None."""
    content = without_stop(layers(content)[-1])
    return Decimal(content) if _NUMBER.fullmatch(content) else None


def read_moments(content: str) -> list[tuple[float, float]] | None:
    """Cited moments as spans (start, end) in seconds; None unless every one of them is readable.

    Comma separated, each a number (`3.5`) or a span (`3.0-4.5`, `3.0 to 4.5`) that does not end before it starts.
    A number is a span of no length.
    """
    moments = [_moment(part) for part in folded(content).split(",")]
    return [moment for moment in moments if moment] if all(moments) else None


def read_videos_moments(content: str, num_videos: int) -> list[tuple[int, tuple[float, float]]] | None:
    """Cited moments of several videos, each with the number of its video, from 1; None unless all are readable.

    As `read_moments`, each with its video's number in front, `2: 3.0-4.5` or `video 2: 3.0-4.5`; without a number it
    is of the first video.
    """
    numbered = [_numbered(part.strip()) for part in folded(content).split(",")]
    read = [(number, moment) for number, text in numbered if (moment := _moment(text))]
    is_whole = len(read) == len(numbered) and all(1 <= number <= num_videos for number, _ in read)
    return read if is_whole else None


def _numbered(part: str) -> tuple[int, str]:
    match = _VIDEO.fullmatch(part)
    return (int(match[1]), match[2]) if match else (1, part)


def _moment(part: str) -> tuple[float, float] | None:
    match = _MOMENT.fullmatch(part.strip())
    span = (float(match[1]), float(match[2] or match[1])) if match else None
    return span if span and span[0] <= span[1] else None


def read_span(content: str | None) -> tuple[float, float] | None:
    """The one span that the text is, as `3.0-4.5`, `3.0, 4.5` or either in brackets or marks, else None."""
    moments = read_moments(unbracketed(layers(content)[-1])) if content is not None else None
    match moments:
        case [(start, end)] if start < end:
            return start, end
        case [(start, start_again), (end, end_again)] if start == start_again < end == end_again:
            return start, end
    return None


def read_videos_span(content: str | None, num_videos: int) -> tuple[int, tuple[float, float]] | None:
    """The one span that the text is, with the number of its video, from 1; None as for `read_span`.

    Of several videos the number stands in front, `2: 3.0-4.5` or `video 2: 3.0-4.5`; without one it is of the first.
    """
    if content is None:
        return None
    number, text = _numbered(unbracketed(layers(content)[-1])) if num_videos > 1 else (1, content)
    span = read_span(text)
    return (number, span) if span and 1 <= number <= max(num_videos, 1) else None


def unbracketed(content: str) -> str:
    """The content without one pair of round or square brackets around the whole."""
    content = content.strip()
    return content[1:-1] if (content[:1], content[-1:]) in (("(", ")"), ("[", "]")) else content


@lru_cache
def _marker_pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the opening and closing marks of all output tags, misspelt ones too; group 1 is the name."""
    names = "|".join(re.escape(tag) for tag in sorted({*TAGS, *tags}))
    return re.compile(rf"<\s*+/?\s*+({names})\b[^<>]*+>", re.IGNORECASE)
