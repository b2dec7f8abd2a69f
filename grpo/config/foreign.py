"""Names that trl, ms-swift, verl, EasyR1, VLM-R1 and Video-R1 give to settings, for who types one of them here.

`docs/coming_from.md` says what differs. Names that are the same in another section here need no line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NAMES = {
    "run_dir": "output_dir default_local_dir save_checkpoint_path",
    "num_steps": "max_steps num_train_epochs total_training_steps total_epochs",
    "model.path": "model_name_or_path model_path",
    "model.lora.r": "lora_rank lora_r tuner_type train_type use_peft",
    "model.lora.alpha": "lora_alpha",
    "model.lora.targets.language": "target_modules lora_target_modules",
    "model.freeze": "freeze_vit freeze_aligner freeze_llm",
    "model.freeze_vision": "freeze_vision_tower freeze_vision_modules",
    "model.load_in_4bit": "quant_bits",
    "model.attention": "attn_impl attn_implementation",
    "model.gradient_checkpointing": "enable_gradient_checkpointing",
    "model.activation_offloading": "enable_activation_offload",
    "prompt.system": "system system_prompt",
    "prompt.template": "format_prompt",
    "data.train": "dataset dataset_name train_files data_file_paths image_folders",
    "data.train=[{reader: auto, path: FILE}]": "reader media_root frame_fps data.path",
    "data.eval": "val_dataset val_files",
    "media.fps": "video_fps",
    "media.min_frames": "fps_min_frames",
    "media.max_frames": "fps_max_frames video_maxlen",
    "media.min_pixels": "video_min_pixels image_min_pixels",
    "media.max_pixels": "video_max_pixels image_max_pixels",
    "media.total_pixels": "video_total_pixels",
    "rollout.engine": "use_vllm vllm_mode rollout.name",
    "rollout.group_size": "num_generations rollout.n",
    "rollout.max_new_tokens": "max_completion_length max_response_length",
    "rollout.max_model_tokens": (
        "vllm_max_model_length vllm_max_model_len max_model_len max_length max_prompt_length"
    ),
    "rollout.gpu_memory_frac": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "rollout.stop": "stop_sequences stop_words",
    "rollout.tensor_parallel_size": "vllm_tensor_parallel_size tensor_model_parallel_size",
    "rollout.servers": "vllm_server_base_url vllm_server_host vllm_server_port",
    "rollout.server_timeout_s": "vllm_server_timeout",
    "rollout.sleep": "vllm_enable_sleep_mode sleep_level free_cache_engine",
    "rewards.NAME.weight": "reward_weights",
    "rewards.NAME.fn": (
        "reward_funcs reward_func external_plugins reward_function custom_reward_function.path "
        "custom_reward_function.name"
    ),
    "rewards.temporal.fn=t_grpo": "temporal",
    "rewards.length.fn=length_window": "len_control",
    "advantages.baseline": "advantage_estimator adv_estimator",
    "advantages.scale": "scale_rewards norm_adv_by_std_in_grpo",
    "loss.type": "loss_type loss_agg_mode loss_avg_mode loss_mode",
    "loss.epsilon": "clip_ratio_low clip_ratio",
    "loss.epsilon_high": "clip_ratio_high",
    "loss.delta": "clip_ratio_c clip_ratio_dual",
    "loss.beta": "kl_coef kl_loss_coef use_kl_loss",
    "loss.kl_in_reward": "use_kl_in_reward",
    "loss.kl_estimator": "kl_loss_type kl_penalty",
    "loss.entropy_coef": "entropy_coeff",
    "loss.sapo_temperature_pos": "tau_pos",
    "loss.sapo_temperature_neg": "tau_neg",
    "loss.mask_truncated_completions": "overlong_filter",
    "loss.reference_offload": "ref.fsdp_config.param_offload",
    "loss.vllm_importance_sampling_mode": "rollout_importance_sampling_mode rollout_is",
    "loss.vllm_importance_sampling_clip_max": (
        "rollout_importance_sampling_threshold rollout_is_threshold vllm_importance_sampling_cap"
    ),
    "optim.optimizer": "optim",
    "optim.lr": "learning_rate",
    "optim.schedule": "lr_scheduler_type",
    "optim.min_lr_frac": "min_lr_ratio",
    "optim.warmup_steps": "lr_warmup_steps warmup_ratio lr_warmup_ratio",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.max_grad_norm": "grad_clip",
    "optim.num_iterations": "ppo_epochs",
    "optim.prompts_per_step": (
        "batch_size per_device_train_batch_size train_batch_size rollout_batch_size generation_batch_size "
        "global_batch_size gradient_accumulation_steps"
    ),
    "optim.tokens_per_row": "ppo_max_token_len_per_gpu",
    "optim.sequence_parallel_size": "ulysses_sequence_parallel_size sequence_parallel_size sp_size cp_size",
    "dynamic_sampling.max_resample_times": "dynamic_sample filter_groups.enable",
    "eval.every_steps": "eval_steps test_freq val_freq",
    "eval.sampled": "num_generations_eval",
    "checkpoint.every_steps": "save_steps save_freq",
    "checkpoint.keep": "save_total_limit max_actor_ckpt_to_keep save_limit",
    "log.rollouts_every_steps": "log_completions rollout_data_dir",
    "log.trackers": "report_to trainer.logger",
}
"""The names of others by ours; one with a dot is known by both of its parts."""


WHOLE = "completions are sampled from the whole distribution, of which the learner's log-probs are"
REFUSED = {
    f"{WHOLE}; what is cut off would have to be cut off there too": (
        "top_p top_k min_p typical_p epsilon_cutoff generation_kwargs"
    ),
    f"{WHOLE}; a penalty changes it with every token": (
        "repetition_penalty presence_penalty frequency_penalty no_repeat_ngram_size"
    ),
    f"{WHOLE}; a grammar would mask it anew at every token: rewards.format teaches the form, and evaluations and "
    "egogrpo ask have a regex": (
        "structured_outputs vllm_structured_outputs_regex guided_decoding guided_json guided_regex guided_grammar"
    ),
}
"""Settings of sampling that are not here, by the reason."""


def our_name(key: str, settings: Iterable[str]) -> str | None:
    """The setting here that another project's dotted key means, as far as its end tells; None if it tells nothing.

    settings: all keys that there are here.
    """
    known = _by_end(settings)
    parts = key.lstrip("-").lower().split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    return next((known[end] for end in ends if end in known), None)


def meant_by(key: str, leaf: str, siblings: Iterable[str], settings: Iterable[str]) -> str:
    """What to tell somebody who sets a dotted key that does not exist, as far as it can be told what is meant.

    leaf: the key, or one below it that is set. siblings: the names in its section. settings: all keys that there are.
    """
    for reason, names in REFUSED.items():
        if leaf.lstrip("-").lower().rpartition(".")[2] in names.split():
            return f"no setting {leaf}: {reason}"
    if ours := our_name(leaf, settings):
        return f"no setting {leaf}; here it is {ours} (docs/coming_from.md)"
    section, _, name = key.rpartition(".")
    inside = {each: f"{section}.{each}" if section else each for each in siblings}
    known = _by_end(settings) | inside
    if close := get_close_matches(name.lstrip("-").lower(), known, n=1, cutoff=0.65):
        return f"no setting {key}; did you mean {known[close[0]]}?"
    return f"no setting {key}; {f'{section} has' if section else 'there are'} {', '.join(inside)}"


def _by_end(settings: Iterable[str]) -> dict[str, str]:
    """The settings by their whole keys, by their last parts and by the names of others, where these mean one alone."""
    found: dict[str, set[str]] = {}
    for own in settings:
        for end in {own, own.rpartition(".")[2]}:
            found.setdefault(end, set()).add(own)
    found |= {name: {own} for own, names in NAMES.items() for name in names.split()}
    return {end: min(owners) for end, owners in found.items() if len(owners) == 1}
