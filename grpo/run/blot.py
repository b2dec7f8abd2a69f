"""Secrets blotted out of what a run writes: the difference to the commit, and errors, which repeat what they met."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth(?!or(?!iz))|(^|_)pat(_|$)", re.IGNORECASE)
"""The names of those variables of the environment whose values are told nobody."""
MIN_SECRET_CHARACTERS = 8
"""The shortest value that counts as a secret: a shorter one is a word or a number that stands in code by chance."""
SECRET_SHAPES = (
    (re.compile(r"://[^\s/:@\"']*:[^\s/\"']+@"), "://<credentials>@"),
    (re.compile(r"(gh[pousr]_|hf_)[A-Za-z0-9]{20,}"), "<token>"),
    (re.compile(r"(github_pat_|glpat-|(?<![A-Za-z0-9])sk-)[\w-]{20,}"), "<token>"),
)
"""The secrets that show by their shape, wherever they come from, and what stands in their place."""


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text in which the environment's secrets, and what has the shape of one, are blotted out."""
    secrets = [(value, name) for name, value in environment.items() if SECRET_NAME.search(name)]
    # The longest first: a secret that begins with another one would keep its end.
    for value, name in sorted(secrets, key=lambda secret: -len(secret[0])):
        if len(value) >= MIN_SECRET_CHARACTERS:
            text = text.replace(value, f"<{name}>")
    for shape, instead in SECRET_SHAPES:
        text = shape.sub(instead, text)
    return text
