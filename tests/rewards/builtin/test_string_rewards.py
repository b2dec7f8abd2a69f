"""All rewards that look at text or tokens alone, over hostile completions: finite or None, in linear time."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from grpo.commands.check import check_reward
from grpo.groups import Sample, Task
from rewards import hostile
from rewards.hostile import make_group, synthetic_samples
from rewards.scoring.loading import find_function
from rewards.scoring.runner import load_reward
from rewards.scoring.specs import RewardSpec

KNOBS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("accuracy", "choice", "number", "text", "ocr", "rouge", "regression")},
    **{name: {} for name in ("relative_accuracy", "graded_accuracy", "video_r1_accuracy", "video_r1_format")},
    **{name: {} for name in ("format", "format_lenient", "tag_order", "tags_once")},
    **{name: {} for name in ("length_window", "repetition", "consistency")},
    "language": {"min_letters": 1},
    "exact_set": {"partial": True},
    "overlong": {"max_tokens": 1024, "cache_tokens": 256},
    "cosine_length": {"max_tokens": 1024},
    "brevity": {"target_tokens": 64},
}
LOWEST = {"overlong": -1, "repetition": -1, "cosine_length": -10}
HIGHEST = {"overlong": 0, "repetition": 0, "cosine_length": 2}


def one_sample_of_each_task() -> list[Sample]:
    """The synthetic ones, and of the tasks that they lack."""
    others: dict[Task, str] = {"ocr": "a red cup", "regression": "4.5", "span": "3.0-4.5"}
    samples = synthetic_samples({})
    return samples + [
        replace(samples[-1], id=f"probe-{task}", task=task, answer=answer) for task, answer in others.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOBS)
def test_hostile_completions_get_a_number_in_range_or_none(name: str) -> None:
    reward = load_reward(name, RewardSpec(args=KNOBS[name]))
    groups = [group for sample in one_sample_of_each_task() for group in hostile.groups_of(sample)]
    findings, tracebacks = check_reward(reward, groups)
    assert all(finding.ok for finding in findings), (findings, tracebacks)
    low, high = next(each.detail for each in findings if each.check == "range").split(";")[0].split(" to ")
    assert float(low) >= LOWEST.get(name, 0) and float(high.split(",")[0]) <= HIGHEST.get(name, 1)


N = 30_000
LONG = {
    "spaces": "<think>" + " " * N + "</think><answer>B</answer>",
    "spaces in the answer": "<think>x</think><answer>B" + " " * N + "</answer>",
    "gaps": f"<think>answer is{' ' * (N // 2)}B</think><answer>the answer is{' ' * (N // 2)})</answer>",
    "gap in a fraction": "<think>x</think><answer>1" + " " * N + "/2</answer>",
    "open answers": "<answer>" * (N // 8),
    "closed thoughts": "<think>" + "</think> " * (N // 9) + "</answer>",
    "one word": "<think>x</think><answer>" + "y" * N + "</answer>",
    "words": "<think>x</think><answer>" + "a red " * (N // 6) + "</answer>",
    "items": "<think>x</think><answer>" + "a," * (N // 2) + "</answer>",
    "digits": "<think>x</think><answer>" + "1," * (N // 2) + "</answer>",
    "brackets": "<think>x</think><answer>" + r"\frac{" * (N // 6) + "</answer>",
    "delimiters": "<think>x</think><answer>" + "$" * N + "</answer>",
    "answers in thought": "<think>" + "answer is the " * (N // 14) + "</think><answer>B</answer>",
    "sentences": "<think>" + "B. not " * (N // 7) + "</think><answer>B</answer>",
    "right to left": "<think>" + "שלום \u202e" * (N // 6) + "</think><answer>\u202eB</answer>",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOBS)
def test_30_000_characters_take_no_longer_than_their_length_explains(name: str) -> None:
    # Quadratic would be 10^9 steps, most of a minute. The slowest linear one takes about 0.03 s on a free core.
    fn = find_function(name, key="k")
    for sample in one_sample_of_each_task():
        for label, text in LONG.items():
            rollout = make_group([text], sample).rollouts[0]
            start_s = time.process_time()
            fn([rollout] if fn.reward_calling == "group" else rollout, **KNOBS[name])  # pyright: ignore[reportFunctionMemberAccess]
            assert time.process_time() - start_s < 1, (label, sample.id)


def test_rewards_load_their_libraries_only_when_called() -> None:
    modules = ", ".join(
        f"rewards.builtin.{name}" for name in ("answers", "format", "length", "reasoning", "video_r1")
    )
    heavy = ("torch", "transformers", "sympy", "math_verify", "rouge_score", "nltk", "py3langid")
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.builtin.extras import import_extra

    import_extra.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    rollout = make_group(["<answer>42</answer>"], synthetic_samples({})[3]).rollouts[0]
    with pytest.raises(ImportError, match=r"math_verify.*pip install egogrpo\[rewards\]"):
        find_function("number", key="k")(rollout)
    assert find_function("number", key="k")(rollout, latex=False) == 1.0
    assert find_function("accuracy", key="k")(rollout) == 1.0
