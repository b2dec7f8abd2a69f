"""vLLM's inputs of a question about a clip, by its own processor and by `vllm_inputs.py`, as JSON:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_inputs [--rounds 9]

Of each size of a clip: the milliseconds of CPU that vLLM's processor takes, that ours takes where the clip is new, and
that are left when its patches were made ahead. No engine is started.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import process_time

from grpo.rollout.vllm_inputs import VLLMInputs
from tests.rollout.test_vllm_inputs import without_engine
from tests.support import tiny

SIZES = ((16, 56), (16, 448))
"""The frames and the sides of clips, in pixels."""


def milliseconds(make: Callable[[], object]) -> float:
    begun_s = process_time()
    make()
    return 1000 * (process_time() - begun_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    inputs = VLLMInputs(tiny.policy(), without_engine(tiny.family().path))
    inputs._compared |= {"video"}
    for num_frames, side_px in SIZES:
        taken: list[tuple[float, float, float]] = []
        for number in range(given.rounds + 1):
            prompt = tiny.prompt(tiny.sample(), tiny.clip(num_frames, side_px, side_px, seed=number))
            raw = {
                "prompt_token_ids": inputs.family.folded_ids(prompt),
                "multi_modal_data": inputs.family.engine_media(prompt),
            }

            def ours(prompt=prompt) -> None:
                inputs.begin(prompt.clips)
                inputs.of(prompt)

            theirs_ms = milliseconds(lambda raw=raw: inputs.llm._preprocess_cmpl_one(raw))
            taken.append((theirs_ms, milliseconds(ours), milliseconds(ours)))
            inputs.drop(prompt.clips)
        names = ("processor_ms", "ours_ms", "made_ahead_ms")
        columns = zip(*taken[1:], strict=True)
        figures = {name: round(median(column), 2) for name, column in zip(names, columns, strict=True)}
        tokens = len(prompt.token_ids)  # pyright: ignore[reportPossiblyUnboundVariable]
        print(json.dumps({"prompt_tokens": tokens, **figures}), flush=True)
    inputs.close()


if __name__ == "__main__":
    main()
