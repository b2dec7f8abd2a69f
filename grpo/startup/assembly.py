"""The assembly of a run: each part built from the settings. What a part does is documented where it is defined."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from accelerate import Accelerator

from grpo.config.model import PARTS
from grpo.config.schema import Config
from grpo.evaluation import EvalSet, Evaluator
from grpo.feed.dynamic_sampling import DifficultyMemory
from grpo.feed.mixture import Part
from grpo.feed.planner import Planner
from grpo.feed.prompts import Feed, Render
from grpo.groups import Sample
from grpo.learner.guards import Guard
from grpo.learner.launching import compute_dtype, shards_weights
from grpo.learner.update import Learner
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader
from grpo.media.memory_cache import MemoryCache
from grpo.media.reading import ClipReader
from grpo.policy.families import ModelFamily
from grpo.policy.families.prompt_text import Wording
from grpo.policy.model import Policy
from grpo.policy.vision_features import FeatureCache
from grpo.rollout import Engine, Sampling
from grpo.run.checkpoint import keep_json
from grpo.run.folder import GUARD, RunDir
from grpo.run.media_files import MediaFiles
from grpo.run.recorder import Recorder
from grpo.trainer import GRPOTrainer
from rewards.scoring.runner import RewardSet, load_rewards


def build_trainer(
    config: Config,
    accelerator: Accelerator,
    learner: Learner,
    engine: Engine,
    rewards: RewardSet,
    loader: ClipLoader,
    train: Sequence[Part],
    held_out: dict[str, list[Sample]],
    run_dir: RunDir,
    media: MediaFiles,
) -> GRPOTrainer:
    """Build the trainer from its parts."""
    policy = learner.policy
    feed = Feed(
        train,
        loader,
        media.guarded(prompt_renderer(config, policy.family)),
        seed=config.seed,
        prompts_per_step=config.optim.prompts_per_step,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        prefetch_steps=config.media.prefetch_steps,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        memory=difficulty_memory(config, train, accelerator),
    )
    return GRPOTrainer(
        config,
        accelerator=accelerator,
        learner=learner,
        engine=engine,
        sampling=sampling_of(config),
        feed=feed,
        rewards=rewards,
        evaluator=build_evaluator(config, accelerator, feed, rewards, held_out, policy.family),
        guard=build_guard(config, accelerator, run_dir),
        recorder=Recorder(
            config,
            run_dir=run_dir,
            accelerator=accelerator,
            rewards=rewards,
            loader=loader,
            policy=policy,
            max_gap=max_gap(config.rollout.max_gap, compute_dtype()),
        ),
        run_dir=run_dir,
    )


def build_guard(config: Config, accelerator: Accelerator, run_dir: RunDir) -> Guard:
    """Build the guard over the updates, and make it a part of checkpoints."""
    guard = Guard(
        run_dir.bad_rows,
        max_skipped=config.optim.max_skipped_updates,
        max_idle=config.optim.max_idle_steps,
        spike_factor=config.optim.spike_factor,
        process=accelerator.process_index,
    )
    keep_json(accelerator, GUARD, guard)
    return guard


def max_gap(configured: float | None, dtype: torch.dtype) -> float:
    """Return the mean log-prob difference between engine and learner that stops a run, at a precision; 0: none does."""
    if configured is not None:
        return configured
    return 1e-3 if dtype == torch.float32 else 0.05


def build_evaluator(
    config: Config,
    accelerator: Accelerator,
    feed: Feed,
    rewards: RewardSet,
    held_out: dict[str, list[Sample]],
    family: ModelFamily,
) -> Evaluator:
    """Build the evaluator of this process's share of the held-out samples; it decodes and renders as the feed does."""
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    return Evaluator(
        sets=[
            EvalSet(
                name=name,
                samples=samples[: config.eval.max_samples][rank::num_processes],
                num_blind=len(range(rank, config.eval.blind_samples, num_processes)),
            )
            for name, samples in held_out.items()
        ],
        loader=feed.loader,
        render=feed.render,
        rewards=rewards,
        sampling=sampling_of(config),
        sampled=config.eval.sampled,
        seed=config.seed,
        max_prompt_tokens=feed.max_prompt_tokens,
        batch_prompts=config.eval.batch_prompts,
        counterfactuals=rewards.counterfactuals,
        blind=config.eval.blind,
        is_shown=accelerator.is_main_process,
    )


def build_learner(
    config: Config, family: ModelFamily, accelerator: Accelerator, memory: MemoryCache
) -> Learner:
    policy = load_policy(config, family, accelerator, memory)
    return Learner(
        policy,
        accelerator,
        loss=config.loss,
        optim=config.optim,
        num_steps=config.num_steps,
        load_reference=partial(load_reference, config, policy) if config.loss.beta else None,
    )


def build_rewards(config: Config) -> RewardSet:
    normalise = config.advantages.multi_objective_aggregation == "normalize_then_sum"
    workers, num_steps = config.rewards_workers, config.num_steps
    return load_rewards(config.rewards, workers, normalise=normalise, num_steps=num_steps)


def build_loader(config: Config, family: ModelFamily) -> ClipLoader:
    return ClipLoader(
        ClipReader(settings=config.media, patches=family.patches, disk=clip_cache(config)),
        cache_gib=config.media.cache_gib,
        num_workers=config.media.num_workers,
        timeout_s=config.media.timeout_s,
    )


def build_engine(config: Config, accelerator: Accelerator, policy: Policy) -> Engine:
    """Build the rollout engine; vLLM is imported only if it is used."""
    rollout = config.rollout
    if rollout.engine == "transformers":
        from grpo.rollout.transformers_engine import TransformersEngine

        dtype = compute_dtype()
        own = load_reference(config, policy, dtype).to(accelerator.device) if policy.sharded else None
        return TransformersEngine(policy, own=own, dtype=dtype)
    from grpo.rollout.vllm_engine import VLLMEngine

    return VLLMEngine(
        policy,
        seed=config.seed,
        max_model_tokens=rollout.max_model_tokens,
        gpu_memory_frac=rollout.gpu_memory_frac,
        dtype=compute_dtype(),
        sleep=rollout.sleep,
    )


def load_policy(config: Config, family: ModelFamily, accelerator: Accelerator, memory: MemoryCache) -> Policy:
    """Load the model that trains.

    Trained weights are fp32: on a GPU the passes run in bf16, and small updates are not rounded away. Under adapters,
    the frozen weights are in the precision of the passes. memory: keeps frames and a frozen tower's features.
    """
    model = config.model
    network = family.load_model(
        compute_dtype() if model.lora.is_on else torch.float32,
        in_4bit_on=accelerator.device if model.load_in_4bit else None,
    )
    return Policy(
        network,
        family,
        temperature=config.rollout.temperature,
        frozen=model.frozen,
        lora=model.lora if model.lora.is_on else None,
        gradient_checkpointing=model.gradient_checkpointing,
        activation_offloading=model.activation_offloading,
        attention=model.attention,
        sharded=shards_weights(accelerator),
        feature_cache=FeatureCache(
            network.model.visual,
            memory=memory,
            disk=clip_cache(config),
            about={
                "tower": family.config.vision_config.to_dict(),
                "pixels": family.processor.video_processor.to_dict(),
            },
        ),
    ).train()


def build_outline(config: Config, family: ModelFamily) -> Policy:
    """Build the policy without its weights; raise ValueError for adapters of layers that don't exist."""
    with torch.device("meta"):
        return Policy(
            family.outline(),
            family,
            temperature=config.rollout.temperature,
            frozen=config.model.frozen,
            lora=config.model.lora if config.model.lora.is_on else None,
        )


def load_reference(config: Config, policy: Policy, dtype: torch.dtype) -> Policy:
    """Load the policy's start as a frozen model of its own; both share the features of a tower that is frozen."""
    return Policy(
        policy.family.load_model(dtype),
        policy.family,
        temperature=config.rollout.temperature,
        frozen=PARTS,
        attention=config.model.attention,
        feature_cache=policy.feature_cache,
    )


def clip_cache(config: Config) -> DiskCache | None:
    if not config.media.cache_disk_gib:
        return None
    return DiskCache(config.clip_cache, max_gib=config.media.cache_disk_gib)


def difficulty_memory(
    config: Config, train: Sequence[Part], accelerator: Accelerator
) -> DifficultyMemory | None:
    """Build the memory of the questions' difficulty, and make it a part of checkpoints; None if it is not used."""
    if not config.dynamic_sampling.skip_epochs:
        return None
    num_samples = sum(len(part.samples) for part in train)
    memory = DifficultyMemory(
        config.dynamic_sampling, steps_per_epoch=num_samples / config.optim.prompts_per_step
    )
    keep_json(accelerator, "difficulty", memory)
    return memory


def make_planner(config: Config, family: ModelFamily) -> Planner:
    return Planner(
        family=family,
        settings=config.media,
        count_text=partial(family.num_text_tokens, **wording(config)),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )


def prompt_renderer(config: Config, family: ModelFamily) -> Render:
    return partial(family.render, **wording(config))


def wording(config: Config) -> Wording:
    """Return the settings of a prompt's text, as a family takes them."""
    prompt = config.prompt
    return Wording(system=prompt.system, template=prompt.template, option=prompt.option, tags=config.tags)


def sampling_of(config: Config) -> Sampling:
    rollout = config.rollout
    return Sampling(
        group_size=rollout.group_size, max_new_tokens=rollout.max_new_tokens, temperature=rollout.temperature
    )
