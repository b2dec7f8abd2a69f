"""The parser of commands' arguments, which says what a mistyped word was probably meant for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NoReturn

from rewards.scoring.loading import did_you_mean


class Parser(argparse.ArgumentParser):
    """A command's parser; those of its subcommands are made of the same class."""

    def error(self, message: str) -> NoReturn:
        """End the command with its usage and the message, and for a word that is close to a known one with that."""
        super().error(message + next(filter(None, self._suggestions(message)), ""))

    def _suggestions(self, message: str) -> Iterator[str]:
        if refused := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            yield did_you_mean(refused[1], re.findall(r"[\w.-]+", refused[2]))
        elif message.startswith("unrecognized arguments: "):
            # Subcommands leave it to their command to refuse what they don't know.
            choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
            parsers = [self, *(parser for each in choices for parser in each.values())]
            known = [name for parser in parsers for name in parser._option_string_actions]
            yield from (did_you_mean(word, known) for word in re.findall(r"(?<!\S)-[\w-]+", message))
