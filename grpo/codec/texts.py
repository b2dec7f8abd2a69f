"""Codes as text: a token per code, `<motion_17>` or with several levels `<motion_0_17>`, between `<motion> </motion>`.

The tokens of a code step stand together, level 0 first. The tags are single tokens, too.
"""

from __future__ import annotations

import re

import numpy as np

from grpo.codec.spec import CodecSpec

# Spaces between tokens are an engine's, which may put them between special tokens when it decodes. Without leading
# zeros: <motion_007> is text that no token of the codec makes. Nine digits: int() refuses more than 4,300.
_CODE = re.compile(r"<([a-z][a-z0-9]*)_(?:(0|[1-9][0-9]{0,8})_)?(0|[1-9][0-9]{0,8})>\s*")

MOST_SHOWN = 24
"""The characters of a wrong text that an error shows."""


def open_tag(spec: CodecSpec) -> str:
    return f"<{spec.name}>"


def close_tag(spec: CodecSpec) -> str:
    return f"</{spec.name}>"


def code_token(spec: CodecSpec, level: int, code: int) -> str:
    """The token of a code."""
    return f"<{spec.name}_{code}>" if spec.levels == 1 else f"<{spec.name}_{level}_{code}>"


def code_tokens(spec: CodecSpec) -> list[list[str]]:
    """All code tokens of each level, by code."""
    return [
        [code_token(spec, level, code) for code in range(spec.codebook_size)] for level in range(spec.levels)
    ]


def token_names(spec: CodecSpec) -> list[str]:
    """The names of a codec's tokens for a reader: tags, and each level's first and last code."""
    last = spec.codebook_size - 1
    codes = [f"{code_token(spec, q, 0)} to {code_token(spec, q, last)}" for q in range(spec.levels)]
    return [open_tag(spec), *codes, close_tag(spec)]


def code_text(spec: CodecSpec, codes_KQ: np.ndarray) -> str:
    """The span of a sequence of K code steps with Q levels, tags included."""
    check_codes(spec, codes_KQ)
    tokens = (code_token(spec, level, int(code)) for codes in codes_KQ for level, code in enumerate(codes))
    return f"{open_tag(spec)}{''.join(tokens)}{close_tag(spec)}"


def parse_codes(spec: CodecSpec, text: str) -> np.ndarray:
    """The codes (K, Q) of the one span in a text; ValueError says what is wrong with it."""
    span = _span(spec, text)
    codes, end = [], 0
    while end < len(span):
        code = _CODE.match(span, end)
        if code is None:
            raise ValueError(f"no code of {spec.name}: {span[end : end + MOST_SHOWN].strip()!r}")
        codes.append(_code(spec, code, place=len(codes)))
        end = code.end()
    if not codes or len(codes) % spec.levels:
        raise ValueError(f"{len(codes)} codes of {spec.name} are no whole steps of {spec.levels}")
    return np.array(codes, dtype=np.int64).reshape(-1, spec.levels)


def check_codes(spec: CodecSpec, codes_KQ: np.ndarray) -> None:
    """Raise ValueError unless the array is one of at least one whole code step, with codes that the codec has."""
    if not np.issubdtype(codes_KQ.dtype, np.integer) or codes_KQ.ndim != 2:
        raise ValueError(f"codes are integers of (steps, levels), not {codes_KQ.dtype} of {codes_KQ.shape}")
    if not len(codes_KQ) or codes_KQ.shape[1] != spec.levels:
        raise ValueError(f"codes of {spec.name} have {spec.levels} levels, not the shape {codes_KQ.shape}")
    if codes_KQ.min() < 0 or codes_KQ.max() >= spec.codebook_size:
        raise ValueError(f"codes of {spec.name} are 0 to {spec.codebook_size - 1}, not all of these")


def _span(spec: CodecSpec, text: str) -> str:
    start, end = open_tag(spec), close_tag(spec)
    if (text.count(start), text.count(end)) != (1, 1) or text.index(start) > text.index(end):
        counts = f"{text.count(start)} {start} and {text.count(end)} {end}"
        raise ValueError(f"there is one span {start} ... {end}, not {counts} in this order")
    return text[text.index(start) + len(start) : text.index(end)].strip()


def _code(spec: CodecSpec, match: re.Match[str], place: int) -> int:
    name, level, code = match.groups()
    token, due = match[0].strip(), place % spec.levels
    if name != spec.name or (level is None) != (spec.levels == 1):
        raise ValueError(f"no code of {spec.name}: {token}")
    if level is not None and int(level) != due:
        raise ValueError(f"code {place} of {spec.name} is of level {due}, not {token}")
    if int(code) >= spec.codebook_size:
        raise ValueError(f"{spec.name} has codes 0 to {spec.codebook_size - 1}, not {token}")
    return int(code)
