"""The `judge` against bad endpoints, each a real HTTP server on loopback, and against vLLM's."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from rewards.builtin.judge import Judge
from rewards.builtin.judge.client import JudgeError, retry_after_s
from tests.support.judge_server import (
    Answer,
    JudgeServer,
    Request,
    digit_of_the_answer,
    free_port,
    knobs,
    rollout,
    says,
    score,
    scores,
    vllm_server,
)

ROOT = Path(__file__).parents[3]
KEY = "sk-test-1234567890"


def failing_with(answer: Answer, **changed: Any) -> tuple[str, Judge, list[Request]]:
    """The message of a judge whose server always answers so."""
    with JudgeServer(lambda request, number: answer) as server:
        judge = Judge(**knobs(server.base_url, **changed))
        with pytest.raises(JudgeError) as raised:
            score(judge, rollout())
    return str(raised.value), judge, server.requests


def test_a_refused_connection_is_retried_then_named() -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    judge = Judge(**knobs(address))
    with pytest.raises(JudgeError) as raised:
        score(judge, rollout())
    assert address in str(raised.value) and "ConnectError" in str(raised.value)
    assert judge.stats()["retries"] == 2 and judge.stats()["requests"] == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 302])
def test_a_refused_request_is_named_and_not_retried(status: int) -> None:
    message, _, requests = failing_with(Answer(status=status, body='{"error": "no such model"}'))
    assert f"{status} " in message and "no such model" in message and len(requests) == 1
    assert ("api_key_env is not set" in message) == (status in (401, 403))


def test_a_wrong_key_is_named_but_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    message, judge, requests = failing_with(
        Answer(status=401, body=f"Incorrect API key provided: {KEY}"), api_key_env="JUDGE_KEY"
    )
    assert requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "the key in JUDGE_KEY" in message and KEY not in message and KEY not in repr(vars(judge))


ESCAPED = KEY.replace("-", "\\u002d")


@pytest.mark.parametrize(
    "spelling", [KEY, ESCAPED, ESCAPED.replace("u002d", "u002D"), ESCAPED.replace("\\", "\\\\")]
)
@pytest.mark.parametrize("status", [400, 500, 200])
def test_a_server_that_repeats_the_key_gets_it_into_no_message(
    spelling: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    answer = Answer(status=status, body=f'{{"error": "Authorization: Bearer {spelling}, no such user"}}')
    message, _, _ = failing_with(answer, api_key_env="JUDGE_KEY")
    assert "Bearer [key], no such user" in message and "1234567890" not in message


def test_a_reply_that_repeats_the_key_is_quoted_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    message, _, _ = failing_with(says(f"You sent Bearer {KEY}."), api_key_env="JUDGE_KEY")
    assert "'You sent Bearer [key].'" in message and "1234567890" not in message


def test_an_account_without_credit_is_not_retried() -> None:
    body = json.dumps({"error": {"code": "insufficient_quota"}})
    message, _, requests = failing_with(Answer(status=429, body=body))
    assert "insufficient_quota" in message and len(requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_retried(status: int) -> None:
    answers = [Answer(status=status, body="busy"), Answer(status=status, body="busy"), says("5")]
    with JudgeServer(lambda request, number: answers[number]) as server:
        judge = Judge(**knobs(server.base_url))
        assert score(judge, rollout()) == 1.0
    assert judge.stats()["retries"] == 2


def test_a_429_storm_pauses_all_requests_as_long_as_the_endpoint_asks() -> None:
    storm = Answer(status=429, body="slow down", headers={"Retry-After": "0.4"})
    with JudgeServer(
        lambda request, number: storm if number < 4 else digit_of_the_answer(request, 0)
    ) as server:
        judge = Judge(**knobs(server.base_url, max_concurrent=4, retries=5))
        values = scores(judge, [rollout(f"4 {i}") for i in range(12)])
    assert values == [0.75] * 12
    at_s = [request.at_s for request in server.requests]
    assert len(at_s) == 16 and at_s[4] - at_s[3] > 0.3  # nothing is sent into the pause, by anybody


def test_an_endless_429_storm_is_a_failure_and_never_a_0() -> None:
    message, judge, requests = failing_with(Answer(status=429, body="slow down"))
    assert "429" in message and "(2 retries)" in message and len(requests) == 3
    assert judge.stats()["failed"] == 1


def test_a_pause_of_an_hour_is_a_failure_at_once() -> None:
    message, _, requests = failing_with(Answer(status=503, body="", headers={"Retry-After": "3600"}))
    assert "a pause of 3600 s" in message and len(requests) == 1


def test_retry_after_is_a_number_a_date_or_nothing() -> None:
    assert [retry_after_s(text) for text in (None, "", "soon", "-3", "9" * 400, "1.5")] == [
        0,
        0,
        0,
        0,
        0,
        1.5,
    ]
    assert 25 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 31
    assert retry_after_s(formatdate(time.time() - 30, usegmt=True)) == 0


@pytest.mark.parametrize(
    "body",
    [
        "<html>Welcome to the proxy</html>", "", '{"choices": []}', '{"choices": [{}]}', "[]", "null", "[" * 100_000,
        '{"choices": [{"message": {"content": 5}}]}', b"\xff\xfe\x00", '{"error": {"message": "overloaded"}}',
    ],
)  # fmt: skip
def test_garbage_with_status_200_is_retried_then_named(body: str | bytes) -> None:
    message, judge, _ = failing_with(Answer(body=body))
    assert "no chat completion" in message and judge.stats()["retries"] == 1  # each one is billed
    assert "\n" not in message and len(message) < 400


def test_an_outage_costs_a_bounded_number_of_requests_whatever_the_number_of_completions() -> None:
    with JudgeServer(lambda request, number: Answer(status=500, body="out of order")) as server:
        judge = Judge(**knobs(server.base_url, max_concurrent=4, retries=4))
        failures = scores(judge, [rollout(f"4 {i}") for i in range(64)])
        assert all(isinstance(each, JudgeError) and "500" in str(each) for each in failures)
        assert len(server.requests) <= (4 + 2) * 5 and judge.stats()["failed"] == 64
        num_requests = len(server.requests)
        with pytest.raises(JudgeError, match="out of order .an outage: nothing is sent for 30 s"):
            score(judge, rollout("4 later"))
        assert len(server.requests) == num_requests


def test_after_an_outage_one_attempt_each_until_there_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.builtin.judge.client.OUTAGE_PAUSE_S", 0.0)
    works = [False] * 6 + [False, True] + [False, False, True]
    with JudgeServer(
        lambda request, number: says("5") if works[number] else Answer(status=503, body="")
    ) as server:
        judge = Judge(**knobs(server.base_url, retries=1, max_concurrent=1))
        outcomes = [scores(judge, [rollout(f"{i}")])[0] for i in range(5)]
        assert [isinstance(each, JudgeError) for each in outcomes] == [True, True, True, True, False]
        with pytest.raises(JudgeError, match="1 retries"):  # it may try again
            score(judge, rollout("5"))
    assert len(server.requests) == 10


def test_one_request_that_the_server_cannot_stand_is_no_outage() -> None:
    def respond(request: Request, number: int) -> Answer:
        return (
            Answer(status=500, body="too hot")
            if "hot" in request.prompt.rsplit("[begin", 1)[1]
            else says("5")
        )

    with JudgeServer(respond) as server:
        judge = Judge(**knobs(server.base_url))
        for _ in range(4):
            with pytest.raises(JudgeError, match="2 retries"):
                score(judge, rollout("hot"))
            assert score(judge, rollout("mild")) == 1.0


def test_a_server_that_hangs_up_is_retried() -> None:
    with JudgeServer(lambda request, number: replace(says("2"), hang_up=number == 0)) as server:
        assert score(Judge(**knobs(server.base_url)), rollout()) == 0.25


def test_a_slow_server_is_given_up_after_the_time_limit() -> None:
    start_s = time.monotonic()
    message, _, requests = failing_with(replace(says("4"), delay_s=2.0), request_timeout_s=0.3, retries=1)
    assert "no reply within 0.3 s (1 retries)" in message and len(requests) == 2
    assert time.monotonic() - start_s < 3


@pytest.mark.slow
def test_a_model_served_by_vllm_marks_answers(tmp_path: Path) -> None:
    """The shipped policy knows nothing of marks, so that vLLM is told to let it write one of the digits only."""
    digits = {"structured_outputs": {"choice": ["1", "2", "3", "4", "5"]}}
    with vllm_server(ROOT / "grpo" / "demo" / "base_policy", tmp_path / "server.log") as base_url:
        arguments = knobs(base_url, cache=str(tmp_path / "judge.sqlite"), request_timeout_s=60)
        judge = Judge(**arguments, extra_body=digits)
        rollouts = [rollout(each) for each in ("a cat", "a dog", "nothing", "a cat", "a table, no, two")]
        values = scores(judge, rollouts)
        with pytest.raises(JudgeError, match="no score from 1 to 5 in two replies"):
            score(Judge(**arguments), rollouts[0])
        with pytest.raises(JudgeError, match=r"404 .*does not exist"):
            score(Judge(**{**arguments, "model": "other"}), rollouts[0])
    assert set(values) <= {0.0, 0.25, 0.5, 0.75, 1.0} and values[0] == values[3]
    stats = judge.stats()
    assert (stats["requests"], stats["shared"], stats["failed"]) == (4, 1, 0)
    assert stats["prompt_tokens"] > 4 * 500 and 4 <= stats["completion_tokens"] <= 12
    again = Judge(**arguments, extra_body=digits)  # the server is gone
    assert scores(again, rollouts) == values and again.stats()["requests"] == 0
