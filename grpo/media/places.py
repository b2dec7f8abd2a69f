"""The marks of the places in a text where a question's media stand, as data sets write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from grpo.media.clip import Clip, ClipSource

Kind = Literal["image", "video"]
"""What a model is shown a clip as."""
PLACE = re.compile("<(image|video)>")


def kind_of(medium: Clip | ClipSource) -> Kind:
    return "image" if medium.is_picture else "video"


def check_places(text: str, kinds: Sequence[Kind]) -> None:
    """Raise ValueError unless a text marks a place for each medium, in their order, or none at all."""
    marked = PLACE.findall(text)
    if marked and marked != [*kinds]:
        raise ValueError(
            f"its text has the places {', '.join(f'<{each}>' for each in marked)}, and its media are "
            f"{', '.join(kinds)}: mark one place for each, in their order, or none"
        )
