"""Every command on the pages: cheap ones are run, the others go through their own parsers and config loaders.

A command that no check knows fails the test, so that none stands on a page unchecked.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from grpo import train
from grpo.benchmarks import find_benchmark
from grpo.codec.settings import CodecConfig, contradictions
from grpo.commands.__main__ import COMMANDS
from grpo.commands.__main__ import main as egogrpo
from grpo.commands.sweeps.plan import load_sweep, plan_runs
from grpo.config.evaluate import load_evaluation
from grpo.config.load import load_config, load_settings
from tests.support import pages

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*(\.\.\.)?")
"""What a reader puts something else for: `CONFIG...`, `NAME`."""
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
RUN_QUICKLY = ("check", "replay")


class Parsed(Exception):
    """A command's parser has taken its arguments; what would come next is not done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def parsed(main: Callable[[Sequence[str]], object], words: list[str]) -> argparse.Namespace:
    """The arguments as the command's own parser reads them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, name)

            def stop(
                self: argparse.ArgumentParser, *args: object, original=original, **options: object
            ) -> None:
                raise Parsed(original(self, *args, **options))

            patch.setattr(argparse.ArgumentParser, name, stop)
        with pytest.raises(Parsed) as caught:
            main(words)
    return caught.value.arguments


def has_placeholder(words: Sequence[str]) -> bool:
    return any(PLACEHOLDER.fullmatch(word) for word in words)


def check_egogrpo(words: list[str]) -> None:
    if words in ([], ["--help"], ["COMMAND"]):
        assert egogrpo(["--help"]) == 0
        return
    name, *rest = words
    assert name in COMMANDS
    if not rest:
        return
    arguments = parsed(import_module(COMMANDS[name][0]).main, rest)
    if has_placeholder(rest):
        return
    if name in ("doctor", "warm"):
        # The doctor of a machine, and of two runs, takes no config.
        if not (vars(arguments).get("gpu") or vars(arguments).get("compare")):
            load_config(arguments.configs)
    elif name == "evaluate":
        find_benchmark(load_evaluation(arguments.configs).benchmark)
    elif name == "codec" and rest[0] == "train":
        load_settings(arguments.settings, CodecConfig, contradictions)
    elif name == "sweep":
        plan_runs(load_sweep(arguments.file, arguments.overrides))
    elif name in RUN_QUICKLY:
        assert egogrpo([name, *rest]) == 0


def check_accelerate(words: list[str]) -> None:
    assert words[0] == "launch"
    if words[1:] in (["grpo/train.py"], ["grpo/train.py", "CONFIG..."]):
        return
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words[1:]))
    if arguments.module:
        assert arguments.training_script == "grpo.commands"
        check_egogrpo(arguments.training_script_args)
        return
    assert arguments.training_script == "grpo/train.py" and Path(arguments.config_file).is_file()
    if not has_placeholder(arguments.training_script_args):
        load_config(arguments.training_script_args)


def check_make(words: list[str]) -> None:
    """`make` itself says whether it has the target; `--dry-run` runs nothing."""
    subprocess.run(["make", "--dry-run", *words], check=True, capture_output=True)


def check_python(words: list[str]) -> None:
    if words == ["grpo/train.py", "--help"]:
        train.main(["--help"])
    elif words[0] != "-m":
        compile(Path(words[0]).read_text(), words[0], "exec")
    else:
        assert find_spec(words[1]) is not None
        assert all(Path(word).exists() for word in words[2:] if word.startswith("tests"))


def check_pip(words: list[str]) -> None:
    assert words[:2] == ["install", "-e"]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", words[2])
    assert extras is not None
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert {*extras[1].split(",")} <= project["optional-dependencies"].keys()


def check_sbatch(words: list[str]) -> None:
    script = words.index("launch/slurm/train.sbatch")
    options, arguments = words[:script], words[script + 1 :]
    assert options[::2] == ["--nodes", "--gpus-per-node"] and Path(words[script]).is_file()
    load_config(arguments)


def check_tool(name: str) -> Callable[[list[str]], None]:
    """A check for a program of another package: it is installed, and has the command."""

    def check(words: list[str]) -> None:
        program = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert program is not None, f"{name} is not installed"
        command = [word for word in words[:1] if word.isalpha()]
        subprocess.run([program, *command, "--help"], check=True, capture_output=True)

    return check


def check_source(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


def check_export(words: list[str]) -> None:
    assert len(words) == 1 and ASSIGNMENT.fullmatch(words[0])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "accelerate": check_accelerate,
    "egogrpo": check_egogrpo,
    "export": check_export,
    "hf": check_tool("hf"),
    "make": check_make,
    "mkdocs": check_tool("mkdocs"),
    "pip": check_pip,
    "pyright": check_tool("pyright"),
    "python": check_python,
    "ruff": check_tool("ruff"),
    "sbatch": check_sbatch,
    "source": check_source,
}


def check(command: str) -> None:
    """Fail unless the command would be taken as it stands."""
    words = shlex.split(command)
    while ASSIGNMENT.fullmatch(words[0]) and len(words) > 1:
        words = words[1:]
    assert words[0] in CHECKS, f"nothing checks {words[0]!r}: {command}"
    CHECKS[words[0]](words[1:])


def shown_commands() -> list[str]:
    """The commands of shell blocks, and those within lines."""
    found: list[str] = []
    for page in pages.PAGES:
        for block in pages.blocks(page, "bash"):
            found += pages.commands(block)
        found += [code.text for code in pages.inline_code(page) if is_command(code.text)]
    return [*dict.fromkeys(found)]


def is_command(text: str) -> bool:
    first, _, rest = text.partition(" ")
    return first in CHECKS and bool(rest)


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("command", shown_commands())
def test_a_command_on_a_page_works(command: str) -> None:
    check(command)


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize(
    "command",
    [
        "make dmo",
        "egogrpo docter configs/demo.yaml",
        "egogrpo doctor configs/dem.yaml",
        "egogrpo doctor configs/demo.yaml --jsn",
        "egogrpo check my_rewards.py:cites_erly",
        "egogrpo sweep configs/sweeps/demo.yaml num_step=20",
        "accelerate launch --config_file launch/accelerate/single.yaml grpo/train.py configs/demo.yaml optim.lrr=1",
        "accelerate launch --config_file launch/accelerate/zero9.yaml grpo/train.py configs/demo.yaml",
        "python -m tests.gpuu",
        "pip install -e .[reward]",
        "mkdocs biuld",
        "somethingelse --help",
    ],
)
def test_a_mistake_in_a_command_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, ValueError, OSError, SystemExit, subprocess.CalledProcessError)):
        check(command)


def test_every_page_uses_only_languages_that_are_checked() -> None:
    for page in pages.PAGES:
        assert pages.languages(page) <= {"", "bash", "json", "python", "yaml"}, page
