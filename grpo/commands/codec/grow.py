"""A model grown by the tokens of codecs: an ordinary folder that transformers and vLLM load, with the codecs in it.

Only what has to change does: rows are added to the embedding and, where it has weights of its own, to the head. All
else is copied, so that whatever loads the model loads the grown one too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from grpo.codec.codec import Codec, load_codec
from grpo.codec.rows import rows_of_codes
from grpo.codec.spec import CodecSpec
from grpo.codec.texts import close_tag, code_tokens, open_tag
from grpo.codec.vocabulary import (
    CODECS_FOLDER,
    TOKENIZER_FILE,
    Vocabulary,
    assign,
    read_vocabulary,
    write_vocabulary,
)
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model_folder import (
    WEIGHTS,
    check_weights,
    copy_description,
    find_model_folder,
    read_json,
    weight_files,
)
from grpo.policy.weights import EMBEDDING, HEAD
from grpo.run.disk import disk_errors, put_in_place

MOST_NAMED = 4


def grow(model: str, out: Path, codec_folders: Sequence[Path]) -> Vocabulary:
    """Write a model with tokens for the codes of codecs, and return the vocabulary that it has then.

    Raises ValueError for codecs of one name, for a tokenizer that has some of their tokens already, and for one that
    takes no such tokens.
    """
    if out.exists():
        raise ValueError(f"there is something at {out} already")
    folder = find_model_folder(model, "MODEL")
    codecs = [load_codec(each) for each in codec_folders]
    texts = [text for codec in codecs for text in _texts(codec.spec)]
    first_id = _first_free_id(folder, texts)
    load_family(model)
    check_weights(folder)
    new, earlier = assign([codec.spec for codec in codecs], first_id), read_vocabulary(folder)
    vocabulary = Vocabulary((*(earlier.codecs if earlier else ()), *new.codecs))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with disk_errors(partial):
        copy_description(folder, partial)
        _grow_tokenizer(partial, texts, first_id)
        _grow_config(partial, first_id + len(texts))
        _grow_weights(folder, partial, codecs, first_id)
        for source, codec in zip(codec_folders, codecs, strict=True):
            shutil.copytree(source, partial / CODECS_FOLDER / codec.spec.name)
        write_vocabulary(partial, vocabulary)
        _check(load_family(str(partial)), model, texts, first_id)
        put_in_place(partial, out)
    return vocabulary


def _texts(spec: CodecSpec) -> list[str]:
    """Return a codec's tokens in the order of their ids."""
    return [open_tag(spec), close_tag(spec), *(text for level in code_tokens(spec) for text in level)]


def _first_free_id(folder: Path, texts: Sequence[str]) -> int:
    """Return the id behind all of a tokenizer's; raise ValueError if it has some of the tokens, or two are the same."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}, which the tokens are added to")
    known = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).get_vocab()
    if taken := [text for text in texts if text in known]:
        more = ", ..." if len(taken) > MOST_NAMED else ""
        raise ValueError(f"the tokenizer of {folder} has {', '.join(taken[:MOST_NAMED])}{more} already")
    if len(set(texts)) < len(texts):
        raise ValueError("each codec needs a name of its own")
    return max(known.values()) + 1


def _grow_tokenizer(folder: Path, texts: Sequence[str], first_id: int) -> None:
    # Not special: whoever leaves special tokens out of a text would lose the codes. Not normalized: found as they are.
    kind = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content = read_json(folder / TOKENIZER_FILE)
    content["added_tokens"] += [
        {"id": number, "content": text, **kind} for number, text in enumerate(texts, first_id)
    ]
    _write_json(folder / TOKENIZER_FILE, content)
    # Two more files in which older tokenizers list what was added.
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "added_tokens_decoder" in (content := read_json(settings)):
        content["added_tokens_decoder"] |= {
            str(number): {"content": text, **kind} for number, text in enumerate(texts, first_id)
        }
        _write_json(settings, content)
    added = folder / "added_tokens.json"
    if added.is_file():
        _write_json(added, read_json(added) | {text: i for i, text in enumerate(texts, first_id)})


def _grow_config(folder: Path, num_tokens: int) -> None:
    """Write the size of the vocabulary into a config, unless its rows for tokens that don't exist suffice."""
    config = read_json(folder / "config.json")
    parts = [part for part in (config, config.get("text_config")) if part and "vocab_size" in part]
    for part in parts:
        part["vocab_size"] = max(part["vocab_size"], num_tokens)
    if not parts:
        raise ValueError(f"{folder / 'config.json'} states no vocab_size")
    _write_json(folder / "config.json", config)


def _grow_weights(folder: Path, out: Path, codecs: Sequence[Codec], first_id: int) -> None:
    num_bytes, grown = 0, 0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            names, metadata = [*opened.keys()], opened.metadata()
        wanted = [name for name in names if name.endswith(EMBEDDING) or name == HEAD]
        if wanted:
            weights = load_file(file)
            weights |= {name: _with_rows(weights[name], codecs, first_id) for name in wanted}
            save_file(weights, out / file.name, metadata)
        else:
            shutil.copyfile(file, out / file.name)
        grown += len(wanted)
        num_bytes += sum(_num_bytes(out / file.name))
    if not grown:
        raise ValueError(f"{folder} has no weight ...{EMBEDDING}")
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        content = read_json(index)
        content["metadata"] = content.get("metadata", {}) | {"total_size": num_bytes}
        _write_json(out / index.name, content)


def _num_bytes(file: Path) -> list[int]:
    """Return the sizes of a file's weights."""
    with safe_open(file, framework="pt") as opened:
        return [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118


def _with_rows(weight_VD: Tensor, codecs: Sequence[Codec], first_id: int) -> Tensor:
    """Return an embedding or a head with the rows of all codes; rows of tokens that don't exist are taken first."""
    known_VD = weight_VD[:first_id]
    rows = [
        rows_of_codes(codec.quantiser.codebooks(), codec.spec.name, known_VD).to(weight_VD.dtype)
        for codec in codecs
    ]
    return torch.cat([known_VD, *rows, weight_VD[first_id + sum(map(len, rows)) :]])


def _check(family: ModelFamily, model: str, texts: Sequence[str], first_id: int) -> None:
    """Raise ValueError unless the grown tokenizer makes one token of each text, and the same text of the tokens."""
    tokenizer, text = family.processor.tokenizer, "".join(texts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids != [*range(first_id, first_id + len(texts))] or family.decode(ids) != text:
        raise ValueError(
            f"{model} can't grow: its tokenizer, with the codes added, does not make one token of each"
        )


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
