"""The rules of code tokens: as a machine, as tensors, and in a model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from grpo.codec.allowed_tokens import AllowedTokens
from grpo.codec.codec import save_codec
from grpo.codec.vocabulary import OUTSIDE, assign, read_vocabulary, write_vocabulary
from tests.support import grown

# Of "motion": <motion> 10, </motion> 11, level 0 is 12 to 14, level 1 15 to 17. Of "action": 18, 19, 20 to 21.
RULES = assign(
    [grown.bins("motion", levels=2, codes=3).spec, grown.bins("action", levels=1, codes=2).spec], 10
)
NUM_TOKENS = 24


@pytest.mark.parametrize(
    "token_ids",
    [
        [1, 2, 3],
        [10, 12, 15, 11],
        [10, 12, 17, 14, 15, 11, 5],
        [18, 20, 21, 19],
        [18, 20, 19, 10, 13, 16, 11, 0],
    ],
)
def test_spans_of_whole_steps_are_allowed_among_other_tokens(token_ids: list[int]) -> None:
    RULES.check(token_ids)


@pytest.mark.parametrize(
    ("token_ids", "says"),
    [
        ([12], "token 0 is a code of motion, level 0, outside of a span"),
        ([1, 11], "token 1 is </motion>, outside of a span"),
        ([10, 11], "token 1 is </motion>, where a code of motion, level 0 is due"),
        ([10, 15], "token 1 is a code of motion, level 1, where a code of motion, level 0 is due"),
        ([10, 12, 13], "token 2 is a code of motion, level 0, where a code of motion, level 1 is due"),
        ([10, 12, 11], "token 2 is </motion>, where a code of motion, level 1 is due"),
        ([10, 12, 15, 1], "token 3 is no code (1), where a code of motion, level 0 or </motion> is due"),
        ([10, 12, 15, 10], "token 3 is <motion>, where"),
        ([10, 20], "token 1 is a code of action, where"),
        ([18, 20, 11], "token 2 is </motion>, where a code of action or </action> is due"),
        ([10, 12, 15], "it ends where a code of motion, level 0 or </motion> is due"),
        ([10, 12], "it ends where a code of motion, level 1 is due"),
    ],
)
def test_a_wrong_level_number_or_place_is_named(token_ids: list[int], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        RULES.check(token_ids)
    assert str(refused.value).startswith(says)


def test_the_tensors_forbid_what_the_machine_forbids() -> None:
    allowed = AllowedTokens(RULES)
    previous_T = torch.arange(NUM_TOKENS)
    probs_TV = allowed.forbid(torch.zeros(NUM_TOKENS, NUM_TOKENS), previous_T).softmax(-1)
    for previous in range(NUM_TOKENS):
        state = RULES.state_after(previous)
        follows = [RULES.allows(state, token) for token in range(NUM_TOKENS)]
        assert (probs_TV[previous] > 0).tolist() == follows
        # what is left of the probability is spread over the others
        assert probs_TV[previous].sum().item() == pytest.approx(1)
    assert RULES.state_after(11) == OUTSIDE


def test_entropy_of_what_is_allowed_and_its_gradient_are_finite() -> None:
    logits = torch.zeros(1, NUM_TOKENS, requires_grad=True)
    logps = AllowedTokens(RULES).forbid(logits, torch.tensor([10])).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum()
    entropy.backward()
    # three codes of level 0
    assert entropy.item() == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_a_folder_gives_the_same_vocabulary(tmp_path: Path) -> None:
    codec = save_codec(grown.bins("motion", levels=2, codes=3), tmp_path / "codecs" / "motion")
    written = assign([codec.spec], 10)
    write_vocabulary(tmp_path, written)
    assert read_vocabulary(tmp_path) == written
    content = json.loads((tmp_path / "codes.json").read_text())["codecs"]["motion"]
    levels = [{"first": 12, "count": 3}, {"first": 15, "count": 3}]
    assert content == {"open": 10, "close": 11, "levels": levels, "digest": codec.spec.digest}


def test_a_folder_without_codes_has_no_vocabulary(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def test_a_copy_of_a_grown_model_without_its_codes_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(grown.model() / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(
        ValueError, match=r"has tokens of codes, as <action_0>, and no codes\.json: copy that"
    ):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    "added",
    [
        ["<think>", "</think>", "<tool_call>", "</tool_call>"],
        ["<think>", "</think>", "<slot_0>", "<slot_0_0>"],
        ["<slot>", "</slot>", "<slot_1>", "<|slot_0|>"],
    ],
)
def test_a_tokenizer_with_other_tokens_is_of_a_model_without_codes(tmp_path: Path, added: list[str]) -> None:
    content = {"added_tokens": [{"id": number, "content": text} for number, text in enumerate(added)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path) is None


@pytest.mark.parametrize("code", ["<slot_0>", "<slot_0_0>"])
def test_a_code_beside_both_tags_is_a_code(tmp_path: Path, code: str) -> None:
    content = {"added_tokens": [{"id": 1, "content": text} for text in (code, "</slot>", "<slot>")]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=2))
    with pytest.raises(ValueError, match=f"as {code}, and no"):
        read_vocabulary(tmp_path)


def test_another_codec_than_the_model_was_grown_with_is_refused_by_its_folder(tmp_path: Path) -> None:
    own = tmp_path / "codecs" / "motion"
    write_vocabulary(tmp_path, assign([save_codec(grown.bins("motion", levels=2, codes=3), own).spec], 10))
    shutil.rmtree(own)
    with pytest.raises(ValueError, match=r"codecs/motion is no codec: it has no codec\.json"):
        read_vocabulary(tmp_path)
    save_codec(grown.bins("motion", levels=2, codes=3, high=2.0), own)
    with pytest.raises(ValueError, match=r"codecs/motion is another codec than the one .* grown with"):
        read_vocabulary(tmp_path)


def test_other_units_than_the_model_was_grown_with_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "codecs" / "motion"
    write_vocabulary(tmp_path, assign([save_codec(grown.bins("motion", levels=2, codes=3), own).spec], 10))
    file = own / "codec.json"
    described = json.loads(file.read_text())
    described["spec"]["units"] = ["cm", "cm"]
    file.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"codecs/motion is another codec than the one .* grown with"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"codecs": {"motion": {"open": 1}}}', '{"codecs": []}'])
def test_a_damaged_file_of_codes_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "codes.json").write_text(content)
    with pytest.raises(ValueError, match=r"codes\.json is damaged"):
        read_vocabulary(tmp_path)
