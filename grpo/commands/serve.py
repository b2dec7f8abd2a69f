"""A model behind vLLM's OpenAI-compatible server, with the media and sampling settings that it was trained with.

    egogrpo serve MODEL [key=value ...] [-- FLAG ...]

MODEL is a run's final/, any model folder, or a hub name that is in the local cache. What stands behind `--` goes to
vLLM as it is.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from grpo.commands.arguments import Parser
from grpo.policy.model_folder import check_weights, find_model_folder
from grpo.rollout.server_flags import (
    FOLDER,
    KEY_VARIABLE,
    LOOPBACK,
    MODULE,
    server_environment,
    server_flags,
    training_flags,
)
from grpo.run.model_inputs import read_inputs
from grpo.run.progress import under_way

OWN = ("--ho", "--port")
"""How flags begin that are the command's own, and not to be given to vLLM behind its back."""


def main(argv: Sequence[str]) -> int:
    """Check the model and the port, and become vLLM's server; the exit status, if there is a mistake."""
    own, rest = _divided(argv)
    arguments = _parser().parse_intermixed_args(own)
    try:
        command, environment = command_of(arguments, rest)
        if arguments.print:
            print(
                " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(command)])
            )
            return 0
        check_start(arguments.host, arguments.port)
        if arguments.for_training and not os.environ.get(KEY_VARIABLE):
            environment[KEY_VARIABLE] = key = secrets.token_hex(16)
            print(f"for the run that uses it: export {KEY_VARIABLE}={key}", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    os.execve(sys.executable, [sys.executable, *command[1:]], {**os.environ, **environment})


def command_of(arguments: argparse.Namespace, rest: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts the server, and what it adds to the environment.

    Raises ValueError for a model or a setting that can't be.
    """
    for word in rest:
        # vLLM takes the last one, its parser any beginning of it, and neither would be checked.
        if word.replace("_", "-").startswith(OWN):
            raise ValueError(f"{word} has to stand before --")
    folder = find_model_folder(arguments.model)
    check_weights(folder)
    inputs = read_inputs(str(folder), arguments.settings)
    # Late, since torch and transformers take seconds: what is mistyped is reported before them.
    with under_way("importing torch and transformers"):
        from grpo.learner.launching import compute_dtype, on_gpu
        from grpo.policy.families import load_family

    family = load_family(arguments.model)
    dtype = str(compute_dtype()).removeprefix("torch.")
    more: dict[str, Any] = {"host": arguments.host, "port": arguments.port}
    if arguments.for_training:
        more |= training_flags(transfer=arguments.transfer or ("nccl" if on_gpu() else FOLDER))
    flags = server_flags(family.path, inputs, family.patches, dtype=dtype, on_gpu=on_gpu(), **more)
    environment = server_environment(on_gpu=on_gpu(), for_training=arguments.for_training)
    return ["python", "-m", MODULE, *flags, *rest], environment


def check_start(host: str, port: int) -> None:
    """Raise ValueError unless vLLM is installed, the port is free, and strangers who reach it need a key."""
    if find_spec("vllm") is None:
        raise ValueError("vllm is not installed")
    if host not in LOOPBACK and not os.environ.get(KEY_VARIABLE):
        raise ValueError(f"--host {host} listens beyond this machine, which wants a key: set {KEY_VARIABLE}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"--port {port} on {host}: {error.strerror or error}; another --port?") from error


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and behind `--`."""
    at = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:at]], [*argv[at + 1 :]]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="egogrpo serve",
        description="Serve a model with vLLM, as it was trained. What stands behind -- goes to vLLM.",
    )
    parser.add_argument("model", metavar="MODEL", help="a run's final/, a model folder, or a cached hub name")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="other settings, as media.max_frames=64"
    )
    parser.add_argument(
        "--host", default=LOOPBACK[0], help=f"beyond this machine only with {KEY_VARIABLE} set"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--for-training",
        action="store_true",
        help="for a run with rollout.engine=vllm_server, which sends weights",
    )
    parser.add_argument(
        "--transfer", choices=("nccl", FOLDER), help="how weights are sent; nccl on a GPU, else by files"
    )
    parser.add_argument("--print", action="store_true", help="show the command and its flags; start nothing")
    return parser
