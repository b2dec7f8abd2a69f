"""Models grown by the tokens of codecs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from grpo.codec.codec import load_codec, save_codec
from grpo.codec.texts import code_text, parse_codes
from grpo.codec.vocabulary import read_vocabulary
from grpo.commands.codec.command import main
from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.run.final_model import save_final
from tests.support import grown, tiny

NUM_TOKENS = 2 + 2 * 6 + 2 + 5
"""The tokens of the codecs of `grown`."""


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl_untied", "qwen2_vl"])
def test_a_code_text_is_one_token_each_and_comes_back_the_same(name: str) -> None:
    family = grown.family(name)
    motion = load_codec(grown.model(name) / "codecs" / "motion")
    text = code_text(motion.spec, motion.encode(torch.tensor([[-1.0, 0.9], [0.1, -0.3]]).numpy()))
    ids = family.completion_ids(f"It moves: {text}, so.")
    inside = [token for token in ids if token in (family.vocabulary or grown.vocabulary()).token_ids]
    assert len(inside) == 2 + 2 * 2
    assert family.decode(ids) == f"It moves: {text}, so."
    assert parse_codes(motion.spec, family.decode(ids)).tolist() == [[0, 5], [3, 2]]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl_untied"])
def test_the_old_rows_stay_and_transformers_loads_the_new_ones(name: str) -> None:
    with tiny.of_family(name):
        old: Any = tiny.family().load_model(torch.float32)
    model: Any = AutoModelForImageTextToText.from_pretrained(grown.model(name), dtype="auto")
    ids = grown.family(name).vocabulary.token_ids  # pyright: ignore[reportOptionalMemberAccess]
    assert len(ids) == NUM_TOKENS
    size = max(ids) + 1
    assert model.config.text_config.vocab_size == size
    for now, before in (
        (model.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ):
        assert len(now) == size
        torch.testing.assert_close(now[: ids[0]], before[: ids[0]], rtol=0, atol=0)
        # Of two levels with the same codebook, each code is as far from the next in both.
        steps = (now[ids[3] : ids[7]] - now[ids[2] : ids[6]]).norm(dim=-1)
        torch.testing.assert_close(steps, steps[:1].expand(4), rtol=1e-3, atol=1e-4)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (name == "qwen2_5_vl")


def test_rows_of_tokens_that_do_not_exist_are_taken_first() -> None:
    # The shipped tokenizer ends at 438, its model has 448 rows.
    assert grown.vocabulary().token_ids == [*range(439, 439 + NUM_TOKENS)]


def test_weights_in_several_files_keep_their_files(tmp_path: Path) -> None:
    parted = tmp_path / "parted"
    shutil.copytree(tiny.BASE_POLICY, parted)
    weights = load_file(parted / "model.safetensors")
    (parted / "model.safetensors").unlink()
    first = {name: weight for name, weight in weights.items() if "visual" in name}
    files = {"model-1.safetensors": first, "model-2.safetensors": weights.keys() - first.keys()}
    for name, names in files.items():
        save_file({each: weights[each] for each in names}, parted / name, {"format": "pt"})
    index = {each: name for name, names in files.items() for each in names}
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (parted / "model.safetensors.index.json").write_text(json.dumps(content))
    codecs = grown.write_codecs(tmp_path / "made")
    assert main(["grow", str(parted), str(tmp_path / "out"), *map(str, codecs)]) == 0
    whole = load_family(str(grown.model())).load_model(torch.float32).state_dict()
    loaded = load_family(str(tmp_path / "out")).load_model(torch.float32).state_dict()
    assert all(torch.equal(weight, whole[name]) for name, weight in loaded.items())
    stated = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert stated["metadata"]["total_size"] == sum(
        weight.nbytes
        for name in files
        for weight in load_file(tmp_path / "out" / name).values()
    )  # fmt: skip


def test_a_tokenizer_that_has_such_tokens_is_refused_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codecs = grown.write_codecs(tmp_path)
    assert main(["grow", str(grown.model()), str(tmp_path / "out"), str(codecs[0])]) == 1
    error = capsys.readouterr().err
    assert "has <motion>, </motion>, <motion_0_0>, <motion_0_1>, ... already" in error
    assert not (tmp_path / "out").exists()


def test_a_grown_model_grows_by_another_codec(tmp_path: Path) -> None:
    save_codec(grown.bins("sensor", levels=3, codes=4), tmp_path / "sensor")
    assert main(["grow", str(grown.model()), str(tmp_path / "out"), str(tmp_path / "sensor")]) == 0
    vocabulary = read_vocabulary(tmp_path / "out")
    assert vocabulary is not None
    assert [codec.name for codec in vocabulary.codecs] == ["motion", "action", "sensor"]
    assert vocabulary.codecs[:2] == grown.vocabulary().codecs


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("there", "there is something at"),
        ("twice", "each codec needs a name of its own"),
        ("none", "is no codec: it has no codec.json"),
        ("no tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_what_can_not_grow_is_refused_by_name(
    tmp_path: Path, what: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codecs, out, model = grown.write_codecs(tmp_path), tmp_path / "out", tiny.BASE_POLICY
    if what == "there":
        out.mkdir()
    elif what == "twice":
        codecs = [codecs[0], codecs[0]]
    elif what == "none":
        codecs = [tmp_path]
    else:
        model = tmp_path / "model"
        shutil.copytree(tiny.BASE_POLICY, model)
        (model / "tokenizer.json").unlink()
        (model / "vocab.json").write_text("{}")
    assert main(["grow", str(model), str(out), *map(str, codecs)]) == 1
    assert says in capsys.readouterr().err


def test_a_tokenizer_that_does_not_give_the_codes_back_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny.BASE_POLICY, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    # What it makes of tokens is another text.
    tokenizer["decoder"] = {"type": "Replace", "pattern": {"String": "<"}, "content": "("}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    codecs = grown.write_codecs(tmp_path)
    assert main(["grow", str(model), str(tmp_path / "out"), *map(str, codecs)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"error: {model} can't grow: its tokenizer, with the codes added, does not make one token of each"
    )
    assert not (tmp_path / "out").exists()


def test_a_saved_model_keeps_its_codes_and_codecs(tmp_path: Path) -> None:
    family = grown.family()
    policy = Policy(family.load_model(torch.float32), family, temperature=1.0)
    save_final(tmp_path / "final", policy, dtype=torch.float32)
    saved = load_family(str(tmp_path / "final"))
    assert saved.vocabulary == family.vocabulary
    for file in ("codes.json", "codecs/motion/codec.json", "codecs/action/codec.json"):
        assert (tmp_path / "final" / file).read_bytes() == (grown.model() / file).read_bytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<motion><motion_0_1></motion>", "</motion>, where a code of motion, level 1 is due"),
        ("<motion><motion_1_1><motion_0_1></motion>", "where a code of motion, level 0 is due"),
        ("<motion><motion_0_1><motion_1_1>", "where a code of motion, level 0 or </motion> is due"),
        ("<motion_0_1>", "outside of a span"),
    ],
)
def test_a_completion_with_codes_in_the_wrong_place_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        grown.family().completion_ids(text)
    assert says in str(refused.value)
