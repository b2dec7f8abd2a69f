"""Answers by likelihood, clips that are shared out and the score so far, without a whole evaluation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tqdm import tqdm

from grpo.benchmarks import find_benchmark
from grpo.benchmarks.benchmark import StoredAnswer
from grpo.benchmarks.changed import all_asked, share_of
from grpo.commands.evaluate.asking import Asker
from grpo.commands.evaluate.command import Evaluated, Running
from grpo.config.evaluate import load_evaluation
from grpo.groups import Prompt, Sample
from grpo.media.clip import ClipSource
from grpo.packing import Segment, build_row
from grpo.policy.model import Policy
from grpo.rollout import Sampling, as_rollout
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.startup.answering import Answering
from tests.support import scenes, tiny


def ask_about_scenes(
    texts: tuple[str, ...], count: int = 2, show: Callable[[Prompt], object] = lambda _: None
) -> tuple[list[Prompt], list[StoredAnswer], Policy]:
    """Questions about scenes, the likeliest of some texts to each, and the policy that was asked."""
    policy = tiny.policy()
    prompts = scenes.prompts(count)
    of_sample = {prompt.sample.id: prompt for prompt in prompts}
    loader: Any = _Loader()
    model = Answering(
        family=tiny.family(),
        policy=policy,
        engine=TransformersEngine(policy),
        loader=loader,
        render=lambda sample, _: of_sample[sample.id],
        sampling=Sampling(group_size=1, max_new_tokens=8, temperature=0.0),
        max_prompt_tokens=1000,
    )
    found: list[StoredAnswer] = []
    asker = Asker(
        model=model, write=found.append, seed=0, batch_prompts=8, candidates=lambda _: texts, show=show
    )
    with tqdm(disable=True) as bar:
        asker.ask([(prompt.sample, "") for prompt in prompts], bar)
    return prompts, found, policy


def answered(texts: tuple[str, ...]) -> tuple[list[StoredAnswer], list[list[float]]]:
    """The likeliest of some texts to questions about scenes, and each text's loss in a row of its own."""
    prompts, found, policy = ask_about_scenes(texts)
    family, losses = tiny.family(), []
    for prompt in prompts:
        alone = []
        for text in texts:
            ids = family.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            rollout = as_rollout(prompt, text=text, token_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
            segment = Segment(prompt=prompt, rollouts=(rollout,), advantages=(0.0,))
            alone.append(-policy(build_row([segment], family)).logps_T.mean().item())
        losses.append(alone)
    return found, losses


class _Loader:
    """Scenes have their frames already."""

    def prefetch(self, sources: object) -> None: ...

    def get(self, source: object) -> None: ...


def test_the_likeliest_candidate_is_the_one_of_the_lowest_mean_loss():
    texts = ("<think>i am not sure</think>", "red", "<answer>B</answer>")
    found, losses = answered(texts)
    for answer, alone in zip(found, losses, strict=True):
        assert answer.losses == pytest.approx(alone, abs=1e-4)
        assert answer.text == "ABC"[alone.index(min(alone))] and answer.finish == "stop"


def test_pictures_for_the_page_are_made_while_the_engine_works():
    """In the thread that makes the next prompts; in the engine's own it would wait for them."""
    shown: list[tuple[str, threading.Thread]] = []
    prompts, _, _ = ask_about_scenes(
        ("A", "B"), show=lambda prompt: shown.append((prompt.sample.id, threading.current_thread()))
    )
    assert [name for name, _ in shown] == [prompt.sample.id for prompt in prompts]
    assert threading.current_thread() not in [thread for _, thread in shown]


def question(name: str, video: str) -> Sample:
    return tiny.sample(name, clip_source=ClipSource(video=video))


def test_a_process_has_all_questions_about_a_clip():
    samples = [question(f"q{index}", f"{index % 3}.mp4") for index in range(9)]
    asked = all_asked(samples, blind=True, rotations=True)
    shares = [share_of(asked, rank=rank, num_processes=2) for rank in range(2)]
    videos = [{sample.clip_source for sample, _ in share} for share in shares]
    assert not videos[0] & videos[1] and sum(map(len, shares)) == len(asked) == 9 * 5


def test_the_bar_shows_the_score_of_all_answers_that_are_there():
    """Those of an earlier session too; not those to changed or left-out questions."""
    samples = [tiny.sample(name) for name in "abc"]
    evaluated = Evaluated(
        config=load_evaluation(
            ["out_dir=x", "benchmark=jsonl", "data.path=x", "model.path=x", "prompt=direct"]
        ),
        benchmark=find_benchmark("jsonl"),
        every=samples,
        samples=samples,
    )

    def says(name: str, text: str, variant: str = "") -> StoredAnswer:
        return StoredAnswer(sample_id=name, index=0, text=text, finish="stop", variant=variant)

    bar = tqdm(disable=True)
    running = Running(evaluated, bar, [says("a", "A"), says("b", "B", "blind"), says("another", "B")])
    assert bar.postfix == "score 1.000"
    running.add(says("b", "B"))
    assert bar.postfix == "score 0.500"
    running.add(says("c", "I can't tell"))
    assert bar.postfix == "score 0.333"
