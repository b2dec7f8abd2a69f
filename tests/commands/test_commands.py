"""The command `egogrpo`: what it lists, what it finds, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo.commands.__main__ import COMMANDS, OPTIONAL, main
from tests.support import tiny

HEAVY = ("torch", "transformers", "vllm", "pandas", "scipy", "numpy", "omegaconf")


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("egogrpo", scripts["egogrpo"], "console_scripts").load() is main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_fits_a_screen_and_names_the_training_run_and_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= COMMANDS.keys()
    run = {"train", "doctor", "warm", "check", "annotate", "sweep", "report", "replay"}
    assert {*COMMANDS} == run | {"evaluate", "export", "codec", "ask", "serve"}
    assert "make demo" in text and "egogrpo train --config_file" in text
    assert all(
        (tiny.ROOT / path).exists() for path in re.findall(r"\b(?:grpo|launch|configs)/[\w/.]*\b", text)
    )


def test_the_help_imports_nothing_heavy() -> None:
    code = f"import sys; from grpo.commands.__main__ import main; main([]); print(*{{*sys.modules}} & {{*{HEAVY!r}}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


def test_a_mistyped_argument_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    """It takes seconds, and ten times as many on a busy machine; transformers too."""
    config = f"{tiny.ROOT}/configs/demo.yaml"
    model = tiny.ROOT / "grpo/demo/base_policy"
    mistyped = {
        f"doctor {config} optim.lrr=1": "did you mean optim.lr?",
        "doctor nowhere.yaml": "no file nowhere.yaml",
        "doctor --compare nowhere nowhere": "nowhere: no such folder",
        f"warm {config} media.fsp=1": "did you mean media.fps?",
        f"warm {config} model.path=./nowhere media.cache_disk_gib=1": "no model folder",
        "check nowhere.py:right": "no file nowhere.py",
        "annotate nowhere.jsonl out.jsonl --model clip": "no such dataset file",
        "sweep nowhere.yaml": "no file nowhere.yaml",
        "report nowhere": "nowhere: no such folder",
        "replay nowhere": "nowhere: no such folder",
        "evaluate nowhere.yaml": "no file nowhere.yaml",
        f"evaluate {tiny.ROOT}/configs/eval/egoschema.yaml modell=a": "did you mean model?",
        "export merge nowhere --out out": "nowhere has no adapter_config.json",
        f"export interpolate {model} ./nowhere --alpha 0.5 --out out": "no model folder",
        f"export interpolate {model} {model} --alpha 2 --out out": "must lie in [0, 1]",
        "codec train nowhere.yaml": "no file nowhere.yaml",
        "codec grow ./nowhere out codec": "no model folder",
        "ask ./nowhere clip.mp4 When?": "clip.mp4: no such file",
        f"ask {model} {config} When? media.fsp=1": "did you mean media.fps?",
        f"serve {model} media.fsp=1": "did you mean media.fps?",
        "serve ./nowhere": "no model folder",
    }
    # The options of `train` are read by accelerate's own parser, which imports torch alone.
    assert {words.split()[0] for words in mistyped} == COMMANDS.keys() - {"train"}
    code = "import shlex, sys\nfrom grpo.commands.__main__ import main\nfor line in sys.stdin:\n"
    code += "    print('>', line, end='', flush=True)\n    try: status = main(shlex.split(line))\n"
    code += "    except SystemExit as stop: status = stop.code\n"
    code += "    assert status and 'torch' not in sys.modules, status\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join([*mistyped, ""]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    answers = dict(each.split("\n", 1) for each in done.stdout.removeprefix("> ").split("\n> "))
    for words, answer in mistyped.items():
        assert answer in answers[words], answers[words]


def test_an_unknown_command_is_told_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter", "configs/demo.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'docter' (did you mean 'doctor'?); there are train, doctor, ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("export crad", "(did you mean 'card'?)"),
        ("export card run --reslts x.json", "--reslts x.json (did you mean '--results'?)"),
        ("report --tekst run", "unrecognized arguments: --tekst (did you mean '--text'?)"),
        ("sweep ablation.yaml --slurm slrm", "(did you mean 'slurm'?)"),
        ("report --zzz run", "unrecognized arguments: --zzz"),
    ],
)
def test_a_mistyped_word_is_told_the_one_that_was_meant(
    words: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"egogrpo {words.split()[0]}: error: ") and error.endswith(answer)


@pytest.mark.slow  # the doctor and the annotator import torch and transformers
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_under_its_own_name(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as ended:
        status = ended.code
    assert status == 0
    assert capsys.readouterr().out.startswith(f"usage: egogrpo {command} ")


def test_what_commands_may_lack_is_their_extra() -> None:
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = {
        re.split(r"[^\w-]", requirement)[0].replace("-", "_"): extra
        for extra in ("commands", "codecs")
        for requirement in extras[extra]
    }
    assert listed == OPTIONAL


@pytest.mark.parametrize(
    ("command", "package"), [("replay", "pandas"), ("replay", "jinja2"), ("sweep", "scipy")]
)
def test_a_command_that_lacks_a_package_names_the_extra(command: str, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from grpo.commands.__main__ import main; "
    code += f"sys.exit(main([{command!r}, 'none']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == f"error: egogrpo {command} needs {package}: pip install egogrpo[commands]"
    )


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that is sent the signal which it is given."""

    def run(arguments: list[str]) -> int:
        os.kill(os.getpid(), int(arguments[0]))
        time.sleep(60)
        return 0

    monkeypatch.setitem(sys.modules, "stopped_command", SimpleNamespace(main=run))
    monkeypatch.setitem(COMMANDS, "stopped", ("stopped_command", ""))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_so_in_one_line(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stopped", str(int(number))]) == 130
    assert capsys.readouterr().err == "stopped: egogrpo stopped\n"


@pytest.mark.parametrize("command", [["-m", "grpo.commands"], ["grpo/train.py"]], ids=" ".join)
def test_a_command_whose_output_is_read_in_part_ends_in_silence(command: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, *command, "--help"]
    done = subprocess.run(
        command, cwd=tiny.ROOT, stdout=writes, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.usefixtures("capfd")  # a file with a number, as an output is
def test_a_broken_pipe_of_the_commands_own_is_no_reader_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: list[str]) -> int:
        raise BrokenPipeError("a worker has ended")

    monkeypatch.setitem(sys.modules, "broken_command", SimpleNamespace(main=run))
    monkeypatch.setitem(COMMANDS, "broken", ("broken_command", ""))
    with pytest.raises(BrokenPipeError, match="a worker has ended"):
        main(["broken"])


@pytest.mark.parametrize("file", ["rewards.py", "rewards/__init__.py"])
def test_a_module_of_the_users_that_is_called_rewards_hides_nothing(file: str, tmp_path: Path) -> None:
    own = tmp_path / file
    own.parent.mkdir(exist_ok=True)
    own.write_text("def right(completions, **kwargs):\n    return [1.0 for _ in completions]\n")
    check = [sys.executable, "-m", "grpo.commands", "check"]

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*check, name], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run(f"{file}:right")
    assert done.returncode == 0, done.stdout + done.stderr
    if file == "rewards.py":
        refused = run("rewards:right")
        assert (
            refused.returncode == 1
            and "(did you mean 'rewards.py:right'?)" in refused.stdout + refused.stderr
        )
