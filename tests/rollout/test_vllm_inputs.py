"""What vLLM is given of a prompt equals what its own processor makes of it, and is made once for the learner too."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from grpo.groups import Prompt
from grpo.media.clip import Clip
from grpo.policy import uploads
from grpo.rollout.vllm_arguments import EngineSize, engine_arguments, set_environment
from grpo.rollout.vllm_inputs import VLLMInputs
from tests.support import tiny

pytest.importorskip("vllm")

SIZE = EngineSize(max_model_tokens=4096, gpu_memory_frac=0.3)


def without_engine(path: str) -> Any:
    """What of vLLM makes inputs."""
    set_environment()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.offline_utils import OfflineInferenceMixin
    from vllm.renderers.registry import renderer_from_config

    arguments = engine_arguments(SIZE, on_gpu=False, launched=False, sleeps=False)
    arguments.pop("use_tqdm_on_load")
    config = EngineArgs(path, dtype="float32", **arguments).create_engine_config()
    llm: Any = OfflineInferenceMixin()
    llm.model_config, llm.renderer = config.model_config, renderer_from_config(config)
    return llm


@pytest.mark.usefixtures("each_family")
def test_inputs_equal_those_of_vllms_own_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Prompt] = []
    compare = VLLMInputs._compare
    monkeypatch.setattr(
        VLLMInputs, "_compare", lambda own, *given: compared.append(given[0]) or compare(own, *given)
    )
    inputs = VLLMInputs(tiny.policy(), without_engine(tiny.family().path))
    prompts = [
        tiny.prompt(tiny.sample(), tiny.clip(2, fps=0.5)),
        tiny.prompt(tiny.sample(), tiny.clip(12, 56, 84, 29.97 / 7)),
        *(tiny.media_prompt(kinds) for kinds in tiny.SEVERAL.values()),
    ]
    for prompt in prompts:
        inputs.begin(prompt.clips)
        inputs._compared.clear()
        inputs.of(prompt)
    assert compared == prompts
    inputs.close()


def test_a_clips_inputs_are_made_once_and_their_names_tell_frames_and_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Clip] = []
    real = uploads.uploaded
    monkeypatch.setattr(uploads, "uploaded", lambda clip, device: made.append(clip) or real(clip, device))
    policy = tiny.policy()
    inputs = VLLMInputs(policy, without_engine(tiny.family().path))
    clips = [tiny.clip(), tiny.clip(), tiny.clip(fps=1.0), tiny.clip(seed=1)]
    prompts = [tiny.prompt(tiny.sample(question=text), clip) for text in ("Who?", "Where?") for clip in clips]
    inputs.prepare(prompts, step=1)
    names = [inputs.of(prompt)["mm_hashes"]["video"][0] for prompt in prompts]
    assert names[0] == names[1] and len({*names[1:4]}) == 3 and names[:4] == names[4:]
    for clip in clips:
        policy.uploads.get(clip, policy.device)
    assert Counter(made) == Counter(clips)
    # What a later step needs stays.
    policy.uploads.expect(clips[:1], policy.device, step=2)
    policy.uploads.clear(1)
    for clip in clips:
        policy.uploads.get(clip, policy.device)
    assert Counter(made) == Counter(clips + clips[1:])
    inputs.close()
