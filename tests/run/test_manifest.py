"""What a manifest says of the code and the model of a run, and what it keeps to itself."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from grpo.run import manifest
from grpo.run.manifest import git_state, hardware, make_manifest, model_fingerprint

SECRET = "hf_planted5ecret"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a commit, in which one file has changed since."""
    for command in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "loss.py").write_text("beta = 1\n")
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    for command in (["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_commit_alone_says_all_of_unchanged_code(checkout: Path) -> None:
    state = git_state(checkout / "code")
    assert len(state["commit"]) == 40 and not state["changes"]
    assert (state["diff"], state["untracked"]) == ("", {})


def test_what_differs_from_the_commit_is_kept_and_can_be_applied(checkout: Path) -> None:
    file = checkout / "code" / "loss.py"
    file.write_text("beta = 2\n")
    (checkout / "new.py").write_text("x")
    (checkout / "ignored.txt").write_text("x")
    for name in ("noprefix", "mnemonicPrefix"):
        subprocess.run(["git", "config", f"diff.{name}", "true"], cwd=checkout, check=True)
    state = git_state(checkout / "code")
    assert state["changes"] and "-beta = 1\n+beta = 2\n" in state["diff"]
    assert state["untracked"] == {"new.py": hashlib.sha256(b"x").hexdigest()}
    subprocess.run(["git", "checkout", "-q", "."], cwd=checkout, check=True)
    subprocess.run(["git", "apply"], input=state["diff"].encode(), cwd=checkout, check=True)
    assert file.read_text() == "beta = 2\n"


def test_secrets_of_the_environment_are_blotted_out_of_the_difference(checkout: Path) -> None:
    (checkout / "code" / "loss.py").write_text(f"token = '{SECRET}'\nuser = 'somebody'\nmode = 'k'\n")
    environment = {"HF_TOKEN": SECRET, "USER": "somebody", "KEYMAP": "k"}
    diff = git_state(checkout, environment)["diff"]
    assert SECRET not in diff and "+token = '<HF_TOKEN>'" in diff
    assert "+user = 'somebody'" in diff and "+mode = 'k'" in diff


def test_secrets_are_known_by_their_names_and_shapes_and_blotted_out_whole(checkout: Path) -> None:
    """One secret begins with another, and some stand in no variable of the environment."""
    shaped = ["ghp_" + "a1" * 18, "hf_" + "Ab" * 17, "sk-proj-" + "x_1-" * 8]
    address = "postgres://me:h!dden@host/db"
    environment = {
        "A_KEY": "abcdefgh", "B_KEY": "abcdefgh-and-more", "MY_AUTH": "letmein-now", "GH_PAT": "patpatpat",
        "GIT_AUTHOR_NAME": "Somebody", "PATH": "/usr/bin",
    }  # fmt: skip
    lines = [
        *environment.values(),
        *shaped,
        address,
        "hf_model_of_a_very_long_name = ask-somebody-about-this-one",
    ]
    (checkout / "code" / "loss.py").write_text("\n".join(lines))
    added = [line[1:] for line in git_state(checkout, environment)["diff"].splitlines() if line[0] == "+"][1:]
    assert added == [
        "<A_KEY>", "<B_KEY>", "<MY_AUTH>", "<GH_PAT>", "Somebody", "/usr/bin", *["<token>"] * 3,
        "postgres://<credentials>@host/db", lines[-1],
    ]  # fmt: skip


def test_files_that_git_does_not_have_stop_no_run_and_are_counted(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that leads nowhere can be read no more than a file of somebody else, or one that has just been removed."""
    (checkout / "a").symlink_to("nowhere")
    (checkout / "b").symlink_to("b")
    for name in "cd":
        (checkout / name).write_text("x")
    monkeypatch.setattr(manifest, "MAX_UNTRACKED", 3)
    state = git_state(checkout)
    assert state["untracked"] == {
        "a": "unreadable", "b": "unreadable", "c": hashlib.sha256(b"x").hexdigest(),
    }  # fmt: skip
    assert state["num_untracked"] == 4 and state["changes"]
    (checkout / ".git" / "index").write_bytes(b"damaged")
    assert git_state(checkout)["diff"] == "unreadable"


def test_a_long_difference_is_cut_and_told_apart_by_its_digest(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_DIFF_BYTES", 150)
    states = []
    for end in "ab":
        (checkout / "code" / "loss.py").write_text("x\n" * 1000 + end)
        states.append(git_state(checkout))
    one, other = states
    for state in states:
        assert state["diff"].endswith("(cut off here)\n") and len(state["diff"]) < 200
    assert one["diff_sha256"] != other["diff_sha256"]


def test_outside_of_a_checkout_nothing_is_said_of_git(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}


def test_a_manifest_names_machine_and_versions() -> None:
    found = make_manifest(data_files=[], settings={"seeds": {"run": 7}})
    assert found["seeds"] == {"run": 7} and found["packages"]["torch"]
    assert found["hardware"] == hardware()
    assert (
        found["hardware"]["num_cpus"] >= 1
        and found["hardware"]["memory_gib"] > 0
        and found["hardware"]["cpu"]
    )


def test_another_model_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    first = model_fingerprint(str(tmp_path))
    assert model_fingerprint(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(bytes(101))
    assert model_fingerprint(str(tmp_path)) != first
