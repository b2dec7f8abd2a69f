"""The transformers engine against transformers' own generate, and against itself compiled.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_generate [--prompt 1000] [--completion 128] [--rounds 3]

Prints JSON: seconds for a group of G completions of one clip, and peak memory above the model's, of generate with
`num_return_sequences`, of the engine, and of the engine with its decoding compiled, where the first group compiles. The
model is that of `bench_learner`. Times are of pairs in turn; each memory is of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from grpo.groups import Prompt
from grpo.policy.model import Policy
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from tests.benchmarks.bench_learner import bench_group, bench_policy, resident_kib


def naive(policy: Policy, prompt: Prompt, sampling: Sampling) -> Callable[[], object]:
    """transformers' generate, which copies the prompt for each completion."""
    family = policy.family
    assert prompt.clip is not None
    inputs = family.processor.video_processor(
        videos=[prompt.clip.frames_FHWC.copy()],
        video_metadata=[family.metadata(prompt.clip)],
        do_sample_frames=False,
        do_resize=False,
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    ids_1S = torch.tensor([prompt.token_ids])

    def generate() -> object:
        return policy.model.generate(
            input_ids=ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            mm_token_type_ids=2 * (ids_1S == family.config.video_token_id).int(),
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
            num_return_sequences=sampling.group_size,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            eos_token_id=[*family.eos_ids],
            pad_token_id=family.eos_ids[0],
        )

    return generate


def ours(policy: Policy, prompt: Prompt, sampling: Sampling) -> Callable[[], object]:
    engine = TransformersEngine(policy)
    return lambda: engine.generate([prompt], sampling, [0])


def compiled(policy: Policy, prompt: Prompt, sampling: Sampling) -> Callable[[], object]:
    policy.model.model.language_model.compile(dynamic=True)
    return ours(policy, prompt, sampling)


WAYS = {"generate": naive, "engine": ours, "compiled_engine": compiled}


def made(way: str, prompt_tokens: int, group_size: int, completion: int) -> Callable[[], object]:
    policy = bench_policy().eval()
    prompt = bench_group(policy, prompt_tokens, group_size, 1).group.prompt
    return WAYS[way](
        policy, prompt, Sampling(group_size=group_size, max_new_tokens=completion, temperature=1.0)
    )


def seconds(generate: Callable[[], object]) -> float:
    start = perf_counter()
    with torch.no_grad():
        generate()
    return perf_counter() - start


def peak_mib(way: str, *sizes: int) -> float:
    generate = made(way, *sizes)
    before = resident_kib("VmRSS")
    # Starts the high-water mark anew (Linux).
    Path("/proc/self/clear_refs").write_text("5")
    seconds(generate)
    return (resident_kib("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sizes = (args.prompt, args.group_size, args.completion)
    ways = {way: made(way, *sizes) for way in WAYS}
    # In turn: the machine's speed drifts.
    rounds = [{way: seconds(generate) for way, generate in ways.items()} for _ in range(args.rounds + 1)]
    first, later = rounds[0], rounds[1:]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_mib, [(way, *sizes) for way in ("generate", "engine")], chunksize=1)
    result = {
        "prompt_tokens": args.prompt,
        "group_size": args.group_size,
        "completion_tokens": args.completion,
        "seconds": {way: round(median(each[way] for each in later), 3) for way in WAYS},
        "first_s": {way: round(first[way], 3) for way in WAYS},
        "engine_to_generate": round(median(each["engine"] / each["generate"] for each in later), 3),
        "compiled_to_engine": round(median(each["compiled_engine"] / each["engine"] for each in later), 3),
        "peak_mib": dict(zip(("generate", "engine"), (round(peak) for peak in peaks), strict=True)),
        "engine_to_generate_peak": round(peaks[1] / peaks[0], 3),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
