"""Codes as text and back; what is wrong with a text is said."""

import numpy as np
import pytest

from grpo.codec.spec import CodecSpec
from grpo.codec.texts import close_tag, code_text, code_tokens, open_tag, parse_codes


def spec(levels: int, name: str = "motion") -> CodecSpec:
    return CodecSpec(
        name=name, kind="residual", levels=levels, codebook_size=32, downsampling=4, rate_hz=20.0,
        channels=("x",), units=("m",),
    )  # fmt: skip


TWO, ONE = spec(2), spec(1)


def test_a_step_stands_together_level_0_first() -> None:
    codes_KQ = np.array([[3, 17], [0, 31]])
    text = "<motion><motion_0_3><motion_1_17><motion_0_0><motion_1_31></motion>"
    assert code_text(TWO, codes_KQ) == text
    np.testing.assert_array_equal(parse_codes(TWO, text), codes_KQ)


def test_one_level_has_no_number_of_its_own() -> None:
    assert code_text(ONE, np.array([[3], [17]])) == "<motion><motion_3><motion_17></motion>"
    np.testing.assert_array_equal(parse_codes(ONE, "<motion><motion_3><motion_17></motion>"), [[3], [17]])


def test_all_tokens_of_a_codec_are_different() -> None:
    tokens = [*sum(code_tokens(TWO), []), open_tag(TWO), close_tag(TWO)]
    assert len(set(tokens)) == len(tokens) == 2 * 32 + 2


def test_text_around_the_span_and_spaces_between_its_tokens_do_not_matter() -> None:
    text = "<think>He sits.</think> So: <motion> <motion_0_3>\n<motion_1_17>  </motion> done"
    np.testing.assert_array_equal(parse_codes(TWO, text), [[3, 17]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no span", "0 <motion> and 0 </motion>"),
        ("<motion><motion_0_3><motion_1_17>", "1 <motion> and 0 </motion>"),
        ("</motion><motion_0_3><motion_1_17><motion>", "in this order"),
        ("<motion><motion_0_3><motion_1_4></motion>" * 2, "2 <motion> and 2 </motion>"),
        ("<motion></motion>", "0 codes of motion"),
        ("<motion><motion_0_3></motion>", "1 codes of motion are no whole steps of 2"),
        ("<motion><motion_1_3><motion_0_4></motion>", "code 0 of motion is of level 0, not <motion_1_3>"),
        ("<motion><motion_0_3><motion_0_4></motion>", "code 1 of motion is of level 1, not <motion_0_4>"),
        ("<motion><motion_0_3><motion_2_4></motion>", "code 1 of motion is of level 1, not <motion_2_4>"),
        ("<motion><motion_0_32><motion_1_4></motion>", "codes 0 to 31, not <motion_0_32>"),
        ("<motion><motion_3><motion_4></motion>", "no code of motion: <motion_3>"),
        ("<motion><sensor_0_3><motion_1_4></motion>", "no code of motion: <sensor_0_3>"),
        ("<motion><motion_0_03><motion_1_4></motion>", "no code of motion: '<motion_0_03>"),
        ("<motion><motion_0_٣><motion_1_4></motion>", "no code of motion: '<motion_0_٣>"),
        ("<motion><motion_0_3> and <motion_1_4></motion>", "no code of motion: 'and <motion_1_4>'"),
        (f"<motion><motion_0_{'9' * 10000}><motion_1_4></motion>", "no code of motion: '<motion_0_9999"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_text_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_codes(TWO, text)
    assert says in str(refused.value) and len(str(refused.value)) < 200


def test_the_code_of_several_levels_is_none_of_one() -> None:
    with pytest.raises(ValueError, match="no code of motion: <motion_0_3>"):
        parse_codes(ONE, "<motion><motion_0_3></motion>")


@pytest.mark.parametrize(
    "codes_KQ",
    [np.array([[0, 32]]), np.array([[-1, 0]]), np.zeros((0, 2), int), np.zeros((1, 3), int), np.zeros(2, int),
     np.zeros((1, 2))],
)  # fmt: skip
def test_codes_that_a_codec_has_not_are_no_text(codes_KQ: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes"):
        code_text(TWO, codes_KQ)


@pytest.mark.parametrize("filling", [" ", "<", "<motion_0_3><motion_1_3>", "<motion_", "9"])
def test_a_megabyte_is_parsed_or_refused(filling: str) -> None:
    """What takes time quadratic in the text would not end here."""
    with pytest.raises(ValueError):
        parse_codes(TWO, f"<motion>{filling * (1_000_000 // len(filling))}!</motion>")


@pytest.mark.parametrize("name", ["", "Motion", "motion_1", "1motion", "mo tion", "motion>", "bewegung-1"])
def test_a_name_that_makes_no_unambiguous_tokens_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a codec's name"):
        spec(2, name)
