"""The memory that a run takes on each GPU, by launch file, worked out from shapes alone: `needs`, then `verdict`.

Arithmetic, not a measurement: what is kept between passes, what a row's passes keep, and a share for all that is not
named.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from grpo.commands.doctor.engine_memory import asleep_gib, engine_parts_gib, least_frac
from grpo.config.schema import Config
from grpo.policy.model import HEAD_CHUNK_TOKENS, Policy
from grpo.policy.uploads import MAX_BYTES

GIB = 2**30
GPUS_GB = (24, 80, 141)
"""The memory of the usual GPUs, as their makers state it."""

CONTEXT_GIB = 2.0
"""CUDA's own memory and NCCL's buffers in a process that also has an engine."""
UNNAMED_FRAC = 0.08
"""The share of the learner's memory that goes to the allocator's gaps and to what is named nowhere here."""
FURTHER_CHANGES = "LoRA, a smaller model or larger GPUs"
"""What is left to change where no setting and no launch makes a run fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What a file of `launch/accelerate/` does with weights and AdamW's states."""

    splits_states: bool = False
    splits_weights: bool = False
    offloads_states: bool = False
    offloads_weights: bool = False
    in_bf16: bool = False
    """DeepSpeed: the weights that passes use are bf16, beside fp32 ones in the optimizer."""


LAUNCHES = {
    "single": Launch(),
    "multi_gpu": Launch(),
    "zero2": Launch(splits_states=True, in_bf16=True),
    "zero2_offload": Launch(splits_states=True, offloads_states=True, in_bf16=True),
    "zero3": Launch(splits_states=True, splits_weights=True, in_bf16=True),
    "fsdp2": Launch(splits_states=True, splits_weights=True),
    "zero3_offload": Launch(
        splits_states=True, splits_weights=True, offloads_states=True, offloads_weights=True, in_bf16=True
    ),
}
"""The launches by their files' names, those first that keep most on each GPU."""

BUCKETS_GIB = 2 * 4 * 1e8 / GIB
"""DeepSpeed's two buckets of gradients, as `launch/deepspeed` sets them."""
LIVE_WEIGHTS = 1e9
"""`stage3_max_live_parameters` of ZeRO-3: gathered weights at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The numbers of weights and the widths that memory is worked out from."""

    trained: int
    frozen: int
    frozen_4bit: int
    largest_unit: int
    """The weights of what FSDP2 gathers at once and keeps for the whole pass: all that lies around the layers."""
    trains_vision: bool
    row_tokens: int
    row_patches: int
    """Patches of the vision tower in a row, of which `merge`**2 are a token."""
    adapter_widths: int
    """Inputs and outputs of all layers that vLLM makes room for adapters in, whichever have some."""

    @property
    def total(self) -> int:
        return self.trained + self.frozen


def sizes_of(config: Config, policy: Policy, *, row_tokens: int = 0, row_vision_tokens: int = 0) -> Sizes:
    """Return the sizes of a policy without weights. row_tokens: those of the longest row."""
    weights = [*policy.parameters()]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    layers = [*policy.model.model.language_model.layers, *policy.model.model.visual.blocks]
    in_layers = sum(weight.numel() for layer in layers for weight in layer.parameters())
    linear = [each for each in policy.model.model.language_model.modules() if isinstance(each, nn.Linear)]
    frozen_4bit = sum(each.weight.numel() for each in linear if not each.weight.requires_grad)
    lora = config.model.lora.targets
    adapted = layers if lora.vision or lora.merger else [*policy.model.model.language_model.layers]
    total = sum(weight.numel() for weight in weights)
    return Sizes(
        trained=trained,
        frozen=total - trained,
        frozen_4bit=frozen_4bit if config.model.load_in_4bit else 0,
        largest_unit=total - in_layers,
        trains_vision=policy.trains_vision,
        row_tokens=row_tokens,
        row_patches=row_vision_tokens * policy.family.patches.merge**2,
        adapter_widths=sum(_linear_widths(each) for each in adapted),
    )


def _linear_widths(layer: nn.Module) -> int:
    """Return the inputs and outputs of a layer's linear maps, but for adapters' own."""
    named = layer.named_modules()
    linear = (each for name, each in named if isinstance(each, nn.Linear) and "lora_" not in name)
    return sum(each.in_features + each.out_features for each in linear)


def needs(
    config: Config, policy: Policy, sizes: Sizes, launch: Launch, *, processes: int, gpu_gib: float
) -> dict[str, float]:
    """Return the GiB that each part takes on a GPU in the update, which is when the most is there."""
    learner = {
        **_kept(config, sizes, launch, processes),
        "activations": _activations(config, policy, sizes, launch) / GIB,
    }
    learner["gaps and others"] = UNNAMED_FRAC * sum(learner.values())
    engine = 0.0
    if config.rollout.engine == "vllm":
        asleep = asleep_gib(engine_parts(config, policy, sizes, processes))
        engine = asleep if config.rollout.sleep else config.rollout.gpu_memory_frac * gpu_gib
    # The transformers engine samples from the learner's own weights; it has a copy of its own where they are split.
    if config.rollout.engine == "transformers":
        engine = 2 * sizes.total / GIB if launch.splits_weights else 0.0
    # A frozen tower's patches go as soon as vLLM's inputs are made of them.
    patches = MAX_BYTES / GIB if sizes.row_patches and sizes.trains_vision else 0.0
    return {**learner, "engine": engine, "patches": patches, "CUDA": CONTEXT_GIB}


def _kept(config: Config, sizes: Sizes, launch: Launch, processes: int) -> dict[str, float]:
    """Return the GiB of weights, gradients, states and reference, and of what passes gather."""
    share = 1 / processes if launch.splits_states else 1.0
    moments = 2 if config.optim.optimizer == "adamw_8bit" else 8
    # Of a trained weight: gradient and moments in fp32, and under DeepSpeed a master weight.
    states = 0.0 if launch.offloads_states else (4 + moments + 4 * launch.in_bf16) * sizes.trained * share
    frozen = 2 if launch.in_bf16 or config.model.lora.is_on else 4
    weights = (2 if launch.in_bf16 else 4) * sizes.trained + frozen * sizes.frozen - 1.5 * sizes.frozen_4bit
    gathered = 0.0
    if launch.offloads_weights:
        weights = 0.0
    elif launch.splits_weights:
        weights *= share
    if launch.splits_weights:
        live = min(LIVE_WEIGHTS, sizes.total) if launch.in_bf16 else sizes.largest_unit
        # FSDP2 also has the unit's whole gradient in fp32 for a moment.
        gathered = live * (2 if launch.in_bf16 else 6)
    elif not launch.in_bf16 and not config.model.lora.is_on:
        # Autocast's copies of the weights, which the graph keeps until the backward pass.
        gathered = 2 * sizes.total
    has_copy = (
        config.loss.needs_reference and not config.model.lora.is_on and not config.loss.reference_offload
    )
    reference_bytes = 2 if launch.in_bf16 or launch.splits_weights else 4
    return {
        "weights": weights / GIB,
        "gradients and AdamW": states / GIB + (BUCKETS_GIB if launch.in_bf16 else 0.0),
        "gathered or cast": gathered / GIB,
        "reference": has_copy * reference_bytes * sizes.total / GIB,
    }


def _activations(config: Config, policy: Policy, sizes: Sizes, launch: Launch) -> float:
    """Return the bytes that the passes of the longest row keep, and of the layer that is computed.

    Of a row that several processes compute, each has a part of all but attention's other copies of keys and values.
    """
    text, vision = policy.family.config.text_config, policy.family.config.vision_config
    size = config.optim.sequence_parallel_size
    row_tokens, row_patches = sizes.row_tokens / size, sizes.row_patches / size
    # Embeddings stay fp32 where weights do, and with them what flows from layer to layer.
    stream = 2 if launch.in_bf16 or launch.splits_weights else 4
    keys = _repeated_keys(config, policy, sizes)
    parts = [(row_tokens, text.hidden_size, text.intermediate_size, text.num_hidden_layers, keys)]
    if sizes.trains_vision:
        # A clip has no completions.
        parts.append((row_patches, vision.hidden_size, vision.intermediate_size, vision.depth, 0.0))
    kept, largest = 0.0, 0.0
    for tokens, width, inner, depth, repeated in parts:
        # A layer's own: queries, keys, values, attention's and the norms' outputs, and three of the inner width; behind
        # an exchange of positions for heads the first four again.
        own = tokens * (2 * 3 * inner + (2 * (6 + 4 * (size > 1)) + 2 * stream) * width)
        inputs = 0.0 if config.model.activation_offloading else tokens * stream * width * depth
        kept += inputs if config.model.gradient_checkpointing else own * depth
        # Its gradients beside it.
        largest = max(largest, 2.0 * own + repeated)
    # Logits, log-probs and their gradient in fp32.
    head = 3 * 4 * min(HEAD_CHUNK_TOKENS, sizes.row_tokens) * text.vocab_size
    return kept + max(largest, float(head))


def _repeated_keys(config: Config, policy: Policy, sizes: Sizes) -> float:
    """Return the bytes of a prompt's keys and values, which attention has again for each completion, with gradients."""
    text, size = policy.family.config.text_config, config.optim.sequence_parallel_size
    head_size = policy.model.model.language_model.layers[0].self_attn.head_dim
    # Each process has a head of its own at least.
    heads = math.lcm(text.num_key_value_heads, size) // size
    return 2.0 * 2 * 2 * heads * head_size * sizes.row_tokens * config.rollout.group_size


def engine_parts(config: Config, policy: Policy, sizes: Sizes, processes: int) -> dict[str, float]:
    """Return the GiB of vLLM's parts on a GPU (`engine_parts_gib`); none where it is not on this machine."""
    if config.rollout.engine not in ("vllm", "vllm_process"):
        return {}
    return engine_parts_gib(
        config,
        policy.family,
        num_weights=sizes.total,
        adapter_widths=sizes.adapter_widths,
        # A process of its own serves all the others.
        processes=processes if config.rollout.engine == "vllm" else 1,
    )


def peak_gib(
    config: Config, policy: Policy, sizes: Sizes, launch: Launch, *, processes: int, gpu_gib: float
) -> float:
    """Return the most GiB that a GPU needs at a time: in the update, or in sampling, where the engine is awake."""
    parts = needs(config, policy, sizes, launch, processes=processes, gpu_gib=gpu_gib)
    stays = parts["weights"] + parts["gradients and AdamW"] + parts["reference"]
    has_vllm = config.rollout.engine == "vllm"
    sampling = (
        (1 + UNNAMED_FRAC) * stays
        + parts["patches"]
        + parts["CUDA"]
        + has_vllm * config.rollout.gpu_memory_frac * gpu_gib
    )
    return max(sum(parts.values()), sampling)


def verdict(
    config: Config, policy: Policy, sizes: Sizes, name: str, *, processes: int, gpu_gb: float
) -> dict[str, Any]:
    """Return whether a run fits on GPUs of a size; if not, the first changes of settings or launch that make it fit.

    Learner and vLLM have to fit together, and what vLLM starts with into `rollout.gpu_memory_frac`.
    """
    gpu_gib = gpu_gb * 1e9 / GIB
    options: dict[str, Any] = {"processes": processes, "gpu_gib": gpu_gib}
    found = {
        "launch": name,
        "gpu_gb": gpu_gb,
        "needs_gib": peak_gib(config, policy, sizes, LAUNCHES[name], **options),
        "parts_gib": needs(config, policy, sizes, LAUNCHES[name], **options),
        "engine_gib": engine_parts(config, policy, sizes, processes),
    }
    for change, other, may_shrink in _changes(config, name, [*_split_sizes(config, policy, processes)]):
        launch = LAUNCHES[change.partition("launch ")[2] or name]
        least = least_frac(engine_parts(other, policy, sizes, processes), gpu_gib)
        frac = _fitting_frac(
            other.rollout.gpu_memory_frac,
            least,
            lambda frac, other=other, launch=launch: (
                peak_gib(_with_frac(other, frac), policy, sizes, launch, **options) <= gpu_gib
            ),
            may_shrink=may_shrink,
        )
        if frac is not None:
            is_other = frac != config.rollout.gpu_memory_frac
            changes = [*([f"rollout.gpu_memory_frac={frac:.2f}"] * is_other), *([change] if change else [])]
            return {**found, "fits": not changes, "change": " ".join(changes)}
    return {**found, "fits": False, "change": FURTHER_CHANGES}


def _with_frac(config: Config, frac: float) -> Config:
    return replace(config, rollout=replace(config.rollout, gpu_memory_frac=frac))


def _fitting_frac(
    own: float, least: float, fits: Callable[[float], bool], *, may_shrink: bool
) -> float | None:
    """Return the share of a GPU that vLLM starts with and the learner fits beside, None where none is: the config's
    own, the least if that is larger, or, if it may be smaller, the largest of full hundredths.
    """
    if own < least:
        return least if least <= 1 and fits(least) else None
    if fits(own):
        return own
    smaller = [count / 100 for count in range(round(100 * least), math.ceil(100 * own))] if may_shrink else []
    # What fits comes first.
    fitting = bisect_left(smaller, True, key=lambda frac: not fits(frac))
    return smaller[fitting - 1] if fitting else None


def _split_sizes(config: Config, policy: Policy, processes: int) -> Iterator[int]:
    """Yield by how many more processes than now each row can be computed, the fewest first."""
    heads = policy.family.config.text_config.num_attention_heads
    for size in range(config.optim.sequence_parallel_size + 1, processes + 1):
        if processes % size == 0 and heads % size == 0:
            yield size


def _changes(config: Config, name: str, split_sizes: Sequence[int]) -> Iterator[tuple[str, Config, bool]]:
    """Yield what may be changed, from what costs least time on, and whether vLLM's share may be smaller then: nothing
    or a setting, at first with the share as it is, all settings, another launch, both; then rows that more processes
    compute together.
    """
    checkpointing = replace(config, model=replace(config.model, gradient_checkpointing=True))
    changes = {"model.gradient_checkpointing=true": checkpointing}
    every = checkpointing
    if config.rollout.engine == "vllm":
        changes["rollout.sleep=true"] = replace(config, rollout=replace(config.rollout, sleep=True))
        every = replace(every, rollout=changes["rollout.sleep=true"].rollout)
    if config.loss.needs_reference and not config.model.lora.is_on:
        offloaded = replace(config, loss=replace(config.loss, reference_offload=True))
        changes["loss.reference_offload=true"], every = offloaded, replace(every, loss=offloaded.loss)
    candidates = {change: other for change, other in changes.items() if other != config}
    for may_shrink in (False, True):
        yield "", config, may_shrink
        yield from ((change, other, may_shrink) for change, other in candidates.items())
    yield " ".join(candidates), every, True
    offloading = replace(every, model=replace(every.model, activation_offloading=True))
    yield " ".join([*candidates, "model.activation_offloading=true"]), offloading, True
    later: list[str] = []
    if name != "single" and not config.model.load_in_4bit and config.optim.optimizer == "adamw":
        order = [*LAUNCHES]
        later = order[order.index(name) + 1 :]
        yield from ((f"launch {other}", config, True) for other in later)
        yield from ((f"{' '.join(candidates)} launch {other}", every, True) for other in later)
    for words in ("", *(f" launch {other}" for other in later)):
        for size in split_sizes:
            optim = replace(every.optim, sequence_parallel_size=size)
            named = " ".join([*candidates, f"optim.sequence_parallel_size={size}"])
            yield named + words, replace(every, optim=optim), True


def goes_with(config: Config, name: str, processes: int) -> bool:
    """Return whether a launch takes a run with this config at all (`check_launch`)."""
    takes_apart = LAUNCHES[name].splits_states
    in_few_bits = config.model.load_in_4bit or config.optim.optimizer == "adamw_8bit"
    keeps_near = config.optim.robust.method != "none" and LAUNCHES[name].in_bf16
    divides = (1 if name == "single" else processes) % config.optim.sequence_parallel_size == 0
    return divides and not (takes_apart and in_few_bits) and not keeps_near


def table(
    config: Config, policy: Policy, *, row_tokens: int, row_vision_tokens: int, processes: int
) -> list[dict[str, Any]]:
    """Return a verdict for each launch file that takes the run, and each usual size of a GPU."""
    sizes = sizes_of(config, policy, row_tokens=row_tokens, row_vision_tokens=row_vision_tokens)
    return [
        verdict(config, policy, sizes, name, processes=1 if name == "single" else processes, gpu_gb=gpu_gb)
        for name in LAUNCHES
        if goes_with(config, name, processes)
        for gpu_gb in GPUS_GB
    ]
