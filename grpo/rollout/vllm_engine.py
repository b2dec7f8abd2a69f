"""The vLLM engine, the default: vLLM in the trainer's own process, on GPU or CPU.

All G completions of a prompt are one request, so the clip is encoded and the prompt computed once.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from grpo.groups import Group, Prompt, Rollout
from grpo.policy.model import SUPPRESSED_BIAS, Policy
from grpo.policy.weights import engine_weights, flat
from grpo.rollout import OnGroup, Sampling, as_rollout


class VLLMEngine:
    """The engine that samples through vLLM."""

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        max_model_tokens: int,
        gpu_memory_frac: float,
        dtype: torch.dtype = torch.float32,
        fp32_head: bool = False,
        sleep: bool = False,
    ) -> None:
        """Load vLLM; `dtype` is the precision that the engine computes in, the learner's too, but for an fp32 head."""
        _set_environment()
        with warnings.catch_warnings():
            # vLLM's own use of torch warns.
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM

        self.policy = policy
        self.family, self.dtype = policy.family, dtype
        self.on_gpu = torch.cuda.is_available()
        self.sleeps = sleep and self.on_gpu
        num_threads = torch.get_num_threads()
        self.llm = LLM(
            self.family.path,
            dtype=str(dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
            seed=seed,
            max_model_len=max_model_tokens,
            limit_mm_per_prompt={"video": 1, "image": 0},
            logprobs_mode="processed_logprobs",
            hf_overrides={"head_dtype": "float32"} if fp32_head else {},
            use_tqdm_on_load=False,
            mm_processor_kwargs={"do_resize": False, "cap_pixels_per_frame": False},
            **self._device_arguments(max_model_tokens, gpu_memory_frac),
        )
        torch.set_num_threads(num_threads)  # vLLM changes it on CPU

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Sample as `Engine.generate` describes; raise ValueError if vLLM has other prompt tokens than the learner."""
        if not prompts:
            return []
        for prompt in prompts:
            self.family.check_vision_tokens(prompt)
        ids = self.llm.enqueue(
            [self._request(prompt) for prompt in prompts],
            [self._sampling_params(sampling, seed) for seed in seeds],
            use_tqdm=False,
        )
        # vLLM returns ids with a random tail, and answers under the number before the tail.
        asked = {id.partition("-")[0]: prompt for id, prompt in zip(ids, prompts, strict=True)}
        groups: dict[str, Group] = {}
        for output in self._finished():
            group = groups[output.request_id] = self._group(asked[output.request_id], output)
            if on_group is not None:
                on_group(group)
        return [groups[number] for number in asked]

    def _finished(self) -> Iterator[Any]:
        """Yield requests as they finish: `LLM.generate` without waiting for the last one."""
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            yield from (output for output in engine.step() if output.finished)

    def sync(self) -> None:
        """Load the policy's weights, then drop what the old ones left: prefixes, vision features, inputs.

        `reload_weights` also works where vLLM has repacked its layers (CPU). It clears the worker's encoder
        cache but not the scheduler's, which would then ask for features that are gone.
        """
        engine: Any = self.llm.llm_engine
        runner = engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=flat(engine_weights(self.policy.model, dtype=self.dtype)))
        self.llm.reset_prefix_cache()
        engine.reset_encoder_cache()
        engine.reset_mm_cache()

    def sleep(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if self.sleeps:
            self.llm.wake_up()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def _device_arguments(self, max_model_tokens: int, gpu_memory_frac: float) -> dict[str, Any]:
        if self.on_gpu:
            arguments = {"gpu_memory_utilization": gpu_memory_frac, "enable_sleep_mode": self.sleeps}
            # One engine in each process of the launcher, instead of processes of vLLM's own.
            launched = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
            return arguments | ({"distributed_executor_backend": "external_launcher"} if launched else {})
        # A seeded request whose prompt is prefilled in parts dies on CPU ("CPU Generator does not use offset").
        # vLLM calls whole prefills unofficial; sampler/gap_max shows at every step that they are right.
        return {
            "enforce_eager": True,
            "max_num_seqs": 256,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(16384, max_model_tokens),
        }

    def _request(self, prompt: Prompt) -> Any:
        request: dict[str, Any] = {"prompt_token_ids": self.family.folded_ids(prompt)}
        if prompt.clip is not None:
            request["multi_modal_data"] = {"video": [self.family.engine_video(prompt.clip)]}
        return request

    def _sampling_params(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.group_size,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=seed,
            logprobs=0,
            stop_token_ids=list(self.family.eos_ids),
            logit_bias={token: SUPPRESSED_BIAS for token in self.family.suppressed_ids},
            skip_special_tokens=False,
        )

    def _group(self, prompt: Prompt, output: Any) -> Group:
        if tuple(output.prompt_token_ids) != prompt.token_ids:
            raise ValueError(
                f"sample {prompt.sample.id}: vLLM expanded the prompt to {len(output.prompt_token_ids)} tokens, "
                f"the learner to {len(prompt.token_ids)}"
            )
        return Group(prompt=prompt, rollouts=tuple(self._rollout(prompt, one) for one in output.outputs))

    def _rollout(self, prompt: Prompt, completion: Any) -> Rollout:
        token_ids = list(completion.token_ids)
        logprobs = [step[token].logprob for step, token in zip(completion.logprobs, token_ids, strict=True)]
        return as_rollout(
            prompt,
            text=self.family.decode(token_ids),
            token_ids=token_ids,
            logprobs=logprobs,
            stopped=completion.finish_reason == "stop",
        )


def _set_environment() -> None:
    """Set the environment variables that vLLM reads when it is imported, unless they are set already."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # On CPU vLLM warns, at length, of GPU features that are missing.
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Else vLLM takes the learner's threads.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
