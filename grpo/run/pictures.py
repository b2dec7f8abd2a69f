"""A group of completions as one picture: frames that the model saw, the question, and what its completions earned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from grpo.groups import ScoredGroup
from grpo.media.clip import Clip

WIDTH_PX, MARGIN_PX = 1000, 12
MAX_FRAMES = 8
FRAME_GAP_PX = 4
FONT_PX, LINE_PX = 14, 19
MAX_QUESTION_LINES, MAX_COMPLETION_LINES = 4, 5
NUM_BEST, NUM_WORST = 2, 2
"""The completions with the highest and with the lowest totals that are shown."""
INK, DIM, GOOD, BAD = "#1d1d1f", "#6e6e73", "#1a7f37", "#b42318"

Line = tuple[str, str]
"""A line of text and its colour."""


def pictured(scored: Sequence[ScoredGroup], most: int) -> tuple[ScoredGroup, ...]:
    """Return the groups that pictures are made of: the first ones, those with a signal before the flat ones."""
    return tuple(sorted(scored, key=lambda group: not group.has_signal)[:most])


def draw_group(scored: ScoredGroup) -> Image.Image:
    """Return the picture of a group."""
    prompt = scored.group.prompt
    strip = _strip(prompt.clip) if prompt.clip is not None else None
    lines = [*_question(scored), ("", INK)]
    for index in _chosen(scored.table.totals):
        lines += _completion(scored, index)
    top = MARGIN_PX + (strip.height + MARGIN_PX if strip else 0)
    picture = Image.new("RGB", (WIDTH_PX, top + LINE_PX * len(lines) + MARGIN_PX), "white")
    if strip:
        picture.paste(strip, (MARGIN_PX, MARGIN_PX))
    draw = ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(lines):
        draw.text((MARGIN_PX, top + number * LINE_PX), text, colour, _font())
    return picture


def _strip(clip: Clip) -> Image.Image:
    """Return frames beside each other, evenly chosen, with their times below."""
    count = min(MAX_FRAMES, clip.num_frames)
    chosen = [index * clip.num_frames // count for index in range(count)]
    width_px = (WIDTH_PX - 2 * MARGIN_PX) // MAX_FRAMES - FRAME_GAP_PX
    height_px = max(1, round(width_px * clip.height_px / clip.width_px))
    strip = Image.new("RGB", (WIDTH_PX - 2 * MARGIN_PX, height_px + LINE_PX), "white")
    draw = ImageDraw.Draw(strip)
    for place, index in enumerate(chosen):
        left = place * (width_px + FRAME_GAP_PX)
        frame = Image.fromarray(clip.frames_FHWC[index])
        strip.paste(frame.resize((width_px, height_px), Image.Resampling.BILINEAR), (left, 0))
        draw.text((left, height_px + 1), f"{clip.times_s[index]:.1f} s", DIM, _font())
    return strip


def _question(scored: ScoredGroup) -> Iterator[Line]:
    sample = scored.group.prompt.sample
    options = "".join(
        f"  {letter}. {text}" for letter, text in zip("ABCDEFGHIJ", sample.options, strict=False)
    )
    for line in _wrapped(f"{sample.id}: {sample.question}{options}", MAX_QUESTION_LINES):
        yield line, INK
    yield from ((line, GOOD) for line in _wrapped(f"answer: {sample.answer}", 1))


def _completion(scored: ScoredGroup, index: int) -> Iterator[Line]:
    total, advantage = scored.table.totals[index], scored.advantages[index]
    raw = ", ".join(f"{name} {_number(column[index])}" for name, column in scored.table.columns.items())
    colour = DIM if not advantage else GOOD if advantage > 0 else BAD
    head = f"#{index}  total {_number(total)}  advantage {_number(advantage)}  ({raw})"
    yield from ((line, colour) for line in _wrapped(head, 2))
    yield from ((line, INK) for line in _wrapped(scored.group.rollouts[index].text, MAX_COMPLETION_LINES))
    yield "", INK


def _chosen(totals: Sequence[float | None]) -> list[int]:
    """Return the completions that are shown, best first; one without a total counts as the worst."""
    order = sorted(
        range(len(totals)), key=lambda index: -(totals[index] or 0.0) if totals[index] is not None else 1e9
    )
    return order if len(order) <= NUM_BEST + NUM_WORST else [*order[:NUM_BEST], *order[-NUM_WORST:]]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"


def _wrapped(text: str, most: int) -> list[str]:
    """Return a text in at most so many lines of the picture's width; characters that can't be seen are left out."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    width = (WIDTH_PX - 2 * MARGIN_PX) / _font().getlength("n")
    lines, rest = [], " ".join(clean.split())[: int(4 * width * most)]
    while rest and len(lines) < most:
        end = _fitting(rest)
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    return [*lines[:-1], lines[-1][:-2] + " …"] if rest and lines else lines


def _fitting(text: str) -> int:
    """Return how many characters of a text fit into a line, up to the end of a word where one ends."""
    room_px, low, high = WIDTH_PX - 2 * MARGIN_PX, 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _font().getlength(text[:middle]) <= room_px else (low, middle - 1)
    space = text.rfind(" ", 0, low + 1)
    return low if low == len(text) or space <= 0 else space


@cache
def _font() -> ImageFont.FreeTypeFont:
    # DejaVu, which matplotlib brings, has far more scripts than Pillow's own.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_PX)
