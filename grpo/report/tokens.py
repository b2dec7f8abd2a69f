"""The texts of single tokens, by a run's tokenizer where it is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def find_tokenizer(*models: str) -> Tokenizer | None:
    """Return the tokenizer of the first model that lies on this machine, as a folder or in the cache of downloads.

    None without one: the network is not asked.
    """
    for model in models:
        if (file := _tokenizer_file(model)) is not None:
            return Tokenizer.from_file(file)
    return None


def _tokenizer_file(model: str) -> str | None:
    # Imported here, since it takes a second or two.
    from transformers.utils.hub import cached_file

    try:
        return cached_file(model, TOKENIZER, local_files_only=True)
    except OSError:
        return None


class Pieces:
    """The texts of tokens, each looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def of(self, token_ids: Iterable[int]) -> Mapping[int, str]:
        """Return the text of each of these tokens; a part of a character is a replacement character."""
        wanted = {*token_ids}
        for token_id in wanted - self.known.keys():
            self.known[token_id] = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return {token_id: self.known[token_id] for token_id in sorted(wanted)}
