"""A video prompt of 16,384 vision tokens through real vLLM: as a run builds it here, and with a GPU's token budgets.

    python -m tests.rollout.long_prompt [--tokens 16384]

The clip is made, and planned and decoded as in a run. On a GPU prompts are prefilled in parts of vLLM's step, and clips
are encoded in one piece; that is done here too, greedily, since a seeded request that is prefilled in parts dies on a
CPU. Prints JSON: tokens of prompt and steps, the largest difference of log-probs from the learner's, and seconds;
of a run with room for half as many tokens, what its start says. A few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.feed.prompts import make_batch
from grpo.groups import Group, Prompt, Sample, ScoredGroup
from grpo.media.clip import ClipSource
from grpo.policy.model import Policy
from grpo.rollout import Sampling, vllm_engine
from grpo.rollout.vllm_arguments import engine_arguments, set_environment
from grpo.rollout.vllm_engine import VLLMEngine
from grpo.startup.assembly import build_loader, engine_size, make_planner, prompt_renderer
from tests.support import tiny
from tests.support.learners import packed
from tests.support.videos import write_video

FRAME_PX = 224
"""The side of a frame, of 8 x 8 tokens in each two of them."""
NEW_TOKENS = 8
SAMPLING = Sampling(group_size=2, max_new_tokens=NEW_TOKENS, temperature=1.0)


def config_for(num_tokens: int, room: int) -> Config:
    """The demo's settings for clips of so many tokens. room: the tokens of prompt and completion."""
    media = [f"media.{key}={FRAME_PX**2}" for key in ("min_pixels", "max_pixels")]
    frames = num_tokens // (FRAME_PX // 28) ** 2 * 2
    return load_config(
        [
            str(tiny.ROOT / "configs" / "demo.yaml"),
            *media,
            f"media.max_frames={frames}",
            f"media.max_tokens={num_tokens}",
            f"rollout.max_model_tokens={room}",
            f"rollout.max_new_tokens={NEW_TOKENS}",
            f"optim.tokens_per_row={2 * room}",
        ]
    )


def long_sample(folder: Path, num_frames: int) -> Sample:
    """A question about a clip of so many frames, two in a second."""
    path = folder / "long.mp4"
    write_video(path, num_frames=num_frames, fps=2, size_px=(FRAME_PX, FRAME_PX))
    return tiny.sample(clip_source=ClipSource(video=str(path)))


def prompt_of(config: Config, sample: Sample) -> Prompt:
    """The sample's prompt as a run makes it, of no more tokens than were planned."""
    family = tiny.family()
    planned = make_planner(config, family).plan(sample)
    with closing(build_loader(config, family)) as loader:
        batch = make_batch(
            [sample], [0], loader, prompt_renderer(config, family), config.rollout.max_prompt_tokens
        )
    (prompt,) = batch.prompts
    assert planned.num_vision_tokens < len(prompt.token_ids) <= planned.num_tokens
    return prompt


def off_by(policy: Policy, group: Group, room: int) -> float:
    """The largest difference between a group's log-probs and the learner's."""
    count = len(group.rollouts)
    scored = ScoredGroup(group=group, table=tiny.table((1.0,) * count), advantages=(1.0,) * count)
    with torch.no_grad():
        rows = packed([scored], tokens_per_row=2 * room)
        return max(float((policy(row).logps_T - row.sampler_logps_T).abs().max()) for row in rows)


def in_parts(engine: VLLMEngine, prompt: Prompt) -> tuple[Group, list[int]]:
    """A greedy group, and the tokens of each of vLLM's steps."""
    inside: Any = engine.llm.llm_engine
    scheduler = inside.engine_core.engine_core.scheduler
    plan, steps = scheduler.schedule, []

    def schedule(*arguments: Any, **named: Any) -> Any:
        planned = plan(*arguments, **named)
        steps.append(planned.total_num_scheduled_tokens)
        return planned

    scheduler.schedule = schedule
    before = vllm_engine.sampling_fields
    vllm_engine.sampling_fields = lambda *given: before(*given) | {"seed": None}
    try:
        (group,) = engine.generate([prompt], replace(SAMPLING, group_size=1, temperature=0.0), [0])
    finally:
        vllm_engine.sampling_fields = before
    return group, steps


def as_on_gpu(config: Config, policy: Policy) -> VLLMEngine:
    """The engine with the budgets that it has on a GPU, from the planner's most tokens of a clip."""

    def arguments(size: Any, **_: Any) -> dict[str, Any]:
        own = engine_arguments(size, on_gpu=True, launched=False, sleeps=False)
        ours = {"enforce_eager": True, "enable_chunked_prefill": True}
        of_gpu = ("enable_sleep_mode", "gpu_memory_utilization")
        return {key: value for key, value in own.items() if key not in of_gpu} | ours

    before, vllm_engine.engine_arguments = vllm_engine.engine_arguments, arguments
    try:
        return VLLMEngine(policy, seed=0, size=engine_size(config, policy.family, 1))
    finally:
        vllm_engine.engine_arguments = before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16_384)
    num_tokens = parser.parse_args().tokens
    # The model's own length is 8,192, and the positions of its seconds are fewer.
    os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    set_environment()
    config = config_for(num_tokens, num_tokens + 512)
    policy, room = tiny.policy(), config.rollout.max_model_tokens
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sample = long_sample(Path(folder), config.media.max_frames)
        prompt = prompt_of(config, sample)
        narrow = config_for(num_tokens, num_tokens // 2)
        found["refused"] = make_planner(narrow, policy.family).refusals([sample], num_workers=1)
    found["prompt_tokens"] = len(prompt.token_ids)
    for name, is_as_on_gpu in (("here", False), ("as on a GPU", True)):
        begun_s = perf_counter()
        size = engine_size(config, policy.family, 1)
        engine = as_on_gpu(config, policy) if is_as_on_gpu else VLLMEngine(policy, seed=0, size=size)
        ready_s, steps = perf_counter(), []
        if is_as_on_gpu:
            group, steps = in_parts(engine, prompt)
        else:
            (group,) = engine.generate([prompt], SAMPLING, [0])
        done_s = perf_counter()
        found[name] = {
            "tokens_of_steps": steps,
            "off_by": off_by(policy, group, room),
            "start_s": round(ready_s - begun_s, 1),
            "sampling_s": round(done_s - ready_s, 1),
        }
        engine.close()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
