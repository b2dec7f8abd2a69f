"""Codes in a model's vocabulary: which tokens they are, and which token may follow which. Importable without torch.

Each level of a codec has tokens of its own, so the last token alone tells what may come next:

    <motion>            a code of level 0
    a code              one of the next level; after the last level, one of level 0 or </motion>
    anything else       anything but codes and closing tags
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from grpo.codec.codec import digest_of
from grpo.codec.spec import CodecSpec

CODES_FILE = "codes.json"
"""The file of a model folder that says which of its tokens are codes."""

CODECS_FOLDER = "codecs"
"""The folder of a model folder with the codecs that its codes are of, by name."""

TOKENIZER_FILE = "tokenizer.json"

OUTSIDE = 0
"""The state outside of all spans."""

_FIRST_CODE = re.compile(r"<([a-z][a-z0-9]*)(?:_0){1,2}>")


@dataclass(frozen=True, kw_only=True)
class CodecTokens:
    """The tokens of one codec: its tags, and for each level as many codes, one after another."""

    name: str
    open_id: int
    close_id: int
    first_ids: tuple[int, ...]
    """The token of code 0 of each level."""
    codebook_size: int
    digest: str
    """The digest of the codec that the tokens were made for (`CodecSpec.digest`)."""

    @property
    def levels(self) -> list[range]:
        """The tokens of each level's codes."""
        return [range(first, first + self.codebook_size) for first in self.first_ids]

    @property
    def open(self) -> range:
        return range(self.open_id, self.open_id + 1)

    @property
    def close(self) -> range:
        return range(self.close_id, self.close_id + 1)

    @property
    def names(self) -> dict[range, str]:
        """All its tokens, with what an error calls them."""
        several = len(self.first_ids) > 1
        codes = [
            f"a code of {self.name}" + f", level {level}" * several for level in range(len(self.first_ids))
        ]
        tags = {self.open: f"<{self.name}>", self.close: f"</{self.name}>"}
        return tags | dict(zip(self.levels, codes, strict=True))


@dataclass(frozen=True)
class Vocabulary:
    """The codecs of a model's vocabulary, and the rules of their tokens as a machine of few states.

    A state is a small number, `OUTSIDE` or one that belongs to a codec; the last token determines it.
    """

    codecs: tuple[CodecTokens, ...]

    @cached_property
    def states(self) -> dict[range, int]:
        """The state after each token that leads into a span or goes on in one; after all others it is `OUTSIDE`."""
        leading = [tokens for codec in self.codecs for tokens in (codec.open, *codec.levels)]
        return {tokens: state for state, tokens in enumerate(leading, OUTSIDE + 1)}

    @cached_property
    def allowed(self) -> dict[int, list[range]]:
        """The tokens that may follow in each state but `OUTSIDE`."""
        follow = []
        for codec in self.codecs:
            follow += [[codes] for codes in codec.levels]
            follow.append([codec.levels[0], codec.close])
        return dict(enumerate(follow, OUTSIDE + 1))

    @cached_property
    def only_inside(self) -> list[range]:
        """The tokens that may not follow in the state `OUTSIDE`: codes and closing tags."""
        return [tokens for codec in self.codecs for tokens in (codec.close, *codec.levels)]

    @cached_property
    def token_ids(self) -> list[int]:
        """All tokens of all codecs: those that the model was grown by."""
        return sorted(token_id for codec in self.codecs for tokens in codec.names for token_id in tokens)

    @property
    def identity(self) -> str:
        """What tells it from another one: the same tokens, made for the same codecs, have the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _state_of(self) -> dict[int, int]:
        return {token_id: state for tokens, state in self.states.items() for token_id in tokens}

    @cached_property
    def _only_inside(self) -> frozenset[int]:
        return frozenset(token_id for tokens in self.only_inside for token_id in tokens)

    def state_after(self, token_id: int) -> int:
        return self._state_of.get(token_id, OUTSIDE)

    def allows(self, state: int, token_id: int) -> bool:
        """Return whether a token may follow in a state."""
        if state == OUTSIDE:
            return token_id not in self._only_inside
        return any(token_id in tokens for tokens in self.allowed[state])

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise ValueError for the first token that breaks the rules, and for a span without an end."""
        state = OUTSIDE
        for place, token_id in enumerate(token_ids):
            if not self.allows(state, token_id):
                raise ValueError(f"token {place} is {self._name(token_id)}, {self._due(state)}")
            state = self.state_after(token_id)
        if state != OUTSIDE:
            raise ValueError(f"it ends {self._due(state)}")

    def _name(self, token_id: int) -> str:
        names = {tokens: name for codec in self.codecs for tokens, name in codec.names.items()}
        return next((name for tokens, name in names.items() if token_id in tokens), f"no code ({token_id})")

    def _due(self, state: int) -> str:
        """Say what may follow in a state."""
        if state == OUTSIDE:
            return "outside of a span"
        return f"where {' or '.join(self._name(tokens.start) for tokens in self.allowed[state])} is due"


def assign(specs: Sequence[CodecSpec], first_id: int) -> Vocabulary:
    """Return the vocabulary of codecs whose tokens stand from an id on: each one's tags, then its levels."""
    codecs = []
    for spec in specs:
        codes = first_id + 2
        tokens = CodecTokens(
            name=spec.name,
            open_id=first_id,
            close_id=first_id + 1,
            first_ids=tuple(codes + level * spec.codebook_size for level in range(spec.levels)),
            codebook_size=spec.codebook_size,
            digest=spec.digest,
        )
        codecs.append(tokens)
        first_id = codes + spec.levels * spec.codebook_size
    return Vocabulary(tuple(codecs))


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write a model folder's file of codes, which `read_vocabulary` reads."""
    content = {"codecs": {codec.name: _as_json(codec) for codec in vocabulary.codecs}}
    (folder / CODES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of a model folder; None for a model without codes.

    Raises ValueError for a file that is damaged, for a codec that is not the one that the tokens were made for, and for
    a tokenizer with codes in a folder that doesn't say which they are: a copy of a grown model without all its files.
    """
    file = folder / CODES_FILE
    if not file.is_file():
        if (code := _first_code(folder / TOKENIZER_FILE)) is not None:
            raise ValueError(
                f"{folder} has tokens of codes, as {code}, and no {CODES_FILE}: copy that and {CODECS_FOLDER}/ from "
                "the model that was grown"
            )
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["codecs"]
        vocabulary = Vocabulary(tuple(_from_json(name, each) for name, each in content.items()))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error
    for codec in vocabulary.codecs:
        own = folder / CODECS_FOLDER / codec.name
        if digest_of(own) != codec.digest:
            raise ValueError(f"{own} is another codec than the one that the model was grown with ({file})")
    return vocabulary


def _first_code(tokenizer: Path) -> str | None:
    """Return the first code, of level 0, that a tokenizer has beside tags of its codec; None if it has none."""
    content = tokenizer.read_bytes() if tokenizer.is_file() else b""
    # Parsing a large one takes a good part of a second, and hardly any has what codes end in.
    if b'_0>"' not in content:
        return None
    added = {str(token["content"]) for token in json.loads(content).get("added_tokens", [])}
    for token in sorted(added):
        code = _FIRST_CODE.fullmatch(token)
        if code is not None and {f"<{code[1]}>", f"</{code[1]}>"} <= added:
            return token
    return None


def _as_json(codec: CodecTokens) -> dict[str, Any]:
    levels = [{"first": codes.start, "count": len(codes)} for codes in codec.levels]
    return {"open": codec.open_id, "close": codec.close_id, "levels": levels, "digest": codec.digest}


def _from_json(name: str, content: dict[str, Any]) -> CodecTokens:
    levels = content["levels"]
    return CodecTokens(
        name=name,
        open_id=int(content["open"]),
        close_id=int(content["close"]),
        first_ids=tuple(int(level["first"]) for level in levels),
        codebook_size=int(levels[0]["count"]),
        digest=str(content["digest"]),
    )
