"""The patches of a clip from its bytes, against the processor of transformers, as JSON:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_pixels [--device cuda]

Both are measured in turn, and the ratio is what carries over. On a GPU the first includes the way there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from grpo.policy.uploads import uploaded
from tests.support import tiny


def seconds(make: Callable[[], object], device: torch.device) -> float:
    begun_s = perf_counter()
    make()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begun_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=448, help="pixels")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    device, family = torch.device(given.device), tiny.family()
    clip = tiny.clip(num_frames=given.frames, height_px=given.side, width_px=given.side)

    def processor() -> object:
        return family.processor.video_processor(
            videos=[clip.frames_FHWC.copy()],
            video_metadata=[family.metadata(clip)],
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )

    def ours() -> object:
        return family.pixels([clip], [family.patches_of(uploaded(clip, device))])

    pairs = [(seconds(processor, device), seconds(ours, device)) for _ in range(given.rounds + 1)][1:]
    before_s, now_s = (median(each) for each in zip(*pairs, strict=True))
    print(
        json.dumps(
            {
                "device": given.device,
                "tokens": family.num_vision_tokens(clip),
                "processor_s": round(before_s, 4),
                "from_bytes_s": round(now_s, 4),
                "ratio": round(median(now / before for before, now in pairs), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
