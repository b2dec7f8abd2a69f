"""A training run: `accelerate launch grpo/train.py CONFIG.yaml ... key=value ...`.

Run again with the same arguments, it resumes. Everything that can be wrong with the arguments, the rewards
and the data is found out here, in the order of how cheap it is to find, before a model is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from grpo.config import Config, check_same_run, load_config, to_yaml
from grpo.data import check_media, load_samples
from grpo.evaluation import EvalSet, Evaluator
from grpo.families import Qwen25VL, load_family
from grpo.feed import Feed
from grpo.groups import Sample
from grpo.learner import Learner
from grpo.media.loader import ClipLoader
from grpo.policy import Policy
from grpo.rollout import Engine, Sampling
from grpo.run_dir import RunDir, make_manifest
from grpo.trainer import GRPOTrainer
from rewards.runner import RewardSet, load_rewards


def main(argv: Sequence[str]) -> None:
    quiet_libraries()
    try:
        trainer = prepare(load_config(argv))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    try:
        trainer.run()
    finally:
        trainer.engine.close()
        trainer.feed.loader.close()
    trainer.accelerator.print(f"done: {trainer.run_dir.path}/ (metrics.jsonl, curves.png, rollouts/, final/)")
    trainer.accelerator.end_training()


def quiet_libraries() -> None:
    """Silence bars and warnings that say nothing about the run; tied embeddings are meant to be shared."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def prepare(config: Config) -> GRPOTrainer:
    """Everything up to the first step. ValueError or FileNotFoundError in one line for a user's mistake."""
    run_dir = RunDir(config.run_dir)
    if run_dir.config_file.exists():
        check_same_run(run_dir.config_file, config)
    family = load_family(config.model.path)
    rewards = load_rewards(config.rewards)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    with accelerator.main_process_first():  # a reader may render its clips on first use
        train, held_out = read_data(config)
    rewards.probe(train[:2])  # of the data, since rewards may read its columns
    if accelerator.is_main_process:
        run_dir.open(to_yaml(config), manifest(config, accelerator))
    set_seed(config.seed)
    if torch.cuda.is_available():
        family = replace(family, engine_dtype=torch.bfloat16)
    policy = load_policy(config, family, torch.float32)
    reference = load_policy(config, family, family.engine_dtype) if config.loss.beta else None
    if reference is not None:
        reference.requires_grad_(False).eval().to(accelerator.device)
    learner = Learner(
        policy, reference, accelerator, loss=config.loss, optim=config.optim, num_steps=config.num_steps
    )
    return build_trainer(config, accelerator, policy, learner, rewards, train, held_out, run_dir)


def build_trainer(
    config: Config,
    accelerator: Accelerator,
    policy: Policy,
    learner: Learner,
    rewards: RewardSet,
    train: Sequence[Sample],
    held_out: dict[str, list[Sample]],
    run_dir: RunDir,
) -> GRPOTrainer:
    """Put the parts together."""
    prompt, rollout, rank = config.prompt, config.rollout, accelerator.process_index
    render = partial(policy.family.render, template=prompt.template, option=prompt.option, tags=config.tags)
    loader = ClipLoader(config.media, cache_gib=config.media.cache_gib, num_workers=config.media.num_workers)
    max_prompt_tokens = rollout.max_model_tokens - rollout.max_new_tokens
    feed = Feed(
        train,
        loader,
        render,
        seed=config.seed,
        prompts_per_step=config.optim.prompts_per_step,
        max_prompt_tokens=max_prompt_tokens,
        prefetch_steps=config.media.prefetch_steps,
        rank=rank,
        num_processes=accelerator.num_processes,
    )
    evaluator = Evaluator(
        sets=[
            EvalSet(name=name, samples=samples[: config.eval.max_samples][rank :: accelerator.num_processes])
            for name, samples in held_out.items()
        ],
        loader=loader,
        render=render,
        rewards=rewards,
        sampling=Sampling(
            group_size=1, max_new_tokens=rollout.max_new_tokens, temperature=rollout.temperature
        ),
        sampled=config.eval.sampled,
        seed=config.seed,
        max_prompt_tokens=max_prompt_tokens,
    )
    return GRPOTrainer(
        config,
        accelerator=accelerator,
        policy=policy,
        learner=learner,
        engine=build_engine(config, policy),
        feed=feed,
        rewards=rewards,
        evaluator=evaluator,
        run_dir=run_dir,
    )


def read_data(config: Config) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """Training samples, and held-out samples by the name of their set; their media are checked."""
    train = load_samples(config.data.train)
    held_out: dict[str, list[Sample]] = {}
    for dataset in config.data.eval:
        name = dataset.name or Path(dataset.path).stem
        if name in held_out:
            raise ValueError(f"data.eval: two sets are called {name!r}; set their name")
        held_out[name] = load_samples([dataset])
    for samples in (train, *held_out.values()):
        check_media(samples, num_probes=config.data.probe_clips)
    return train, held_out


def load_policy(config: Config, family: Qwen25VL, dtype: torch.dtype) -> Policy:
    """The model. Trained weights are fp32: on a GPU the passes run in bf16, and small updates are not rounded away."""
    return Policy(
        family.load_model(dtype),
        family,
        temperature=config.rollout.temperature,
        freeze_vision=config.model.freeze_vision,
        gradient_checkpointing=config.model.gradient_checkpointing,
    ).train()


def build_engine(config: Config, policy: Policy) -> Engine:
    """The rollout engine; vLLM is imported only where it is used."""
    rollout = config.rollout
    if rollout.engine == "transformers":
        from grpo.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(policy)
    try:
        from grpo.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(
            policy,
            seed=config.seed,
            max_model_tokens=rollout.max_model_tokens,
            gpu_memory_frac=rollout.gpu_memory_frac,
            sleep=rollout.sleep,
        )
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ValueError(
            "rollout.engine=vllm: vllm is not installed; try rollout.engine=transformers"
        ) from error


def manifest(config: Config, accelerator: Accelerator) -> dict[str, object]:
    files = [dataset.path for dataset in [*config.data.train, *config.data.eval]]
    return make_manifest(
        data_files=files,
        settings={
            "media": asdict(config.media),
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
