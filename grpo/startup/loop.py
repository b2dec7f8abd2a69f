"""The loop of a run, put together from a start that has passed its checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator

from grpo.benchmarks import find_benchmark
from grpo.benchmarks.prompts import official_wording
from grpo.config.schema import Config, DatasetConfig
from grpo.evaluation import EvalSet, Evaluator
from grpo.feed.dynamic_sampling import DifficultyMemory
from grpo.feed.mixture import Part
from grpo.feed.prompts import Feed
from grpo.learner.candidates import losses_of_candidates
from grpo.learner.guards import Guard
from grpo.learner.launching import compute_dtype
from grpo.learner.update import Learner
from grpo.loop import Loop
from grpo.rollout import Engine
from grpo.rollout.ahead_files import AheadFiles
from grpo.rollout.given import GivenCompletions
from grpo.run.checkpoint import keep_folder, keep_json
from grpo.run.folder import GUARD, RunDir
from grpo.run.recorder import Recorder
from grpo.startup.assembly import max_gap, partial_rollouts, prompt_renderer, sampling_of, wording
from grpo.startup.checks import Start
from grpo.trainer import GRPOTrainer


def build_loop(start: Start, learner: Learner, engine: Engine) -> Loop:
    """Build the loop, its trainer and evaluator, from a start and the two parts that hold the model."""
    config, accelerator = start.config, start.accelerator
    feed = build_feed(start)
    given = GivenCompletions(family=start.family, wording=config.data.target, engine=engine)
    trainer = GRPOTrainer(
        config,
        accelerator=accelerator,
        learner=learner,
        engine=engine if config.loss.is_sampled else given,
        sampling=sampling_of(config),
        feed=feed,
        rewards=start.rewards,
        guard=build_guard(config, accelerator, start.run_dir),
        recorder=Recorder(
            config,
            run_dir=start.run_dir,
            accelerator=accelerator,
            rewards=start.rewards,
            loader=start.loader,
            policy=learner.policy,
            max_gap=max_gap(config.rollout.max_gap, compute_dtype()),
        ),
        partial_rollouts=partial_rollouts(config, start.family),
    )
    if config.rollout.overlap:
        files = AheadFiles(trainer.sampler.ahead, feed, trainer.sampler.partial)
        keep_folder(accelerator, "ahead", files.write, files.read)
    evaluator = build_evaluator(start, feed, learner)
    return Loop(trainer=trainer, evaluator=evaluator, run_dir=start.run_dir, engine=engine)


def build_feed(start: Start) -> Feed:
    config, accelerator = start.config, start.accelerator
    return Feed(
        start.train_parts,
        start.loader,
        start.media.guarded(prompt_renderer(config, start.family)),
        seed=config.seed,
        prompts_per_step=config.optim.prompts_per_step,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        prefetch_steps=config.media.prefetch_steps,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        memory=difficulty_memory(config, start.train_parts, accelerator),
    )


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


def build_evaluator(start: Start, feed: Feed, learner: Learner) -> Evaluator:
    """Build the evaluator of this process's share of the held-out samples; it decodes and renders as the feed does."""
    config, accelerator = start.config, start.accelerator
    return Evaluator(
        sets=[build_eval_set(start, dataset) for dataset in config.data.eval],
        loader=feed.loader,
        render=feed.render,
        rewards=start.rewards,
        sampling=sampling_of(config),
        sampled=config.eval.sampled,
        seed=config.seed,
        max_prompt_tokens=feed.max_prompt_tokens,
        batch_prompts=config.eval.batch_prompts,
        counterfactuals=start.rewards.counterfactuals,
        blind=config.eval.blind,
        losses_of=partial(losses_of_candidates, learner),
        tell=start.say,
        is_shown=accelerator.is_main_process,
    )


def build_eval_set(start: Start, dataset: DatasetConfig) -> EvalSet:
    """Build this process's share of a held-out set, with the rules and the prompt of its benchmark if it has one."""
    config, samples = start.config, start.data.held_out[dataset.label]
    rank, num_processes = start.accelerator.process_index, start.accelerator.num_processes
    benchmark = find_benchmark(dataset.benchmark) if dataset.benchmark else None
    official = None
    if benchmark is not None and dataset.official_prompt:
        official = {**wording(config), **official_wording(benchmark)}
    return EvalSet(
        name=dataset.label,
        samples=samples[: config.eval.max_samples][rank::num_processes],
        num_blind=len(range(rank, config.eval.blind_samples, num_processes)),
        largest_share=len(samples[: config.eval.max_samples][::num_processes]),
        benchmark=benchmark,
        render=start.media.guarded(partial(start.family.render, **official)) if official else None,
        has_tags=bool(config.tags) and official is None,
        judge={"cache": str(start.run_dir.judge_cache), **dataset.judge},
        judge_timeout_s=config.eval.judge_timeout_s,
    )
