"""A model that answers: the parts of a run that an evaluation shares, built by the same assembly, without a learner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from accelerate import Accelerator

from grpo.benchmarks.benchmark import Benchmark
from grpo.benchmarks.prompts import official_wording
from grpo.config.evaluate import EvaluateConfig
from grpo.feed.prompts import Render
from grpo.learner.launching import compute_dtype
from grpo.media.loader import ClipLoader
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.policy.model_folder import check_weights, find_model_folder
from grpo.policy.prompt_text import Wording
from grpo.rollout import Engine, Sampling
from grpo.run.progress import under_way
from grpo.startup.assembly import build_engine, build_loader, build_outline, load_policy, wording


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A loaded model with what its prompts are made by."""

    family: ModelFamily
    policy: Policy
    """The policy; without weights where vLLM has them."""
    engine: Engine
    loader: ClipLoader
    render: Render
    sampling: Sampling
    max_prompt_tokens: int


@contextmanager
def answering(
    config: EvaluateConfig, benchmark: Benchmark, model_path: str, accelerator: Accelerator
) -> Iterator[Answering]:
    """Load a model and start its engine; both are closed at the end. ValueError for a folder that is not whole."""
    run, is_shown = config.as_run(model_path), accelerator.is_main_process
    family = load_family(model_path, seconds_dtype=compute_dtype())
    check_weights(find_model_folder(model_path))
    with closing(build_loader(run, family)) as loader:
        if config.rollout.engine != "vllm":
            with under_way(f"loading {model_path}", is_shown=is_shown):
                policy = load_policy(run, family, accelerator, loader.memory).to(accelerator.device)
        else:
            policy = build_outline(run, family)
        with under_way(f"starting rollout.engine={config.rollout.engine}", is_shown=is_shown):
            engine = build_engine(run, accelerator, policy)
        with closing(engine):
            if config.rollout.engine == "vllm_server":
                engine.sync()
            yield Answering(
                family=family,
                policy=policy,
                engine=engine,
                loader=loader,
                render=renderer(config, benchmark, family),
                sampling=Sampling(
                    group_size=config.rollout.num_samples,
                    max_new_tokens=config.rollout.max_new_tokens,
                    temperature=config.rollout.temperature,
                    stop=tuple(config.rollout.stop),
                    regex=config.rollout.regex,
                ),
                max_prompt_tokens=run.rollout.max_prompt_tokens,
            )


def renderer(config: EvaluateConfig, benchmark: Benchmark, family: ModelFamily) -> Render:
    """The renderer of prompts in the wording that an evaluation asks for."""
    return partial(family.render, **evaluated_wording(config, benchmark))


def evaluated_wording(config: EvaluateConfig, benchmark: Benchmark) -> Wording:
    """The wording of prompts: training's, or the whole user's turn of the benchmark."""
    own = wording(config.as_run(""))
    if config.prompt == "think":
        return own
    return {**own, **official_wording(asked_as(config, benchmark))}


def asked_as(config: EvaluateConfig, benchmark: Benchmark) -> Benchmark:
    """The benchmark without its official prompt where the direct one is asked."""
    return benchmark if config.prompt == "official" else replace(benchmark, prompt=None, system=None)
