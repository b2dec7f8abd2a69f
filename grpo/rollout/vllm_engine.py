"""The vLLM engine, the default: vLLM in the trainer's own process, on GPU or CPU.

All G completions of a prompt are one request, so the clip is encoded and the prompt computed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any

import torch

from grpo.groups import Group, Prompt, Rollout, clips_of
from grpo.policy.model import Policy
from grpo.policy.weights import Bucket, engine_weights, flat, weight_buckets
from grpo.rollout import OnGroup, Sampling, as_rollout
from grpo.rollout.concurrency import Concurrency
from grpo.rollout.sync_proof import SyncProof
from grpo.rollout.vllm_arguments import EngineSize, engine_arguments, set_environment
from grpo.rollout.vllm_inputs import VLLMInputs
from grpo.rollout.vllm_settings import CODE_RULES, sampling_fields
from grpo.rollout.vllm_weights import AdapterLoader, WeightLoader

BEGUN_PROMPTS = 8
"""The prompts whose inputs are begun at a time: enough to keep the thread busy, and few to keep in memory."""


class VLLMEngine:
    """The engine that samples through vLLM."""

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        size: EngineSize,
        dtype: torch.dtype = torch.float32,
        sleep: bool = False,
        proof: SyncProof | None = None,
    ) -> None:
        """Load vLLM.

        dtype: the precision that the engine computes in, the learner's too. sleep: its memory is free during updates.
        proof: what is asked after a sync; None: nothing.
        """
        set_environment()
        with warnings.catch_warnings():
            # vLLM's own use of torch warns.
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM

        self.policy, self.proof = policy, proof
        self.family, self.dtype = policy.family, dtype
        self.on_gpu = torch.cuda.is_available()
        self.sleeps = sleep and self.on_gpu
        self.max_model_tokens = size.max_model_tokens
        self.tensor_parallel_size = size.tensor_parallel_size
        self.concurrency = Concurrency(size.max_sequences)
        self.is_launched = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        arguments = engine_arguments(size, on_gpu=self.on_gpu, launched=self.is_launched, sleeps=self.sleeps)
        if self.family.vocabulary is not None:
            arguments["logits_processors"] = [CODE_RULES]
        num_threads = torch.get_num_threads()
        # vLLM's seed only matters for requests that have none.
        self.llm = LLM(self.family.path, dtype=str(dtype).removeprefix("torch."), seed=seed, **arguments)  # pyright: ignore
        # vLLM changes it on CPU.
        torch.set_num_threads(num_threads)
        self.inputs, self.numbers = VLLMInputs(policy, self.llm), count()
        engine: Any = self.llm.llm_engine
        worker = engine.model_executor.driver_worker.worker
        self.weights = WeightLoader(worker, repacks=not self.on_gpu)
        self.adapters = AdapterLoader(engine, worker, dtype) if size.lora_rank else None
        self.adapter: Any = None
        """The request for the adapters that are sampled with; None: none."""

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        self.inputs.prepare(prompts, step)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Sample as `Engine.generate` describes; raise ValueError for prompt tokens that vLLM has no room for, or
        other ones of."""
        for prompt in prompts:
            self.family.check_vision_tokens(prompt)
            if (count := len(prompt.token_ids)) >= self.max_model_tokens:
                raise ValueError(
                    f"sample {prompt.sample.id}: its prompt has {count} tokens, and vLLM room for "
                    f"{self.max_model_tokens} with the completion"
                )
        requests = list(zip(prompts, seeds, strict=True))
        if self.tensor_parallel_size == 1:
            return self._sample(requests, sampling, on_group or (lambda _: None))
        # All processes of an engine have it compute the same, and each keeps what it has asked for.
        everyones, start = _shared(requests)
        own = range(start, start + len(requests))
        tell = on_group or (lambda _: None)
        mine = {id(everyones[index][0]) for index in own}
        groups = self._sample(
            everyones, sampling, lambda group: tell(group) if id(group.prompt) in mine else None
        )
        return [groups[index] for index in own]

    def _sample(
        self, requests: Sequence[tuple[Prompt, int]], sampling: Sampling, on_group: OnGroup
    ) -> list[Group]:
        """Sample a group for each prompt and seed; without enough memory, the rest with half as many at once."""
        groups: dict[int, Group] = {}

        def keep(index: int, group: Group) -> None:
            groups[index] = group
            on_group(group)

        # The longest first, since what is left at the end is decoded with few others.
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index][0].token_ids))
        while left := {index: requests[index] for index in order if index not in groups}:
            try:
                self._serve(left, sampling, keep)
            except RuntimeError as error:
                # Processes that share an engine would have to go on together, and only one of them may lack memory.
                if self.tensor_parallel_size > 1:
                    raise
                self._halve(error, len(left) * sampling.group_size)
        return [groups[index] for index in range(len(requests))]

    def _serve(
        self,
        requests: Mapping[int, tuple[Prompt, int]],
        sampling: Sampling,
        keep: Callable[[int, Group], object],
    ) -> None:
        """Give vLLM the requests in their order, and each group to `keep` as soon as it is complete."""
        asked: dict[str, int] = {}
        prompts = [prompt for prompt, _ in requests.values()]
        last_places = {clip: place for place, prompt in enumerate(prompts) for clip in prompt.clips}
        # On a CPU preparing a clip and stepping would share the cores. Processes that share an engine have to step
        # alike, whoever has a clip first.
        steps_meanwhile = self.on_gpu and self.tensor_parallel_size == 1

        def step() -> None:
            for output in self.llm.llm_engine.step():
                if output.finished:
                    index = asked[output.request_id]
                    keep(index, self._group(requests[index][0], output))

        try:
            for place, (index, (prompt, seed)) in enumerate(requests.items()):
                self.inputs.begin(clips_of(prompts[place : place + BEGUN_PROMPTS]))
                # The GPU is busy with the prompts before, while a clip is prepared.
                while steps_meanwhile and not self.inputs.is_ready(prompt) and self._is_busy():
                    step()
                asked[self._add(prompt, sampling, seed)] = index
                # vLLM has them now, until the prompt is answered.
                self.inputs.drop(clip for clip in prompt.clips if last_places[clip] == place)
            while self._is_busy():
                step()
        except BaseException:
            # Whoever asks next must not get these answers.
            self._drop_requests()
            raise
        finally:
            self.inputs.drop(last_places)

    def _drop_requests(self) -> None:
        engine: Any = self.llm.llm_engine
        engine.abort_request([*engine.output_processor.external_req_ids])
        if batches := engine.engine_core.engine_core.batch_queue:
            batches.clear()

    def _halve(self, error: RuntimeError, at_once: int) -> None:
        """Decode half as many completions at once from here on (`Concurrency.halve`)."""
        engine: Any = self.llm.llm_engine
        self.concurrency.halve(error, at_once)
        engine.engine_core.engine_core.scheduler.max_num_active_reqs = self.concurrency.most
        # Prefixes and features are noted as kept when a batch is planned, and this one was never computed.
        self._reset_caches()

    def _add(self, prompt: Prompt, sampling: Sampling, seed: int) -> str:
        """Give vLLM a request, and return the number that it answers under."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        fields = sampling_fields(self.family, sampling, seed)
        if "structured_outputs" in fields:
            fields["structured_outputs"] = StructuredOutputsParams(**fields["structured_outputs"])
        parameters = SamplingParams(**fields, output_kind=RequestOutputKind.FINAL_ONLY)
        number = str(next(self.numbers))
        self.llm.llm_engine.add_request(number, self.inputs.of(prompt), parameters, lora_request=self.adapter)
        return number

    def _is_busy(self) -> bool:
        """Return whether vLLM has work: requests, or a batch behind the last one's end that async scheduling began."""
        engine: Any = self.llm.llm_engine
        return engine.has_unfinished_requests() or bool(engine.engine_core.engine_core.batch_queue)

    def sync(self) -> None:
        """Load the policy's weights, drop what the old ones left, and have the proof asked where it is due.

        A sleeping engine wakes: first its weights, which have to be loaded, and then its cache. Adapters are loaded
        beside the weights, which stay; without that they are merged.
        """
        was_asleep = self.sleeps and self.llm.llm_engine.is_sleeping()
        if was_asleep:
            self.llm.wake_up(["weights"])
            self.weights.clear_states()
        if self.adapters is not None:
            self.adapter = self.adapters.load(self.policy)
        else:
            self.weights.load(flat(self._weights()))
        if was_asleep:
            self.llm.wake_up(["kv_cache"])
        self._reset_caches()
        if self.proof is not None:
            without = self._generate_without_adapters if self.adapters is not None else None
            self.proof.after_sync(self.generate, self._differing, without)

    def _weights(self) -> Iterator[Bucket]:
        # Where layers are not packed, the head is the embedding here too.
        buckets = weight_buckets if self.on_gpu else engine_weights
        return buckets(self.policy.model, dtype=self.dtype)

    def _reset_caches(self) -> None:
        """Drop prefixes, vision features and inputs; the scheduler would otherwise ask for features that are gone."""
        engine: Any = self.llm.llm_engine
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps prefixes of older weights: requests are still running")
        engine.reset_encoder_cache()
        engine.reset_mm_cache()

    def _differing(self) -> list[str]:
        if self.adapters is not None:
            return self.adapters.differing(self.policy)
        return self.weights.differing(flat(self._weights()))

    def _generate_without_adapters(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Group]:
        adapter, self.adapter = self.adapter, None
        try:
            return self.generate(prompts, sampling, seeds)
        finally:
            self.adapter = adapter

    def sleep(self) -> None:
        """Free the memory: weights that a sync loads anew are dropped, and those below adapters kept in main memory."""
        if self.sleeps:
            self.llm.sleep(level=2 if self.adapters is None else 1)

    def cancel(self) -> None: ...

    def close(self) -> None:
        self.inputs.close()
        # vLLM would end the process group of the launcher, and wait for the others, who may have failed.
        if not self.is_launched:
            self.llm.llm_engine.engine_core.shutdown()

    def _group(self, prompt: Prompt, output: Any) -> Group:
        if tuple(output.prompt_token_ids) != prompt.token_ids:
            raise ValueError(
                f"sample {prompt.sample.id}: vLLM sampled behind a prompt of {len(output.prompt_token_ids)} tokens, "
                f"the learner's has {len(prompt.token_ids)}"
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


def _shared(requests: list[tuple[Prompt, int]]) -> tuple[list[tuple[Prompt, int]], int]:
    """Return the requests of all processes that share this one's engine, and the place of its own first one."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    parts: list[list[tuple[Prompt, int]]] = [[] for _ in range(group.world_size)]
    torch.distributed.all_gather_object(parts, requests, group=group.cpu_group)
    # Its own are the objects that the caller knows.
    parts[group.rank_in_group] = requests
    return [*chain.from_iterable(parts)], sum(map(len, parts[: group.rank_in_group]))
