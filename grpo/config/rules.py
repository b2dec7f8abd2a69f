"""Keys that contradict each other, one function for each subject; what a single key may be stands beside its field.

A rule yields what is wrong in lines that name the keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from grpo.config.model import PARTS
from grpo.config.schema import SHARE_UNITS, Config, PromptConfig
from grpo.media.sampling import MediaSettings
from rewards.parsing import TAGS

EVAL_METRICS = ("length", "ours", "official", "unparsed", "accuracy", "drop")
"""What is measured of held-out sets beside the rewards: of all, of those of benchmarks, and about changed frames."""
ELSEWHERE = ("vllm_process", "vllm_server")
"""The engines in other processes than the learner's, which get whole weights."""
KEY_OF_PART = {"kl": "loss.kl_in_reward", "care": "loss.care.bonus"}
"""The setting that asks for each part of the totals that the reference gives."""
CLIPPED_LOSSES = ("grpo", "gspo", "bnpo", "dapo", "dr_grpo")


def contradictions(config: Config) -> Iterator[str]:
    """What is wrong with the settings taken together."""
    for rule in RULES:
        yield from rule(config)


def _prompt(config: Config) -> Iterator[str]:
    if config.rollout.max_prompt_tokens <= 0:
        yield "rollout.max_new_tokens leaves no room for a prompt in rollout.max_model_tokens"
    yield from prompt_contradictions(config.prompt, config.tags, "prompt")


def prompt_contradictions(prompt: PromptConfig, tags: Sequence[str], key: str) -> Iterator[str]:
    """What is wrong with a prompt's wording, whoever has one."""
    for tag in sorted(set(tags) - set(TAGS)):
        yield f"{key}.tags: no tag {tag!r}; there are {', '.join(TAGS)}"
    yield from _format(f"{key}.template", prompt.template, "question", "options", "instruction")
    yield from _format(f"{key}.option", prompt.option, "letter", "text")


def _servers(config: Config) -> Iterator[str]:
    rollout = config.rollout
    yield from server_contradictions(rollout.engine, rollout.servers)
    if rollout.engine in ELSEWHERE and rollout.lora == "adapters":
        yield "rollout.lora=adapters is of rollout.engine=vllm; servers get them merged"
    if rollout.process_gpus is not None and rollout.engine != "vllm_process":
        yield "rollout.process_gpus are those of rollout.engine=vllm_process"


def server_contradictions(engine: str, servers: Sequence[str]) -> Iterator[str]:
    """What is wrong with the addresses of an engine's servers, whoever has some."""
    if (engine == "vllm_server") != bool(servers):
        yield "rollout.servers are those of rollout.engine=vllm_server, which needs at least one"
    for url in servers:
        if not re.fullmatch(r"https?://[^/]+/?", url):
            yield f"rollout.servers: {url!r} is no address of the form http://HOST:PORT"
    if len({url.rstrip("/") for url in servers}) < len(servers):
        yield "rollout.servers names a server twice"


def _partial(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.partial_tokens is None:
        if rollout.partial_max_steps != type(rollout).partial_max_steps:
            yield "rollout.partial_max_steps is of rollout.partial_tokens, which is not set"
        return
    if not rollout.overlap:
        yield "rollout.partial_tokens needs rollout.overlap"
    if rollout.stop:
        yield "rollout.partial_tokens does not go with rollout.stop, whose texts may lie in two steps"
    if config.dynamic_sampling.max_resample_times:
        yield "rollout.partial_tokens does not go with dynamic_sampling.max_resample_times"
    if rollout.partial_tokens >= rollout.max_new_tokens:
        yield (
            f"rollout.partial_tokens={rollout.partial_tokens} cuts nothing: it must be below "
            f"rollout.max_new_tokens={rollout.max_new_tokens}"
        )


def _overlap(config: Config) -> Iterator[str]:
    rollout, loss = config.rollout, config.loss
    if not rollout.overlap:
        return
    if rollout.engine not in ELSEWHERE:
        yield f"rollout.overlap needs an engine beside the learner: rollout.engine={' or '.join(ELSEWHERE)}"
    if not rollout.prove_sync_every and rollout.max_gap != 0:
        yield (
            "rollout.prove_sync_every=0 measures no gap with rollout.overlap, which rollout.max_gap would apply to: "
            "set rollout.max_gap=0 too"
        )
    if not loss.vllm_importance_sampling_correction:
        yield "rollout.overlap trains on completions of older weights: set loss.vllm_importance_sampling_correction"
    elif loss.engine_level == "sequence":
        yield (
            "rollout.overlap corrects by token: loss.vllm_importance_sampling_mode=token_truncate or token_mask, not "
            f"{loss.vllm_importance_sampling_mode}"
        )


def _format(key: str, text: str, *names: str) -> Iterator[str]:
    try:
        text.format(**dict.fromkeys(names, ""))
    except (KeyError, IndexError, ValueError) as error:
        yield f"{key}: {error} in {text!r}; it may use {{{'}, {'.join(names)}}}, and {{{{ for a brace"


def _data(config: Config) -> Iterator[str]:
    if not config.data.train:
        yield "data.train lists no dataset"
    shares = [dataset.share for dataset in config.data.train]
    total = sum(share for share in shares if share is not None)
    if None not in shares and shares and abs(total - 1) > 1e-3:
        yield f"data.train: every set has a share, and they sum up to {total:g}, not 1"
    if None in shares and total > 1 - 1 / SHARE_UNITS:
        yield f"data.train: shares of {total:g} leave nothing to the sets without one"
    if any(dataset.share is not None for dataset in config.data.eval):
        yield "data.eval: only training sets have a share"
    if any(dataset.benchmark or dataset.official_prompt or dataset.judge for dataset in config.data.train):
        yield "data.train: only held-out sets are of a benchmark"
    if any(dataset.official_prompt and not dataset.benchmark for dataset in config.data.eval):
        yield "data.eval: official_prompt is for a set with a benchmark"
    if any(dataset.judge and not dataset.benchmark for dataset in config.data.eval):
        yield "data.eval: a judge is for a set with a benchmark"
    labels = [dataset.label for dataset in config.data.eval]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        yield f"data.eval: two sets are called {label!r}; set their name"
    yield from _best_metric(config, labels)


def _best_metric(config: Config, labels: list[str]) -> Iterator[str]:
    metric, names = config.eval.best_metric, [*config.rewards, *EVAL_METRICS]
    if metric is None:
        return
    if not any(metric.startswith(f"eval/{label}/") for label in labels):
        yield f"eval.best_metric: {metric} is of none of the held-out sets, which are {', '.join(labels) or 'none'}"
    elif metric.rpartition("/")[2] not in names:
        yield f"eval.best_metric: there is no {metric}; a held-out set has {', '.join(names)}"


def _media(config: Config) -> Iterator[str]:
    yield from media_contradictions(config.media)


def stop_contradictions(stop: list[str]) -> Iterator[str]:
    """What is wrong with the texts that end a completion, whoever has some."""
    if "" in stop:
        yield "rollout.stop: an empty text would end every completion at once"


def media_contradictions(media: MediaSettings) -> Iterator[str]:
    """What is wrong with the settings of clips, whoever has some."""
    for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
        if getattr(media, low) > getattr(media, high):
            yield f"media.{low} ({getattr(media, low)}) must be at most media.{high} ({getattr(media, high)})"


def _rewards(config: Config) -> Iterator[str]:
    if not config.rewards:
        yield "rewards is empty"
    elif not any(reward.weight for reward in config.rewards.values()):
        yield "rewards: every weight is 0, so there is nothing to learn from"
    for part in {*config.loss.reference_parts} & {*config.rewards}:
        yield f"rewards.{part}: {KEY_OF_PART[part]} takes that name; call the reward something else"


def _aggregation(config: Config) -> Iterator[str]:
    if config.advantages.multi_objective_aggregation == "normalize_then_sum":
        for part in config.loss.reference_parts:
            yield f"{KEY_OF_PART[part]} does not go with advantages.multi_objective_aggregation"
        if config.advantages.min_std:
            yield "advantages.min_std does not go with advantages.multi_objective_aggregation"
        if config.advantages.baseline == "loo":
            yield "advantages.baseline=loo does not go with advantages.multi_objective_aggregation"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.activation_offloading and not model.gradient_checkpointing:
        yield "model.activation_offloading moves what model.gradient_checkpointing stores: set that too"
    if model.load_in_4bit and not model.lora.is_on:
        yield "model.load_in_4bit needs model.lora.r: weights of 4 bits can't be trained"
    if model.new_rows_only and (model.lora.is_on or "language" in model.frozen):
        yield "model.new_rows_only: neither model.lora nor a frozen language model goes with it, whose rows train"
    if model.new_rows_only and config.optim.optimizer == "adamw_8bit":
        yield "model.new_rows_only does not go with optim.optimizer=adamw_8bit: few weights have moments"
    if not model.lora.is_on and model.frozen == set(PARTS):
        yield "model.freeze leaves nothing to train"


def _lora(config: Config) -> Iterator[str]:
    """Reference settings that LoRA rules out: its reference is the model without adapters, which has no own weights."""
    model, loss = config.model, config.loss
    if not model.lora.is_on:
        return
    targeted = [part for part in PARTS if getattr(model.lora.targets, part)]
    if not targeted:
        yield "model.lora.targets names no layers in any part"
    for part in targeted:
        if part in model.frozen:
            yield f"model.freeze and model.lora.targets both name {part}: leave it to one"
    if loss.sync_ref_model:
        yield "loss.sync_ref_model does not go with model.lora: its reference can't move"


def _rollout(config: Config) -> Iterator[str]:
    rollout, model = config.rollout, config.model
    yield from stop_contradictions(rollout.stop)
    if rollout.lora != "auto" and not model.lora.is_on:
        yield f"rollout.lora={rollout.lora} has no effect without model.lora.r"
    if rollout.lora == "adapters" and model.load_in_4bit:
        yield "rollout.lora=adapters does not go with model.load_in_4bit: vLLM's weights would not be those of 4 bits"
    if rollout.tensor_parallel_size > 1 and rollout.engine != "vllm":
        yield f"rollout.tensor_parallel_size has no effect with rollout.engine={rollout.engine}"


def _reference(config: Config) -> Iterator[str]:
    loss = config.loss
    if loss.beta == 0 and loss.kl_in_reward:
        yield "loss.kl_in_reward needs a loss.beta above 0: without one there is no divergence to subtract"
    if loss.sync_ref_model and not loss.needs_reference:
        yield "loss.sync_ref_model needs a loss.beta or a loss.care.bonus above 0: without them there is no reference"
    if loss.care.bonus and loss.care.reward not in config.rewards:
        yield f"loss.care.reward: no reward is called {loss.care.reward!r}"
    if loss.beta and loss.kl_estimator == "k1" and not (loss.kl_in_reward or loss.use_bias_correction_kl):
        yield "loss.kl_estimator=k1 has no gradient on average without use_bias_correction_kl or kl_in_reward"


def _ratios(config: Config) -> Iterator[str]:
    loss = config.loss
    if loss.type == "gspo" and loss.level == "token":
        yield "loss.type=gspo has importance_sampling_level=sequence; with token it is grpo"
    if loss.type == "cispo" and loss.upper_epsilon < 1:
        yield f"loss.epsilon_high={loss.upper_epsilon}: with loss.type=cispo it is the largest ratio itself, 5 say"
    if loss.delta is not None and loss.type not in CLIPPED_LOSSES:
        yield f"loss.delta has no effect with loss.type={loss.type}"
    if loss.delta is not None and loss.delta <= 1 + loss.upper_epsilon:
        yield f"loss.delta={loss.delta} must be above 1 + loss.epsilon_high={loss.upper_epsilon}"
    low, high = loss.vllm_importance_sampling_clip_min, loss.vllm_importance_sampling_clip_max
    if low is not None and high is not None and low >= high:
        yield "loss.vllm_importance_sampling_clip_min must be below ..._clip_max"


def _given(config: Config) -> Iterator[str]:
    """What goes wrong where completions are given, and where nothing is sampled."""
    loss, engine = config.loss, config.rollout.engine
    if loss.is_sampled:
        if engine == "none":
            yield f"rollout.engine=none: loss.type={loss.type} samples completions; only nll does not"
        return
    yield from _format("data.target", config.data.target, "target")
    set_for_samples = {
        "loss.beta": loss.beta,
        "loss.care.bonus": loss.care.bonus,
        "loss.entropy_coef": loss.entropy_coef,
        "loss.top_entropy_quantile": 1 - loss.top_entropy_quantile,
        "dynamic_sampling.max_resample_times": config.dynamic_sampling.max_resample_times,
        "dynamic_sampling.skip_epochs": config.dynamic_sampling.skip_epochs,
        "rollout.temperature": config.rollout.temperature - 1,
        "rollout.overlap": config.rollout.overlap,
    }
    for key in (key for key, value in set_for_samples.items() if value):
        yield f"{key} is for sampled completions; loss.type=nll trains on given ones"
    asks = bool(config.data.eval) and config.eval.every_steps > 0
    if asks and engine == "none":
        yield "rollout.engine=none can't answer the questions of data.eval; set an engine, or eval.every_steps=0"
    if not asks and engine != "none":
        yield "loss.type=nll without an evaluation samples nothing: set rollout.engine=none"


def _robust(config: Config) -> Iterator[str]:
    optim = config.optim
    if optim.robust.spd_accumulates and optim.robust.method != "spd":
        yield f"optim.robust.spd_accumulates has no effect with optim.robust.method={optim.robust.method}"
    if optim.robust.method == "none":
        if optim.robust.strength:
            yield "optim.robust.strength has no effect with optim.robust.method=none"
        return
    if optim.optimizer != "adamw":
        yield f"optim.robust does not go with optim.optimizer={optim.optimizer}"
    if optim.weight_decay:
        yield "optim.robust takes the place of weight decay: set optim.weight_decay=0"


def _dynamic_sampling(config: Config) -> Iterator[str]:
    sampling, loss = config.dynamic_sampling, config.loss
    if sampling.max_resample_times and (loss.needs_flat_groups or loss.reference_parts):
        yield (
            "dynamic_sampling.max_resample_times: with loss.beta, loss.entropy_coef or loss.care, groups of equal "
            "rewards have a gradient too; they must not be replaced"
        )
    if sampling.skip_epochs and sampling.reward not in config.rewards:
        yield f"dynamic_sampling.reward: no reward is called {sampling.reward!r}"
    if sampling.hopeless_to >= sampling.solved_from:
        yield "dynamic_sampling.hopeless_to must be below solved_from"


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _prompt, _data, _media, _rewards, _aggregation, _model, _lora, _rollout, _servers, _partial, _overlap, _reference,
    _ratios, _given, _robust, _dynamic_sampling,
)  # fmt: skip
