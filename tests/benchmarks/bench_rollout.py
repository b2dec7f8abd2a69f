"""vLLM in process: what a sync costs, how long it is from moved weights to a token, and what one request a group saves.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_rollout [--layers 4] [--hidden 128] [--rounds 5]

Prints JSON: seconds of a sync and of the first token behind it, the memory that a sync takes above what was there,
both against the bytes of the parameters; and completion tokens a second for groups of 8 as one request each (n = 8)
and as 8 requests of one. The model is a random Qwen2.5-VL of these sizes, its clip and tower those of the demo.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from grpo.groups import Group, Prompt
from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.rollout import Sampling
from tests.benchmarks.bench_learner import resident_kib
from tests.support import tiny
from tests.support.engines import vllm_engine

GROUP_SIZE, NUM_PROMPTS = 8, 8


def bench_policy(folder: Path, layers: int, hidden: int) -> Policy:
    """A policy of a size, from a model folder that vLLM loads too."""
    family = tiny.family()
    config = family.config.__class__.from_dict(family.config.to_dict())
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, 3 * hidden, layers
    text.layer_types = ["full_attention"] * layers
    text.num_attention_heads, text.num_key_value_heads = hidden // 32, hidden // 64
    config.vision_config.out_hidden_size = hidden
    torch.manual_seed(0)
    family.model_class(config).save_pretrained(folder)
    family.processor.save_pretrained(folder)
    made = load_family(str(folder))
    return Policy(made.load_model(torch.float32), made, temperature=1.0)


def tokens_of(groups: list[Group]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)


def sync_figures(engine: Any, policy: Policy, prompt: Prompt, rounds: int) -> dict[str, Any]:
    """What a sync costs, of several; the first one, which learns the names, is not counted."""
    one = Sampling(group_size=1, max_new_tokens=1, temperature=1.0)
    engine.sync()
    syncs: list[tuple[float, float, float]] = []
    for seed in range(rounds):
        before = resident_kib("VmRSS")
        # Starts the high-water mark anew (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        start = perf_counter()
        engine.sync()
        sync_s = perf_counter() - start
        extra_mib = (resident_kib("VmHWM") - before) / 1024
        engine.generate([prompt], one, [seed])
        syncs.append((sync_s, perf_counter() - start, extra_mib))
    sync_s, token_s, extra_mib = (median(each) for each in zip(*syncs, strict=True))
    mib = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters()) / 2**20
    return {
        "parameters_mib": round(mib, 1),
        "parameters": len(list(policy.model.parameters())),
        "sync_s": round(sync_s, 3),
        "sync_mib_per_s": round(mib / sync_s, 1),
        "updated_to_first_token_s": round(token_s, 3),
        "extra_mib": round(extra_mib, 1),
        "extra_to_parameters": round(extra_mib / mib, 2),
    }


def request_figures(engine: Any, prompts: list[Prompt], rounds: int) -> dict[str, Any]:
    """Tokens a second of both ways, in turn; caches are dropped before each."""
    whole = Sampling(group_size=GROUP_SIZE, max_new_tokens=24, temperature=1.0)
    singles = [replace(prompt) for prompt in prompts for _ in range(GROUP_SIZE)]
    ways = {"one_of_8": (prompts, whole), "8_of_one": (singles, replace(whole, group_size=1))}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (asked, sampling) in ways.items():
            engine.sync()
            start = perf_counter()
            groups = engine.generate(asked, sampling, range(len(asked)))
            rates[name].append(tokens_of(groups) / (perf_counter() - start))
    pairs = list(zip(rates["one_of_8"], rates["8_of_one"], strict=True))[1:]
    return {
        **{f"{name}_tokens_per_s": round(median(each[1:])) for name, each in rates.items()},
        "one_of_8_to_8_of_one": round(median(one / eight for one, eight in pairs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        policy = bench_policy(Path(folder), args.layers, args.hidden)
        prompts = [
            policy.family.render(
                tiny.sample(f"s{seed}"),
                tiny.clip(seed=seed),
                template="{question} Answer.\n{options}",
                option="{letter} {text}",
                tags=(),
            )
            for seed in range(NUM_PROMPTS)
        ]
        engine = vllm_engine(policy, max_model_tokens=256)
        try:
            found = {
                **sync_figures(engine, policy, prompts[0], args.rounds),
                **request_figures(engine, prompts, args.rounds),
            }
        finally:
            engine.close()
    print(json.dumps({"layers": args.layers, "hidden": args.hidden, **found}, indent=2))


if __name__ == "__main__":
    main()
