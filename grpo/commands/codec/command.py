"""Codecs for continuous sequences (motion, sensors, actions), and models with a token for each of their codes.

egogrpo codec train CONFIG.yaml ... key=value ...
egogrpo codec grow MODEL OUT CODEC_FOLDER ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.codec.settings import CodecConfig, contradictions
from grpo.commands.arguments import Parser
from grpo.config.load import load_settings
from grpo.policy.model_folder import find_model_folder
from grpo.run.progress import under_way


def main(argv: Sequence[str]) -> int:
    """Make what the command line asks for; the exit status."""
    parser = Parser(
        prog="egogrpo codec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    _add_train(commands.add_parser("train", help="a codec trained on streams, or uniform bins of them"))
    _add_grow(commands.add_parser("grow", help="a model with tokens for the codes of codecs"))
    arguments = parser.parse_args(argv)
    try:
        done = arguments.run_command(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(done)
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", metavar="CONFIG | key=value", nargs="+", help="docs/codecs.md explains them"
    )
    parser.set_defaults(run_command=_train)


def _train(arguments: argparse.Namespace) -> str:
    # Before torch is imported, which takes seconds.
    load_settings(arguments.settings, CodecConfig, contradictions)
    from grpo.commands.codec.train import train

    codec = train(arguments.settings)
    shape = f"{codec.spec.levels} x {codec.spec.codebook_size} codes"
    return f"codec {codec.spec.name}: {shape}, {codec.spec.codes_per_s:g} tokens a second"


def _add_grow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a cached hub name")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument(
        "codecs", type=Path, metavar="CODEC_FOLDER", nargs="+", help="folders of egogrpo codec train"
    )
    parser.set_defaults(run_command=_grow)


def _grow(arguments: argparse.Namespace) -> str:
    # Before torch is imported, which takes seconds.
    find_model_folder(arguments.model)
    from grpo.commands.codec.grow import grow

    with under_way("growing the model"):
        vocabulary = grow(arguments.model, arguments.out, arguments.codecs)
    added = ", ".join(
        f"{codec.name} ({len(codec.levels)} x {codec.codebook_size} codes)" for codec in vocabulary.codecs
    )
    return f"{arguments.out}: {len(vocabulary.token_ids)} tokens for {added}"
