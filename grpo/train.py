"""A training run: `accelerate launch grpo/train.py CONFIG.yaml ... key=value ...`.

Run again with the same arguments, it resumes. Everything that can be wrong with the arguments, the rewards
and the data is found out here, in the order of how cheap it is to find, before a model is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from transformers.utils import logging as transformers_logging

from grpo.config.load import load_config, to_yaml
from grpo.config.same_run import check_same_run
from grpo.config.schema import Config
from grpo.data import check_media, check_overlap, load_samples, load_sets, namesakes
from grpo.data.jsonl import OWN_KEYS
from grpo.feed.mixture import Part, parts
from grpo.feed.prompts import make_batch
from grpo.groups import Sample
from grpo.learner.launching import check_launch, compute_dtype, make_accelerator
from grpo.learner.update import Learner
from grpo.media.loader import ClipLoader
from grpo.policy.attention_backends import check_backend
from grpo.policy.families import Qwen25VL, load_family
from grpo.rollout.counterfactuals import make_plan
from grpo.run.folder import RunDir, make_manifest
from grpo.startup.assembly import (
    build_loader,
    build_trainer,
    load_policy,
    load_reference,
    make_planner,
    max_prompt_tokens,
    prompt_renderer,
    sampling_of,
)
from grpo.trainer import GRPOTrainer
from rewards.scoring.runner import RewardSet, load_rewards


def main(argv: Sequence[str]) -> None:
    quiet_libraries()
    is_first = os.environ.get("RANK", "0") == "0"
    with ExitStack() as stack:
        try:
            config = load_config(argv)
            run_dir = RunDir(config.run_dir)
            if is_first:
                stack.enter_context(run_dir.locked())
            check_run_dir(config, run_dir)
            if run_dir.is_finished(config.num_steps):
                print(f"nothing left to do: {run_dir.path}/ holds a finished run")
                return
            trainer = prepare(config, run_dir)
        except (ValueError, OSError) as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                # Mostly all processes find the same mistake. Then one on each machine says so, and its launcher ends
                # the others meanwhile.
                time.sleep(3)
            sys.exit(f"error: {error}".splitlines()[0])
        try:
            trainer.run()
        finally:
            trainer.engine.close()
            trainer.feed.loader.close()
            trainer.rewards.close()
    trainer.accelerator.print(f"done: {run_dir.path}/ (metrics.jsonl, curves.png, rollouts/, final/)")
    trainer.accelerator.end_training()


def quiet_libraries() -> None:
    """Silence bars and warnings that say nothing about the run; tied embeddings are meant to be shared."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def check_run_dir(config: Config, run_dir: RunDir) -> None:
    """Raise ValueError if the folder holds another run, or one that can't be gone on with."""
    if run_dir.metrics_file.exists():
        check_same_run(run_dir.config_file, config)
        run_dir.check_goes_on(config.num_steps)


def prepare(config: Config, run_dir: RunDir) -> GRPOTrainer:
    """Everything up to the first step. ValueError or OSError in one line for a user's mistake."""
    family = load_family(config.model.path, seconds_dtype=compute_dtype())
    with ExitStack() as undo:
        rewards = undo.enter_context(closing(read_rewards(config)))
        check_engine(config.rollout.engine, family)
        check_backend(config.model.attention)
        accelerator = make_accelerator()
        check_launch(accelerator, config.optim, config.model)
        check_counterfactuals(rewards, config, accelerator.num_processes)
        train_parts, held_out = read_data(config, accelerator)
        run_dir.check_same_data(data_files(config))
        for name in probe_rewards(rewards, train_parts):
            accelerator.print(
                f"note: rewards.{name} gave no score (None) to any completion that it was tried with. That is right "
                "only if it scores other kinds of questions"
            )
        loader = undo.enter_context(closing(build_loader(config, family)))  # its processes start meanwhile
        train = [sample for part in train_parts for sample in part.samples]
        check_fit(config, family, [*train, *chain.from_iterable(held_out.values())], accelerator)
        check_prompts(config, family, train, loader)
        accelerator.print(f"loading {config.model.path} and the rollout engine", flush=True)
        set_seed(config.seed)
        policy = load_policy(config, family, accelerator, loader.memory)
        learner = Learner(
            policy,
            accelerator,
            loss=config.loss,
            optim=config.optim,
            num_steps=config.num_steps,
            load_reference=partial(load_reference, config, policy) if config.loss.beta else None,
        )
        trainer = build_trainer(config, accelerator, learner, rewards, loader, train_parts, held_out, run_dir)
        if accelerator.is_main_process:
            run_dir.open(to_yaml(config), manifest(config, accelerator))
        undo.pop_all()
        return trainer


def describe(samples: Sequence[Sample]) -> str:
    """What was read, in one line: a misspelt field shows up as a column that nobody expected."""
    with_moments = sum(bool(sample.keyframes_s) for sample in samples)
    without_clip = sum(sample.clip_source is None for sample in samples)
    about_text = f", {without_clip} about text alone" if without_clip else ""
    columns = sorted({name for sample in samples for name in sample.columns})
    unknown = [name for name in columns if name not in OWN_KEYS]  # other data sets have columns of such names
    meant = {name: get_close_matches(name, OWN_KEYS, n=1, cutoff=0.75) for name in unknown}
    named = [f"{name} (did you mean {meant[name][0]!r}?)" if meant.get(name) else name for name in columns]
    extra = f"; other columns: {', '.join(named)}" if columns else ""
    return f"{len(samples)} questions, {with_moments} with key moments{about_text}{extra}"


def read_rewards(config: Config) -> RewardSet:
    """The run's rewards; ValueError that names the first one that doesn't go with the settings."""
    normalise = config.advantages.multi_objective_aggregation == "normalize_then_sum"
    rewards = load_rewards(config.rewards, config.rewards_workers, normalise=normalise)
    make_plan(rewards.counterfactuals, sampling_of(config))  # its errors belong here
    return rewards


def probe_rewards(rewards: RewardSet, train: Sequence[Part]) -> list[str]:
    """`RewardSet.probe` with the first of the training samples, since rewards may read their columns."""
    return rewards.probe([sample for part in train for sample in part.samples][:2] or None)


def check_engine(engine: str, family: Qwen25VL) -> None:
    """Raise ValueError if the rollout engine is not installed or not for this model."""
    if engine == "vllm" and find_spec("vllm") is None:
        raise ValueError("rollout.engine=vllm: vllm is not installed; try rollout.engine=transformers")
    if engine == "transformers" and "sliding_attention" in family.config.text_config.layer_types:
        raise ValueError("rollout.engine=transformers: not for a model with sliding windows; use vllm")


def check_counterfactuals(rewards: RewardSet, config: Config, num_processes: int) -> None:
    """Raise ValueError if a reward wants another question's clip and a process never has one."""
    if not any(each.frames == "other_clip" for each in rewards.counterfactuals):
        return
    takes = "rewards: other_clip takes the clip of another question of the same process;"
    if config.optim.prompts_per_step // num_processes < 2:
        raise ValueError(f"{takes} optim.prompts_per_step must be at least twice the number of processes")
    if config.eval.batch_prompts < 2:
        raise ValueError(f"{takes} eval.batch_prompts must be at least 2")


def check_prompts(config: Config, family: Qwen25VL, samples: Sequence[Sample], loader: ClipLoader) -> None:
    """Raise ValueError if none of the first samples gives a prompt: the settings don't fit the data."""
    first, render = samples[:4], prompt_renderer(config, family)
    batch = make_batch(first, [0] * len(first), loader, render, max_prompt_tokens(config))
    if not batch.prompts:
        raise ValueError(batch.lost[0].reason)


def check_fit(config: Config, family: Qwen25VL, samples: Sequence[Sample], accelerator: Accelerator) -> None:
    """Raise ValueError if a prompt can't fit, on all processes; each looks at its share."""
    own = samples[accelerator.process_index :: accelerator.num_processes]
    reasons = make_planner(config, family).refusals(own, num_workers=config.media.num_workers)
    if reasons := gather_object(reasons):
        others = f" ({len(reasons) - 1} more prompts can't)" if len(reasons) > 1 else ""
        raise ValueError(f"{reasons[0]}{others}; egogrpo doctor names all")


def read_data(config: Config, accelerator: Accelerator) -> tuple[list[Part], dict[str, list[Sample]]]:
    """What `checked_data` gives, said aloud."""
    accelerator.print("reading the data (a demo's clips are rendered on first use)", flush=True)
    with accelerator.main_process_first():  # a reader may render its clips on first use
        train_parts, held_out = checked_data(config)
    train = [sample for part in train_parts for sample in part.samples]
    for name, samples in {"training": train, **held_out}.items():
        accelerator.print(f"{name}: {describe(samples)}", flush=True)
    alike = namesakes(train, chain.from_iterable(held_out.values()))
    if alike and config.data.allow_overlap != "questions":
        sample, twin = alike[0]
        accelerator.print(
            f"note: {len(alike)} held-out questions may be of training, from another dataset: same words, answer "
            f"and file name: {sample.source} and {twin.source}" + (", ..." if len(alike) > 1 else "")
        )
    return train_parts, held_out


def checked_data(config: Config) -> tuple[list[Part], dict[str, list[Sample]]]:
    """Training samples, and held-out samples by the name of their set; their media are checked, and that training
    gives no held-out answer away."""
    train_sets = load_sets(config.data.train)
    train = [sample for samples in train_sets for sample in samples]
    names = eval_names(config)
    held_out = {name: load_samples([each]) for name, each in zip(names, config.data.eval, strict=True)}
    for samples in (train, *held_out.values()):
        check_media(samples, num_probes=config.data.probe_clips)
    check_overlap(train, held_out, allowed=config.data.allow_overlap)
    return mixture(config, train_sets), held_out


def mixture(config: Config, train_sets: Sequence[Sequence[Sample]]) -> list[Part]:
    return parts(train_sets, [dataset.share for dataset in config.data.train])


def eval_names(config: Config) -> list[str]:
    """What the held-out sets are called in the metrics; ValueError if two have the same name."""
    names = [dataset.name or Path(dataset.path).stem for dataset in config.data.eval]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"data.eval: two sets are called {name!r}; set their name")
    return names


def data_files(config: Config) -> list[str]:
    return [dataset.path for dataset in [*config.data.train, *config.data.eval]]


def manifest(config: Config, accelerator: Accelerator) -> dict[str, object]:
    return make_manifest(
        data_files=data_files(config),
        settings={
            "media": asdict(config.media),
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
