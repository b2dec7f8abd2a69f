"""The built-in `judge`: what it asks, many requests at once, cache, budget and knobs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.builtin.judge import Judge
from rewards.builtin.judge.client import JudgeError
from rewards.builtin.judge.store import JudgeStore
from rewards.hostile import COMPLETIONS, groups, make_group
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec
from tests.support.judge_server import (
    SAMPLE,
    Answer,
    JudgeServer,
    Request,
    digit_of_the_answer,
    free_port,
    knobs,
    recorded,
    rollout,
    says,
    score,
    scores,
)

ROOT = Path(__file__).parents[3]


def test_what_a_policy_writes_is_never_read_as_template(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{{json}} {question}\n{prediction}\n{completion}")
    hostile = "{answer} {{question}} {0} %s ${x} \\g<1> {prediction.__class__}"
    with recorded(prompt=str(tmp_path / "mine.txt"), scale=[1, 5]) as (judge, sent):
        score(judge, rollout(hostile, replace(SAMPLE, question="Is {answer} a field?")))
    assert sent[0].prompt.startswith("{json} Is {answer} a field?\n[begin response ")
    assert sent[0].prompt.count(hostile) == 2


def test_openeqa_shows_question_answers_and_response() -> None:
    with recorded() as (judge, sent):
        assert score(judge, rollout("{a} dog")) == 0.75  # (4 - 1) / 4
    marked = sent[0].prompt.split("Now mark this one.")[1]
    assert "Question: What is on the chair?\n" in marked
    assert "Right answer: a cat\nExtra answers: a grey cat; the cat\n" in marked
    assert "\n{a} dog\n[end response " in marked
    assert "I look." not in marked
    assert sent[0].path == "/v1/chat/completions"
    assert {**sent[0].body, "messages": None} == {
        "model": "tiny", "temperature": 0.2, "seed": 1234, "max_tokens": 32, "messages": None,
    }  # fmt: skip


def test_openeqa_judges_no_sentence_that_was_cut_off_and_another_prompt_does(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{prediction}")
    answer = "A cat. It is 1.5 m long. It looks at the"
    with recorded() as (judge, sent):
        score(judge, rollout(answer))
        score(judge, rollout("2.5 m"))
    assert "\nA cat. It is 1.5 m long.\n[end response" in sent[0].prompt and "\n2.5 m\n[end" in sent[1].prompt
    with recorded(prompt=str(tmp_path / "mine.txt"), scale=[1, 5], temperature=0.7) as (judge, sent):
        score(judge, rollout(answer))
    assert f"\n{answer}\n" in sent[0].prompt
    assert sent[0].body["temperature"] == 0.7 and "seed" not in sent[0].body


def test_a_choice_question_shows_the_options_text() -> None:
    with recorded() as (judge, sent):
        choice = replace(SAMPLE, task="choice", options=("red", "blue"), answer="B", columns={})
        score(judge, rollout("B", choice))
    assert "Options: A: red; B: blue\nRight answer: B: blue\nExtra answers: none\n" in sent[0].prompt


def test_extra_answers_that_are_no_list_of_texts_name_the_sample() -> None:
    with recorded() as (judge, sent):
        with pytest.raises(ValueError, match="made-up:1: extra_answers"):
            score(judge, rollout(sample=replace(SAMPLE, columns={"extra_answers": "a cat"})))
    assert not sent


def test_an_unreadable_reply_is_asked_for_again_more_firmly() -> None:
    replies = ["It is rather good.", "4"]
    with JudgeServer(lambda request, number: says(replies[number])) as server:
        judge = Judge(**knobs(server.base_url))
        assert score(judge, rollout()) == 0.75
    first, second = [request.prompt for request in server.requests]
    assert second.startswith(first) and "nothing but one number from 1 to 5" in second
    assert judge.stats()["asked_again"] == 1 and judge.stats()["retries"] == 0


def test_two_unreadable_replies_are_a_failure_and_are_not_kept() -> None:
    with JudgeServer(lambda request, number: says(["Good", None, "Good", "6"][number])) as server:
        judge = Judge(**knobs(server.base_url))
        with pytest.raises(JudgeError, match="no score from 1 to 5 in two replies: 'Good', then ''"):
            score(judge, rollout())
        with pytest.raises(JudgeError, match="then '6'"):
            score(judge, rollout())
    assert judge.stats()["failed"] == 2


def test_a_reply_cut_at_the_token_limit_is_not_read() -> None:
    with JudgeServer(lambda request, number: says("1", finish_reason="length")) as server:
        with pytest.raises(JudgeError, match=r"'1' \(cut at max_tokens\)"):
            score(Judge(**knobs(server.base_url)), rollout())


def test_a_completion_without_an_answer_gets_0_and_costs_nothing() -> None:
    with recorded() as (judge, sent):
        bare = [COMPLETIONS[label] for label in ("empty", "cut off", "two answers", "invisible answer")]
        assert scores(judge, make_group(bare, SAMPLE).rollouts) == [0.0] * 4
    assert not sent


def test_the_probe_of_a_run_costs_one_request() -> None:
    with JudgeServer(lambda request, number: says("4")) as server:
        spec = RewardSpec(fn="judge", args={"base_url": server.base_url, "model": "tiny"})
        with closing(load_rewards({"judge": spec})) as rewards:
            rewards.probe()
    assert len(server.requests) == 1


def test_without_needs_answer_every_completion_is_judged(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Mark this:\n{completion}")
    with recorded(prompt=str(tmp_path / "mine.txt"), scale=[1, 5], needs_answer=False) as (judge, sent):
        assert score(judge, make_group(["no tags"], SAMPLE).rollouts[0]) == 0.75
    assert "\nno tags\n" in sent[0].prompt


def test_hostile_completions_and_lone_surrogates_can_be_sent() -> None:
    with recorded(max_chars=500) as (judge, sent):
        rollouts = [each for group in groups() for each in group.rollouts] + [rollout("\ud800 cat")]
        values = scores(judge, rollouts)
    assert set(values) == {0.0, 0.75}
    assert len(sent) == judge.stats()["requests"] == len({request.prompt for request in sent})
    assert max(len(request.prompt) for request in sent) < 3500


# Many at once


def test_requests_run_at_once_up_to_the_limit_and_keep_their_order() -> None:
    def slow(request: Request, number: int) -> Answer:
        answer = digit_of_the_answer(request, number)
        return replace(answer, delay_s=0.05)

    with JudgeServer(slow) as server:
        judge = Judge(**knobs(server.base_url, max_concurrent=4))
        answers = [f"{1 + i % 5} of {'x' * i}" for i in range(12)]
        assert scores(judge, [rollout(answer) for answer in answers]) == [i % 5 / 4 for i in range(12)]
    assert server.max_in_flight == 4


def test_equal_answers_share_one_request() -> None:
    with JudgeServer(lambda request, number: replace(says("5"), delay_s=0.05)) as server:
        judge = Judge(**knobs(server.base_url))
        assert scores(judge, [rollout()] * 8) == [1.0] * 8
        assert scores(judge, [rollout()]) == [1.0]
    stats = judge.stats()
    # In memory the cache ends with `close`, so the second time costs a request.
    assert (len(server.requests), stats["shared"], stats["cached"]) == (2, 7, 0)


def test_a_cancelled_rollout_does_not_cancel_its_equals() -> None:
    with JudgeServer(lambda request, number: replace(says("5"), delay_s=0.3)) as server:
        judge = Judge(**knobs(server.base_url))

        async def cancel_the_first() -> list[float | BaseException]:
            tasks = [asyncio.ensure_future(judge(rollout())) for _ in range(3)]
            while not server.requests:
                await asyncio.sleep(0.01)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        first, *others = asyncio.run(cancel_the_first())
    assert isinstance(first, asyncio.CancelledError) and others == [1.0, 1.0]
    assert len(server.requests) == 1


def test_after_the_last_cancelled_rollout_the_request_is_given_up() -> None:
    with JudgeServer(lambda request, number: replace(says("5"), delay_s=5 if number == 0 else 0)) as server:
        judge = Judge(**knobs(server.base_url, max_concurrent=1))

        async def cancel_then_ask() -> float:
            task = asyncio.ensure_future(judge(rollout()))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return await judge(rollout())

        start_s = time.monotonic()
        assert asyncio.run(cancel_then_ask()) == 1.0
        assert time.monotonic() - start_s < 4  # it did not wait for the first reply
    assert len(server.requests) == 2


def test_requests_per_minute_are_spread_out() -> None:
    with JudgeServer(digit_of_the_answer) as server:
        judge = Judge(**knobs(server.base_url, requests_per_minute=1200))  # one every 50 ms
        scores(judge, [rollout(f"3 {i}") for i in range(6)])
    at_s = sorted(request.at_s for request in server.requests)
    assert at_s[-1] - at_s[0] > 5 * 0.05 - 0.1


# Cache and budget


def test_what_was_paid_for_once_is_free_in_a_resumed_run(tmp_path: Path) -> None:
    cache = str(tmp_path / "runs" / "judge.sqlite")
    with JudgeServer(digit_of_the_answer) as server:
        first = Judge(**knobs(server.base_url, cache=cache))
        rollouts = [rollout("2 cats"), rollout("5 cats")]
        assert scores(first, rollouts) == [0.25, 1.0]
    # Another port, and nobody there: the address is not part of what is cached.
    second = Judge(**knobs(f"http://127.0.0.1:{free_port()}/v1", cache=cache))
    assert scores(second, rollouts) == [0.25, 1.0]
    assert second.stats()["cached"] == 2 and second.stats()["requests"] == 0


@pytest.mark.parametrize(
    "changed",
    [{"model": "other"}, {"temperature": 0.5}, {"extra_body": {"seed": 1}}, {"max_tokens": 8}],
)
def test_another_model_or_request_is_asked_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(lambda request, number: says("4")) as server:
        score(Judge(**knobs(server.base_url, cache=cache)), rollout())
        score(Judge(**knobs(server.base_url, cache=cache, **changed)), rollout())
    assert len(server.requests) == 2


PROCESS = """
import asyncio, sys
sys.path.insert(0, ".")
from rewards.builtin.judge.store import JudgeStore
store = JudgeStore(sys.argv[1])
taken = 0
for i in range(200):
    store.keep(f"{sys.argv[2]} {i}", model="m", reply=str(i))
    taken += store.take_request(max_requests=500, max_tokens=None)
print(taken)
"""


def test_processes_share_a_cache_file_and_its_budget(tmp_path: Path) -> None:
    path = str(tmp_path / "judge.sqlite")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, path, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    taken = [int(process.communicate(timeout=120)[0]) for process in processes]
    store = JudgeStore(path)
    assert sum(taken) == 500 and store.spent() == (500, 0)
    assert all(store.find(f"{n} {i}") == str(i) for n in range(4) for i in range(200))


def test_a_cache_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Not a database. " * 100)
    with pytest.raises(ValueError, match=r"cache: .*notes\.txt can't be used: file is not a database"):
        Judge(**knobs("http://127.0.0.1:1/v1", cache=str(path)))


def test_a_spent_budget_of_requests_fails_by_name_and_leaves_the_cache_free() -> None:
    with JudgeServer(lambda request, number: says("4")) as server:
        judge = Judge(**knobs(server.base_url, max_requests=2))

        async def one_after_the_other() -> list[float | BaseException]:
            answers = ["a", "b", "c", "a", "d"]
            return [
                (await asyncio.gather(judge(rollout(each)), return_exceptions=True))[0] for each in answers
            ]

        values = asyncio.run(one_after_the_other())
    assert [values[0], values[1], values[3]] == [0.75] * 3
    for failure in (values[2], values[4]):
        assert isinstance(failure, JudgeError) and "max_requests is 2" in str(failure)
    assert len(server.requests) == 2 and judge.stats()["failed"] == 2


def test_a_spent_budget_of_tokens_fails_by_name_also_after_a_restart(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(lambda request, number: says("4", tokens=(90, 10))) as server:
        arguments = knobs(server.base_url, cache=cache, max_tokens_total=200)
        first = Judge(**arguments)
        assert [score(first, rollout(each)) for each in "ab"] == [0.75, 0.75]
        with pytest.raises(JudgeError, match="200 tokens, max_tokens_total is 200"):
            score(Judge(**arguments), rollout("c"))
    assert first.stats()["prompt_tokens"] == 180 and first.stats()["completion_tokens"] == 20


def test_a_budget_of_tokens_that_nobody_counts_is_a_failure() -> None:
    with JudgeServer(lambda request, number: says("4", tokens=None)) as server:
        assert score(Judge(**knobs(server.base_url)), rollout()) == 0.75
        with pytest.raises(JudgeError, match="no usage of tokens, so max_tokens_total"):
            score(Judge(**knobs(server.base_url, max_tokens_total=1000)), rollout())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url: '127.0.0.1:8000' is no address"),
        ({"base_url": "http://host:port/v1"}, "base_url"),
        ({"base_url": "http://user:secret@host/v1"}, "base_url: holds a user"),
        ({"api_key_env": "MISSING_KEY"}, "MISSING_KEY is not set"),
        ({"api_key_env": "sk-secret"}, "api_key_env: is no name"),
        ({"api_key_env": "BROKEN_KEY"}, "BROKEN_KEY holds spaces"),
        ({"retries": -1}, "retries: must be 0 or more, not -1"),
        ({"retries": "three"}, "retries: 'three' is no number"),
        ({"requests_per_minute": 0}, "requests_per_minute: must be above 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"extra_body": {"messages": []}}, "extra_body: messages is the judge's own"),
        ({"extra_body": {"when": Path()}}, "extra_body"),
        ({"scale": [1, 1]}, "scale"),
    ],
)
def test_a_wrong_knob_is_refused_at_construction(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("BROKEN_KEY", "sk-secret two")
    with pytest.raises(ValueError) as raised:
        Judge(**knobs("http://127.0.0.1:1/v1") | changed)
    assert message in str(raised.value) and "secret" not in str(raised.value)


def test_a_null_in_extra_body_takes_a_field_out() -> None:
    with recorded(extra_body={"max_tokens": None, "max_completion_tokens": 99}) as (judge, sent):
        score(judge, rollout())
    assert "max_tokens" not in sent[0].body and sent[0].body["max_completion_tokens"] == 99


def test_a_judge_works_in_one_event_loop_after_another() -> None:
    with recorded() as (judge, sent):
        assert [asyncio.run(judge(rollout(each))) for each in "ab"] == [
            0.75,
            0.75,
        ]  # without `close` in between
    assert len(sent) == 2


def test_importing_the_judge_is_cheap() -> None:
    heavy = ("httpx", "torch", "yaml", "openai")
    code = f"import sys, rewards.builtin.judge; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"
