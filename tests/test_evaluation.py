"""Held-out scores, and what is left of them about changed frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.benchmarks.benchmark import Benchmark
from grpo.config.load import load_config
from grpo.data import load_samples
from grpo.evaluation import EvalSet, Evaluator, accuracy_of
from grpo.groups import Sample
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.media.sampling import MediaSettings
from grpo.rollout import Sampling
from grpo.run.recorder import held_out_score
from rewards import Counterfactual
from rewards.hostile import make_group
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec
from tests.support import scenes, tiny
from tests.support.scenes import RecordingEngine


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    from grpo.demo.clips import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=0, num_heldout=24, seed=3)
    config = load_config(
        [f"data.train=[{{path: {folder}/heldout.jsonl}}]", "run_dir=x", "num_steps=1", "model.path=x"]
        + ["rewards={accuracy: {}}"]
    )
    return load_samples(config.data.train)


@pytest.fixture(scope="module")
def loader() -> Iterator[ClipLoader]:
    settings = MediaSettings(max_frames=16, min_pixels=784, max_pixels=3136)
    reader = ClipReader(settings=settings, patches=tiny.family().patches)
    loader = ClipLoader(reader, cache_gib=1, num_workers=0, timeout_s=60)
    yield loader
    loader.close()


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine(tiny.policy())


def evaluator(
    loader: ClipLoader, *sets: EvalSet, reward: str = "accuracy", batch_prompts: int = 64
) -> Evaluator:
    return Evaluator(
        sets=sets,
        loader=loader,
        render=scenes.RENDER,
        rewards=load_rewards({reward: RewardSpec()}),
        sampling=Sampling(group_size=1, max_new_tokens=24, temperature=1.0),
        sampled=False,
        seed=0,
        max_prompt_tokens=200,
        batch_prompts=batch_prompts,
        blind=("blank", "shuffled"),
    )


def row_of(evaluator: Evaluator, engine: RecordingEngine) -> dict[str, float]:
    found = evaluator.run(engine)
    assert found.lost == found.failures == ()
    return found.metrics.reduced()


def test_a_policy_that_looks_loses_its_accuracy_without_frames(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    row = row_of(evaluator(loader, EvalSet(name="held", samples=samples, num_blind=24)), engine)
    assert row["eval/held/accuracy"] > 0.85
    assert row["eval/held/blank/accuracy"] < 0.55  # chance is 0.25
    assert row["eval/held/shuffled/accuracy"] < row["eval/held/accuracy"]
    for frames in ("blank", "shuffled"):
        left = row["eval/held/accuracy"] - row[f"eval/held/{frames}/drop"]
        assert left == pytest.approx(row[f"eval/held/{frames}/accuracy"])


def test_a_process_with_fewer_samples_has_as_many_batches_as_the_others(
    samples: list[Sample], loader: ClipLoader
) -> None:
    own = evaluator(loader, batch_prompts=2)
    for count in (0, 3, 4):
        eval_set = EvalSet(name="held", samples=samples[:count], largest_share=5)
        batches = list(own._batches(eval_set))
        assert len(batches) == 3 and sum(len(batch.prompts) for batch in batches) == count


def test_the_slice_is_asked_again_about_changed_frames_and_only_the_slice(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    row_of(evaluator(loader, EvalSet(name="held", samples=samples[:6], num_blind=2)), engine)
    (plain, how), (changed, how_changed) = engine.calls
    assert how.temperature == how_changed.temperature == 0
    assert [prompt.sample.id for prompt in plain] == [sample.id for sample in samples[:6]]
    assert [prompt.sample.id for prompt in changed] == [
        samples[0].id,
        samples[0].id,
        samples[1].id,
        samples[1].id,
    ]
    for index in (0, 1):
        before, blank, shuffled = (
            prompt.clip for prompt in (plain[index], changed[2 * index], changed[2 * index + 1])
        )
        assert before is not None and blank is not None and shuffled is not None
        assert not blank.frames_FHWC.any()
        assert not np.array_equal(shuffled.frames_FHWC, before.frames_FHWC)
        assert sorted(frame.tobytes() for frame in shuffled.frames_FHWC) == sorted(
            frame.tobytes() for frame in before.frames_FHWC
        )


def test_few_questions_are_asked_at_once_and_no_more_than_the_next_few_clips_are_held(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[Sequence[Sample]] = []
    monkeypatch.setattr(loader, "prefetch", asked_for.append)
    held = EvalSet(name="held", samples=samples[:8])
    few = row_of(evaluator(loader, held, batch_prompts=3), engine)
    assert [len(prompts) for prompts, _ in engine.calls if prompts] == [2, 3, 3]
    counts = [len(ahead) for ahead in asked_for]  # each time this request's and the next one's
    assert counts == [2, 3, 3, 3, 3]
    assert few == row_of(evaluator(loader, held), engine)


def test_the_drop_is_that_of_the_same_questions(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    wrong = [replace(sample, answer="ABCD"[("ABCD".index(sample.answer) + 1) % 4]) for sample in samples[4:]]
    mixed = [*samples[:4], *wrong]  # the policy is right on the first four, and wrong on all others
    row = row_of(evaluator(loader, EvalSet(name="held", samples=mixed, num_blind=4)), engine)
    assert row["eval/held/accuracy"] < 0.5
    assert row["eval/held/blank/accuracy"] + row["eval/held/blank/drop"] == 1.0


def test_accuracy_is_measured_blind_whatever_the_rewards(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    held = EvalSet(name="held", samples=samples[:4], num_blind=4)
    row = row_of(evaluator(loader, held, reward="format"), engine)
    assert "eval/held/accuracy" not in row and "eval/held/blank/accuracy" in row


def test_answers_about_changed_frames_are_judged_as_the_runs_accuracy_judges() -> None:
    number, ocr = (
        tiny.sample("n", task="number", answer="42"),
        tiny.sample("o", task="ocr", answer="a red cup"),
    )
    near, two = (
        make_group([f"<answer>{text}</answer>"], sample).rollouts[0]
        for text, sample in (("41", number), ("a red", ocr))
    )
    tolerant = load_rewards({"accuracy": RewardSpec(args={"tolerance": 1})})
    graded = load_rewards({"accuracy": RewardSpec(fn="graded_accuracy")})
    elsewhere = load_rewards({"right": RewardSpec(fn="graded_accuracy")})
    assert [accuracy_of(each)(near) for each in (tolerant, graded, elsewhere)] == [1.0, 0.0, 0.0]
    assert [accuracy_of(each)(two) for each in (tolerant, graded, elsewhere)] == [
        0.0,
        pytest.approx(2 / 3),
        0.0,
    ]
    assert accuracy_of(load_rewards({"accuracy": RewardSpec(fn="number")}))(two) is None


def test_a_benchmarks_rules_score_the_same_answers(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    lenient = Benchmark(
        name="lenient", reader="jsonl", official=lambda sample, text: 100.0 * (text in "ABCD")
    )
    held = EvalSet(name="held", samples=samples[:6], benchmark=lenient)
    row = row_of(replace(evaluator(loader, held), blind=()), engine)
    assert len(engine.calls) == 1
    assert row["eval/held/ours"] == row["eval/held/accuracy"] > 0.8
    assert (row["eval/held/official"], row["eval/held/unparsed"]) == (100.0, 0.0)


def test_a_benchmarks_own_prompt_is_scored_by_its_rules_alone(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    own: Any = {"tags": (), "system": None, "user": lambda sample: f"{sample.question} Explain."}
    render = partial(tiny.family().render, template="", option="", **own)
    held = EvalSet(
        name="held", samples=samples[:4], benchmark=Benchmark(name="b", reader="jsonl"), render=render
    )
    row = row_of(replace(evaluator(loader, held), sampled=True), engine)
    ((prompts, _),) = engine.calls
    assert "Explain." in prompts[0].text and not prompts[0].tags
    assert {*row} == {f"eval/held/{name}" for name in ("ours", "official", "unparsed", "lost")} | {
        "eval/reward_failures"
    }


def test_the_best_checkpoint_may_be_by_one_metric() -> None:
    least = ["run_dir=x", "num_steps=1", "model.path=x", "rewards={accuracy: {}}", "data.train=[{path: x}]"]
    held = [*least, "data.eval=[{path: questions.json, name: ego, benchmark: egoschema}]"]
    config = load_config([*held, "eval.best_metric=eval/ego/official"])
    row = {"eval/ego/accuracy": 0.5, "eval/ego/official": 0.75}
    assert held_out_score(row, config) == (0.75, "eval/ego/official of ego: questions.json")
    assert held_out_score({"loss": 1.0}, config) is None
    with pytest.raises(ValueError, match=r"no metric eval/ego/official; there are eval/ego/accuracy"):
        held_out_score({"eval/ego/accuracy": 0.5}, config)
    for metric, says in (("eval/eg/ours", "of none of the held-out sets"), ("eval/ego/right", "there is no")):
        with pytest.raises(ValueError, match=rf"eval\.best_metric: .*{says}"):
            load_config([*held, f"eval.best_metric={metric}"])
    with pytest.raises(ValueError, match="only held-out sets are of a benchmark"):
        load_config([*least, "data.train=[{path: x, benchmark: egoschema}]"])
    with pytest.raises(ValueError, match="official_prompt is for a set with a benchmark"):
        load_config([*least, "data.eval=[{path: x, official_prompt: true}]"])


def test_questions_without_a_clip_are_left_out(loader: ClipLoader, engine: RecordingEngine) -> None:
    text_only = EvalSet(name="text", samples=[tiny.sample("a"), tiny.sample("b")], num_blind=2)
    row = row_of(evaluator(loader, text_only), engine)
    assert "eval/text/accuracy" in row and not any("blank" in key for key in row)


def test_nothing_more_is_asked_unless_it_is_configured(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    held = EvalSet(name="held", samples=samples[:4], num_blind=4)
    row = row_of(replace(evaluator(loader, held), blind=()), engine)
    assert len(engine.calls) == 1 and not any("blank" in key for key in row)


def test_each_question_has_a_seed_of_its_own_in_all_evaluations(
    samples: list[Sample], loader: ClipLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    class Seeing(RecordingEngine):
        def generate(self, prompts: Any, sampling: Any, seeds: Any, on_group: Any = None) -> Any:
            asked.extend((prompt.sample.id, seed) for prompt, seed in zip(prompts, seeds, strict=True))
            return super().generate(prompts, sampling, seeds, on_group)

    for _ in range(2):
        row_of(evaluator(loader, EvalSet(name="heldout", samples=samples[:6])), Seeing(tiny.policy()))
    assert asked[:6] == asked[6:] and len({*asked}) == len({seed for _, seed in asked}) == 6


def test_the_same_frames_are_shown_at_every_evaluation(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    """Otherwise a curve would move with the shuffling."""
    held = evaluator(loader, EvalSet(name="held", samples=samples[:4], num_blind=4))
    assert row_of(held, engine) == row_of(held, engine)
    changed = [[p.clip.frames_FHWC.tobytes() for p in asked if p.clip] for asked, _ in engine.calls]
    assert changed[1] == changed[3]


def test_rewards_that_compare_are_given_what_they_compare_with(
    samples: list[Sample], loader: ClipLoader, engine: RecordingEngine
) -> None:
    held = EvalSet(name="held", samples=samples[:8])
    compares = replace(
        evaluator(loader, held, reward="blank_contrast"),
        counterfactuals=(Counterfactual("blank"),),
        sampled=True,
    )
    row = row_of(compares, engine)
    assert row["eval/held/blank_contrast"] > 0.3 and "eval/held/sampled/blank_contrast" in row


def test_an_unknown_way_of_changing_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval\.blind.*'blnk'"):
        load_config(["eval.blind=[blnk]", "run_dir=x", "num_steps=1", "model.path=x"])
    with pytest.raises(ValueError, match=r"eval\.blind_samples must be at least 0"):
        load_config(
            ["eval.blind_samples=-1", "run_dir=x", "num_steps=1", "model.path=x", "rewards={accuracy: {}}"]
            + ["data.train=[{path: x}]"]
        )
