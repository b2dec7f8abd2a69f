"""The model's own words as an action space: each word moves the fingertip one way for a few action steps.

No token is added to the model: `left left up stay` is a chunk. What words can say is coarse: a place is reached to
within half a word's way on each axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WAYS = {
    "stay": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, 1.0),
    "down": (0.0, -1.0),
}
"""Directions in the plane, as a clip from above shows it."""
SAID = ("left", "right", "up", "down", "stay")
"""The order in which a chunk's words are said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """How far and how long a word moves."""

    word_m: float
    word_steps: int = 1
    """The action steps that a word lasts."""

    def read(self, text: str) -> np.ndarray:
        """The actions (TC) that words stand for; ValueError names a word that is none of the set."""
        words = text.split()
        for word in words:
            if word not in WAYS:
                raise ValueError(f"{word[:40]!r} is no direction: they are {', '.join(WAYS)}")
        ways_W2 = np.array([WAYS[word] for word in words]).reshape(-1, 2)
        return np.repeat(ways_W2 * self.word_m / self.word_steps, self.word_steps, axis=0)

    def say(self, actions_TC: np.ndarray) -> str:
        """The words for a chunk: each is the one after which the fingertip is nearest to where the chunk ends.

        They are said by axes, and `stay` last: one end has one text, whose numbers of words are its coordinates.
        ValueError for a chunk that is no whole number of words.
        """
        num_words, rest = divmod(len(actions_TC), self.word_steps)
        if rest or not num_words:
            raise ValueError(
                f"{len(actions_TC)} action steps are no whole number of words of {self.word_steps}"
            )
        end_2, at_2, words = np.sum(actions_TC, axis=0), np.zeros(2), []
        for _ in range(num_words):
            word = min(WAYS, key=lambda each: _distance(at_2 + self.word_m * np.array(WAYS[each]), end_2))
            at_2 = at_2 + self.word_m * np.array(WAYS[word])
            words.append(word)
        return " ".join(sorted(words, key=SAID.index))


def _distance(a_2: np.ndarray, b_2: np.ndarray) -> float:
    """A distance, rounded to a micrometre: of words that are equally near, the first counts."""
    return round(float(np.linalg.norm(a_2 - b_2)), 6)
