"""A whole run that is given secrets in every way there is, and writes none of them anywhere."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from grpo.run.folder import RunDir, read_rows
from grpo.run.stopping import failure_line
from tests.support import runs
from tests.support.judge_server import Answer, JudgeServer, Request, says
from tests.support.planted import files_with

SECRETS = {
    "JUDGE_KEY": "sk-planted-judge-2b7f",
    "LOGIN_PASSWORD": "planted-argument-91ce",
    "HF_TOKEN": "hf_plantedHub4d1e",
    "WANDB_API_KEY": "5ecre7" * 6 + "abcd",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-77aa",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret-0f3b",
    "VLLM_API_KEY": "planted-server-key-e5d2",
    "ANY_VARIABLE": "planted-anything-c0de",
}
PLUGIN = '''
from rewards import reward

@reward
def guarded(rollout, *, password, user):
    """It fails at some completions, and its message repeats what it was given."""
    if "WORD" in rollout.text:
        raise RuntimeError(f"login with {password!r} failed")
    return 0.5
'''
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def respond(request: Request, number: int) -> Answer:
    """Every third request is refused, in words that repeat its key."""
    if number % 3 == 2:
        said = {"error": {"message": f"Incorrect API key provided: {request.headers['Authorization']}"}}
        return Answer(body=json.dumps(said), status=401)
    return says("5")


def plugin(folder: Path, word: str) -> list[str]:
    """The settings of a reward that fails at completions with a word."""
    (folder / "plugin.py").write_text(PLUGIN.replace("WORD", word))
    return [
        f"rewards.guarded.fn={folder}/plugin.py:guarded",
        "rewards.guarded.weight=0.1",
        "rewards.guarded.args.password=${oc.env:LOGIN_PASSWORD}",
        "rewards.guarded.args.user=${oc.env:ANY_VARIABLE,nobody}",
    ]


def test_the_line_that_a_run_ends_with_names_the_variable_and_not_its_value(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGIN_PASSWORD", SECRETS["LOGIN_PASSWORD"])
    with pytest.raises(
        SystemExit, match="rewards.guarded: RuntimeError: login with '<LOGIN_PASSWORD>' failed"
    ):
        runs.run(tmp_path / "run", clips, *plugin(tmp_path, ""))
    runs.reset_process_state()


def test_a_traceback_that_is_kept_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGIN_PASSWORD", SECRETS["LOGIN_PASSWORD"])
    failure_line(RuntimeError(f"login with {SECRETS['LOGIN_PASSWORD']!r} failed"), RunDir(tmp_path), 0)
    assert "login with '<LOGIN_PASSWORD>' failed" in (tmp_path / "traceback_0.txt").read_text()


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret_that_it_was_given(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trackers = [name for name, package in TRACKERS.items() if find_spec(package)]
    with JudgeServer(respond) as server:
        judge = (
            f"base_url: '{server.base_url}', model: m, api_key_env: JUDGE_KEY, cache: {tmp_path}/judge.sqlite"
        )
        rows = runs.run(
            tmp_path / "runs" / "one",
            clips,
            "num_steps=2",
            f"log.trackers={trackers}",
            "log.pictures_every_steps=1",
            "rewards_max_error_frac=1.0",
            "rewards.judge={fn: judge, weight: 0.1, args: {" + judge + "}}",
            *plugin(tmp_path, "not sure"),
        )
    assert rows[-1]["step"] == 2 and any(
        "Bearer sk-planted" in each.headers["Authorization"] for each in server.requests
    )
    failures = {
        each["reward"] for each in read_rows(tmp_path / "runs/one/failures.jsonl") if each["kind"] == "reward"
    }
    assert failures == {"guarded", "judge"}
    config = (tmp_path / "runs/one/config.yaml").read_text()
    assert "${oc.env:LOGIN_PASSWORD}" in config and "${oc.env:ANY_VARIABLE,nobody}" in config
    assert (tmp_path / "judge.sqlite").exists() and (tmp_path / "runs/clip_cache").exists()
    (tmp_path / "plugin.py").unlink()
    assert files_with(SECRETS.values(), tmp_path) == []
    said = capfd.readouterr()
    assert [secret for secret in SECRETS.values() if secret in said.out + said.err] == []
