"""The assembly of a run: each part built from the settings. What a part does is documented where it is defined."""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator

from grpo.config.model import PARTS
from grpo.config.rules import ELSEWHERE
from grpo.config.schema import Config
from grpo.feed.planner import Planner
from grpo.feed.prompts import Render
from grpo.learner.launching import PATIENCE, compute_dtype, shards_weights, split_over
from grpo.learner.update import Learner
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader
from grpo.media.memory_cache import MemoryCache
from grpo.media.reading import ClipReader
from grpo.media.sampling import most_vision_tokens
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.policy.prompt_text import Wording
from grpo.policy.vision_features import FeatureCache
from grpo.rollout import Engine, Sampling
from grpo.rollout.given import NoEngine
from grpo.rollout.partial import PartialRollouts
from grpo.rollout.sync_proof import SyncProof, make_prompt
from grpo.rollout.vllm_arguments import MAX_LORA_RANK, MAX_SEQUENCES, EngineSize
from grpo.startup.servers import build_server_engine
from rewards.scoring.runner import RewardSet, load_rewards


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
        load_reference=partial(load_reference, config, policy) if config.loss.needs_reference else None,
        split=split_over(accelerator, config.optim.sequence_parallel_size),
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
    if rollout.engine == "none":
        return NoEngine()
    if rollout.engine in ("vllm_server", "vllm_process"):
        return build_server_engine(config, accelerator, policy, build_proof(config, policy))
    from grpo.rollout.vllm_engine import VLLMEngine

    return VLLMEngine(
        policy,
        seed=config.seed,
        size=engine_size(config, policy.family, accelerator.num_processes),
        dtype=compute_dtype(),
        sleep=rollout.sleep,
        proof=build_proof(config, policy),
    )


def engine_size(
    config: Config, family: ModelFamily, num_processes: int, dtype: torch.dtype | None = None
) -> EngineSize:
    """Return what vLLM makes room for: a step's completions, the largest clips, and adapters beside its weights.

    dtype: the precision that it computes in; None: this machine's.
    """
    rollout, lora = config.rollout, config.model.lora
    own_prompts = config.optim.prompts_per_step // num_processes * rollout.tensor_parallel_size
    clip_tokens = min(most_vision_tokens(config.media, family.patches), rollout.max_model_tokens)
    return EngineSize(
        max_model_tokens=rollout.max_model_tokens,
        gpu_memory_frac=rollout.gpu_memory_frac,
        max_sequences=min(MAX_SEQUENCES, max(own_prompts * rollout.group_size, config.eval.batch_prompts)),
        max_clip_tokens=clip_tokens,
        tensor_parallel_size=rollout.tensor_parallel_size,
        timeout_s=int(PATIENCE.total_seconds()),
        fp32_head=config.model.cast_lm_head_to_fp32,
        lora_rank=lora.r if adds_adapters(config, dtype) else 0,
        lora_in_tower=bool(lora.targets.vision or lora.targets.merger),
    )


def adds_adapters(config: Config, dtype: torch.dtype | None = None) -> bool:
    """Return whether vLLM gets the adapters beside its weights; otherwise they are merged, as for all servers.

    In fp32, as on a CPU, merging rounds nothing away, and there sampling with adapters takes several times as long.
    dtype: the precision that is sampled in; None: this machine's.
    """
    model, rollout = config.model, config.rollout
    if rollout.engine in ELSEWHERE:
        return False
    if rollout.lora == "auto":
        can = not model.load_in_4bit and model.lora.r <= MAX_LORA_RANK
        return model.lora.is_on and can and (dtype or compute_dtype()) != torch.float32
    return model.lora.is_on and rollout.lora == "adapters"


def build_proof(config: Config, policy: Policy) -> SyncProof:
    """Build the proof of sync. Its few tokens are noisier than the mean of a step's, whose limit it takes twice."""
    limit = max_gap(config.rollout.max_gap, compute_dtype())
    return SyncProof(
        policy=policy,
        prompt=make_prompt(policy.family),
        dtype=compute_dtype(),
        max_gap=2 * limit,
        every=config.rollout.prove_sync_every if limit else 0,
    )


def max_gap(configured: float | None, dtype: torch.dtype) -> float:
    """Return the mean log-prob difference between engine and learner that stops a run, at a precision; 0: none does."""
    if configured is not None:
        return configured
    return 1e-3 if dtype == torch.float32 else 0.05


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
        new_rows_only=model.new_rows_only,
        gradient_checkpointing=model.gradient_checkpointing,
        activation_offloading=model.activation_offloading,
        attention=model.attention,
        fp32_head=model.cast_lm_head_to_fp32,
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
            new_rows_only=config.model.new_rows_only,
        )


def load_reference(config: Config, policy: Policy, dtype: torch.dtype) -> Policy:
    """Load the policy's start as a frozen model of its own; both share the features of a tower that is frozen."""
    return Policy(
        policy.family.load_model(dtype),
        policy.family,
        temperature=config.rollout.temperature,
        frozen=PARTS,
        attention=config.model.attention,
        fp32_head=config.model.cast_lm_head_to_fp32,
        feature_cache=policy.feature_cache,
        uploads=policy.uploads,
    )


def clip_cache(config: Config) -> DiskCache | None:
    if not config.media.cache_disk_gib:
        return None
    return DiskCache(config.clip_cache, max_gib=config.media.cache_disk_gib)


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
        group_size=rollout.group_size,
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        stop=tuple(rollout.stop),
    )


def partial_rollouts(config: Config, family: ModelFamily) -> PartialRollouts | None:
    """Build the sampling of completions over several steps; None if each is sampled in one."""
    rollout = config.rollout
    if rollout.partial_tokens is None:
        return None
    return PartialRollouts(
        sampling=sampling_of(config),
        decode=family.decode,
        max_tokens=rollout.partial_tokens,
        max_steps=rollout.partial_max_steps,
    )
