"""Demonstrations, in the simulator and in the model's own words, and the data set that is made of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from grpo.actions.dataset import STREAM, WORD_M, write_dataset
from grpo.actions.demonstrations import NUM_FRAMES, cell_of, demonstrate, straight
from grpo.actions.simulator import ARMS, CHUNK_STEPS, read_state, simulator
from grpo.actions.words import Words
from grpo.codec.streams import read_stream
from grpo.media.frame_table import frame_table


@pytest.mark.parametrize("name", ARMS)
def test_demonstrations_do_the_task_which_nothing_else_does(name: str):
    arm = simulator(name)
    shown = [each for each in (demonstrate(arm, seed) for seed in range(4)) if each is not None]
    assert len(shown) == 4
    assert all(arm.execute(each.state, each.actions_TC).is_success for each in shown)
    assert not any(arm.execute(each.state, 0 * each.actions_TC).is_success for each in shown)
    # A chunk that is right for one start is wrong for the next one.
    others = [*shown[1:], shown[0]]
    swapped = [
        arm.execute(each.state, other.actions_TC).is_success
        for each, other in zip(shown, others, strict=True)
    ]
    assert sum(swapped) <= 1


@pytest.mark.parametrize("name", ARMS)
def test_words_can_say_what_is_demonstrated(name: str):
    arm, words = simulator(name), Words(word_m=WORD_M[name])
    for seed in range(4):
        shown = demonstrate(arm, seed)
        assert shown is not None
        text = words.say(shown.actions_TC)
        assert len(text.split()) == CHUNK_STEPS
        assert arm.execute(shown.state, words.read(text)).is_success


def test_a_straight_way_is_slow_at_its_ends():
    # 10 t^3 - 15 t^4 + 6 t^5 at the quarters: 0.103515625, 0.5, 0.896484375, 1.
    steps_T2 = straight(np.array([1.0, 0.0]), 4)
    np.testing.assert_allclose(steps_T2[:, 0], [0.103515625, 0.396484375, 0.396484375, 0.103515625])
    np.testing.assert_array_equal(steps_T2[:, 1], 0)


def test_a_goals_cell_is_its_column_and_its_row():
    corners_22 = ((-0.4, 0.0), (0.4, 1.6))
    # Cells are 0.1 m wide and 0.2 m high.
    assert cell_of(np.array([-0.39, 0.01]), corners_22) == "0 0"
    assert cell_of(np.array([0.05, 1.5]), corners_22) == "4 7"
    assert cell_of(np.array([0.9, -0.3]), corners_22) == "7 0"


def test_words_move_by_their_length():
    words = Words(word_m=0.03, word_steps=2)
    # Two steps for each word, of half its way.
    np.testing.assert_allclose(
        words.read("left stay up"), [[-0.015, 0]] * 2 + [[0, 0]] * 2 + [[0, 0.015]] * 2, atol=1e-12
    )
    assert words.say(np.array([[0.01, 0.0]] * 6)) == "right right stay"
    # 0.06 m to the left and 0.07 m down: the nearest after two of each; a third one down would end 0.02 m too low.
    assert Words(word_m=0.03).say(np.array([[-0.01, -0.07 / 6]] * 6)) == "left left down down stay stay"
    with pytest.raises(ValueError, match="'forward' is no direction: they are stay, left, right, up, down"):
        words.read("left forward")
    with pytest.raises(ValueError, match="3 action steps are no whole number of words of 2"):
        words.say(np.zeros((3, 2)))


def test_a_data_set_has_all_that_a_reward_needs(tmp_path: Path):
    folder = write_dataset(tmp_path / "reacher", arm="reacher", num_train=2, num_heldout=1, seed=0)
    for split, num in (("train", 2), ("heldout", 1)):
        codes, words = (
            [json.loads(line) for line in (folder / f"{split}{kind}.jsonl").read_text().splitlines()]
            for kind in ("", "_words")
        )
        assert [each["target"] for each in codes] == ["<action>"] * num
        assert [each | {"target": None} for each in codes] == [each | {"target": None} for each in words]
        for record in words:
            stream = read_stream(folder / record["streams"][STREAM])
            assert stream.values_TC.shape == (CHUNK_STEPS, 2) and stream.units == ("m", "m")
            table = frame_table(str(folder / record["video"]))
            assert len(table.times_s) == NUM_FRAMES and table.end_s == pytest.approx(stream.start_s)
            arm = simulator("reacher")
            assert arm.execute(read_state(record["simulator"]), stream.values_TC).is_success
            assert record["target"] == Words(word_m=WORD_M["reacher"]).say(stream.values_TC)


def test_splits_and_seeds_are_of_different_starts_and_the_same_seed_of_the_same(tmp_path: Path):
    def starts(name: str, seed: int) -> list[str]:
        folder = write_dataset(tmp_path / name, arm="reacher", num_train=2, num_heldout=2, seed=seed)
        lines = [
            line
            for split in ("train", "heldout")
            for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        return [json.dumps(json.loads(line)["simulator"]) for line in lines]

    first = starts("a", 0)
    assert len({*first, *starts("b", 1)}) == 8
    assert starts("c", 0) == first


def test_an_arm_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no arm 'hand': there are reacher, pusher"):
        write_dataset(tmp_path / "x", arm="hand", num_train=1, num_heldout=1, seed=0)
