"""The recipe `actions_reacher` with several seeds: `python -m tests.actions.compare OUT --seeds 0 1 2`.

Each seed has a folder of its own in OUT, with other demonstrations, codecs and held-out starts; what is done there is
not done again. Prints the held-out success of each action space over seeds: of demonstrations as the space says them,
after the supervised stage, and after GRPO behind it, with differences to uniform bins; then what GRPO added. Answers
are greedy, or sampled as in GRPO.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from grpo.actions.recipe import SPACES, Sizes, Successes, make, successes
from grpo.commands.sweeps.intervals import FOOTNOTE, summarise, table

Values = Mapping[str, Mapping[int, float]]
"""By arm, then by seed."""


def tables(found: Mapping[int, Mapping[str, Successes]]) -> str:
    """All tables as Markdown, of what each seed's action spaces came to."""
    parts = []
    for name in ("demonstrations", "supervised", "grpo", "sampled_supervised", "sampled_grpo"):
        values = {space: {seed: getattr(own[space], name) for seed, own in found.items()} for space in SPACES}
        parts.append(f"{name}:\n\n{_table(values, len(found))}")
    for space, stages in product(SPACES, (("supervised", "grpo"), ("sampled_supervised", "sampled_grpo"))):
        values = {
            f"{space}, {stage}": {seed: getattr(own[space], stage) for seed, own in found.items()}
            for stage in stages
        }
        parts.append(_table(values, len(found)))
    return "\n\n".join([*parts, FOOTNOTE])


def _table(values: Values, num_seeds: int) -> str:
    return table(summarise(values), num_seeds=num_seeds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="The recipe actions_reacher with several seeds, and tables over them."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--engine", default="vllm", help="vllm, or transformers where it is not installed")
    args = parser.parse_args(arguments)
    sizes, found = Sizes(engine=args.engine), {}
    for seed in args.seeds:
        out = args.out / f"seed_{seed}"
        make(out, sizes, seed)
        found[seed] = successes(out, sizes)
    print(tables(found))


if __name__ == "__main__":
    main()
