"""The checks of a run before a model is loaded, in one list, cheap ones first.

A run stops at the first check that fails. The doctor goes on and collects all failures, and looks at every record by
itself (`commands/doctor/`) where a check stops at the first bad one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from grpo.benchmarks import find_benchmark
from grpo.benchmarks.questions import read_questions
from grpo.benchmarks.scoring import check_judge
from grpo.config.schema import Config, DatasetConfig
from grpo.data import check_media, check_overlap, load_samples, load_sets, namesakes
from grpo.data.summary import describe
from grpo.feed.mixture import Part, parts
from grpo.feed.prompts import make_batch
from grpo.groups import Sample
from grpo.learner.launching import check_launch, compute_dtype
from grpo.media.loader import ClipLoader
from grpo.policy.attention_backends import check_backend
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.policy.model_folder import check_weights, find_model_folder
from grpo.rollout.counterfactuals import make_plan
from grpo.rollout.given import check_given
from grpo.run.folder import RunDir
from grpo.run.media_files import MediaFiles, all_files, files_of
from grpo.run.trackers import check_trackers
from grpo.startup.assembly import (
    build_loader,
    build_outline,
    build_rewards,
    make_planner,
    prompt_renderer,
    sampling_of,
)
from grpo.startup.code_rows import say_untrained_rows
from grpo.startup.engine_checks import check_engine
from grpo.startup.reward_codecs import check_codecs
from rewards.scoring.runner import RewardSet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The samples of a run: the training sets in the order of the config, and the held-out sets by name."""

    train_sets: Sequence[Sequence[Sample]]
    held_out: dict[str, list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run before its first step. Its parts are built when a check first asks for them, and then kept."""

    config: Config
    run_dir: RunDir
    accelerator: Accelerator
    opened: ExitStack
    """The stack that closes the processes of rewards and loader, unless a run takes them over."""
    read: Callable[[Config], Data]
    say: Callable[[str], object]
    """A function that tells the user what is going on."""
    meant_for: int | None = None
    """The processes of a run that is only examined; None for a run, whose processes are there."""

    @property
    def num_processes(self) -> int:
        return self.meant_for or self.accelerator.num_processes

    @cached_property
    def family(self) -> ModelFamily:
        return load_family(self.config.model.path, seconds_dtype=compute_dtype())

    @cached_property
    def rewards(self) -> RewardSet:
        return self.opened.enter_context(closing(build_rewards(self.config)))

    @cached_property
    def data(self) -> Data:
        """All samples, after a summary for the user: a misspelt field shows up as an unexpected column."""
        is_demo = "synthetic" in {each.reader for each in (*self.config.data.train, *self.config.data.eval)}
        self.say("reading the data" + (" (the demo's clips are rendered on first use)" if is_demo else ""))
        # A reader may render its clips on first use.
        with self.accelerator.main_process_first():
            data = self.read(self.config)
        for name, samples in {"training": chain.from_iterable(data.train_sets), **data.held_out}.items():
            self.say(f"{name}: {describe([*samples])}")
        return data

    @cached_property
    def train_parts(self) -> list[Part]:
        """The parts of the training mixture, those of sets with a stated share first."""
        return parts(self.data.train_sets, [dataset.share for dataset in self.config.data.train])

    @property
    def train(self) -> list[Sample]:
        return [sample for part in self.train_parts for sample in part.samples]

    @property
    def samples(self) -> list[Sample]:
        """All samples, of training and held out."""
        return [*self.train, *chain.from_iterable(self.data.held_out.values())]

    @cached_property
    def media(self) -> MediaFiles:
        """The media files as the run found them when it began; a new run knows none.

        A start that never came to a step has left a list, but nothing that was learned from those files.
        """
        return MediaFiles.read(self.run_dir.media_file) if self.run_dir.has_begun else MediaFiles({})

    def share_of(self, things: Sequence[T]) -> Sequence[T]:
        """The things that this process looks at for all."""
        return things[self.accelerator.process_index :: self.accelerator.num_processes]

    def learn_media(self) -> None:
        """Get to know the media files that a new run begins with; each process reads its share for all."""
        own = self.share_of(all_files(self.samples))
        self.media.known.update(gather_object(self.media.learn(own)))

    @cached_property
    def loader(self) -> ClipLoader:
        return self.opened.enter_context(closing(build_loader(self.config, self.family)))

    @cached_property
    def outline(self) -> Policy:
        """The policy without its weights."""
        return build_outline(self.config, self.family)


class Check(NamedTuple):
    """A check of something that can be wrong with a run."""

    key: str
    """The setting or section that the check is about. Later checks of the same key build on it."""
    run: Callable[[Start], None]
    """The function that raises ValueError or OSError, in one line, for a user's mistake."""
    of_records: bool = False
    """Whether the check is about single records, and stops at the first bad one."""


def check_model(start: Start) -> None:
    """Raise ValueError that names the file unless the model's folder is whole."""
    assert start.family
    check_weights(find_model_folder(start.config.model.path))


def check_shared_rows(start: Start) -> None:
    """Raise ValueError unless each row can be computed by so many processes, with equally many attention heads."""
    size = start.config.optim.sequence_parallel_size
    heads = start.family.config.text_config.num_attention_heads
    if start.num_processes % size:
        raise ValueError(
            f"optim.sequence_parallel_size={size} does not divide the {start.num_processes} processes"
        )
    if heads % size:
        raise ValueError(
            f"optim.sequence_parallel_size={size} does not divide the {heads} attention heads of the model"
        )


def check_rewards(start: Start) -> None:
    """Raise ValueError unless the rewards load, and the counterfactuals that they declare go with the settings."""
    make_plan(start.rewards.counterfactuals, sampling_of(start.config))


def check_other_clips(start: Start) -> None:
    """Raise ValueError if a reward needs another question's clip, and a process would have only one."""
    config = start.config
    if not any(each.frames == "other_clip" for each in start.rewards.counterfactuals):
        return
    takes = "rewards: other_clip takes the clip of another question of the same process;"
    if config.optim.prompts_per_step // start.accelerator.num_processes < 2:
        raise ValueError(f"{takes} optim.prompts_per_step must be at least twice the number of processes")
    if config.eval.batch_prompts < 2:
        raise ValueError(f"{takes} eval.batch_prompts must be at least 2")


def check_adapters(start: Start) -> None:
    """Raise ValueError unless the layers that get adapters exist, and rows that train alone."""
    if start.config.model.lora.is_on or start.config.model.new_rows_only:
        assert start.outline


def check_clips(start: Start) -> None:
    """Raise ValueError unless all records can be read, and their clips' files exist.

    A run that goes on does without the clips that it has lost since it began, or that are others now.
    """
    for samples in (start.train, *start.data.held_out.values()):
        usable = samples
        if start.media.known:
            lost = start.media.lost(all_files(samples))
            usable = [sample for sample in samples if lost.isdisjoint(files_of(sample))]
            if lost:
                start.say(
                    f"note: {len(lost)} media files have changed or are gone since the run began, and "
                    f"{len(samples) - len(usable)} questions lose their groups: {', '.join(sorted(lost)[:3])}"
                    + (", ..." if len(lost) > 3 else "")
                )
        check_media(usable, num_probes=start.config.data.probe_clips)


def check_held_out(start: Start) -> None:
    """Raise ValueError if training shares more with the held-out sets than `data.allow_overlap` allows."""
    allowed, held_out = start.config.data.allow_overlap, start.data.held_out
    check_overlap(start.train, held_out, allowed=allowed)
    alike = namesakes(start.train, chain.from_iterable(held_out.values()))
    if alike and allowed != "questions":
        sample, twin = alike[0]
        start.say(
            f"note: {len(alike)} held-out questions may be of training, from another dataset: same words, answer "
            f"and file name: {sample.source} and {twin.source}" + (", ..." if len(alike) > 1 else "")
        )


def check_same_data(start: Start) -> None:
    """Raise ValueError unless a resumed run reads the data files that it began with."""
    start.run_dir.check_same_data(path for path in start.config.data.files if os.path.exists(path))


def check_scores(start: Start) -> None:
    """Raise ValueError unless the rewards can score hostile completions of the first training samples."""
    for name in start.rewards.probe(start.train[:2] or None):
        start.say(
            f"note: rewards.{name} gave no score (None) to any completion that it was tried with. That is right "
            "only if it scores other kinds of questions"
        )


def check_open_answers(start: Start) -> None:
    """Say if an open answer earns something by its very words alone."""
    rewards = {name: spec for name, spec in start.config.rewards.items() if spec.weight}
    strict = [
        name
        for name, spec in rewards.items()
        if (spec.fn or name) == "accuracy" and "open" in (spec.tasks or ["open"])
    ]
    if not strict or {spec.fn or name for name, spec in rewards.items()} & {*GRADERS}:
        return
    if num_open := sum(sample.task == "open" for sample in start.train):
        start.say(
            f"note: rewards.{strict[0]}: {num_open} questions are open, and accuracy is 1 for the very words of their "
            f"answers alone; {', '.join(GRADERS)} take other words too (docs/reward_catalogue.md)"
        )


def check_targets(start: Start) -> None:
    """Raise ValueError unless all records give completions that fit, where they are given.

    Each process checks its share for all.
    """
    config = start.config
    if config.loss.is_sampled:
        return
    reasons = []
    try:
        check_given(
            start.share_of(start.train),
            start.family,
            start.rewards.rewards,
            wording=config.data.target,
            max_new_tokens=config.rollout.max_new_tokens,
            num_workers=config.media.num_workers,
        )
    except ValueError as error:
        reasons.append(str(error))
    if reasons := gather_object(reasons):
        raise ValueError(reasons[0])


def check_fit(start: Start) -> None:
    """Raise ValueError unless every prompt leaves room for a completion, and streams are as codecs and clips want them.

    Each process checks its share for all.
    """
    config, accelerator = start.config, start.accelerator
    reasons = make_planner(config, start.family).refusals(
        start.share_of(start.samples),
        num_workers=config.media.num_workers,
        is_shown=accelerator.is_main_process,
    )
    if reasons := gather_object(reasons):
        others = f" ({len(reasons) - 1} more prompts can't)" if len(reasons) > 1 else ""
        raise ValueError(f"{reasons[0]}{others}; egogrpo doctor names all")


def check_prompts(start: Start) -> None:
    """Raise ValueError if none of the first samples gives a prompt: the settings don't fit the data."""
    usable = (sample for sample in start.train if not start.media.lost(files_of(sample)))
    first, render = [*islice(usable, 4)], prompt_renderer(start.config, start.family)
    limit = start.config.rollout.max_prompt_tokens
    batch = make_batch(first, [0] * len(first), start.loader, render, limit)
    if not first:
        raise ValueError(
            f"data.train: all clips have changed or are gone since the run in {start.run_dir.path} began"
        )
    if not batch.prompts:
        raise ValueError(batch.lost[0].reason)


GRADERS = ("graded_accuracy", "rouge", "judge")
"""Rewards that take an open answer in other words than the annotated ones."""

GOES_ON = Check("run_dir", lambda start: start.run_dir.check_goes_on(start.config))
"""The check before all others, which a run makes while nothing is imported yet."""

CHECKS = (
    Check("model.path", check_model),
    Check("rewards", check_rewards),
    Check("rollout.engine", lambda start: check_engine(start.config, start.family, start.num_processes)),
    Check("log.trackers", lambda start: check_trackers(start.config.log.trackers)),
    Check("model.attention", lambda start: check_backend(start.config.model.attention)),
    Check("optim", lambda start: check_launch(start.accelerator, start.config.optim, start.config.model)),
    Check("optim.sequence_parallel_size", check_shared_rows),
    Check("rewards", lambda start: check_codecs(start.config.rewards, start.family)),
    Check("rewards", check_other_clips),
    Check("model.lora", check_adapters),
    Check("model", lambda start: say_untrained_rows(start.config.model, start.family, start.say)),
    Check("data", check_clips, of_records=True),
    Check("data.target", check_targets, of_records=True),
    Check("data.allow_overlap", check_held_out),
    Check("run_dir", check_same_data),
    Check("rewards", check_scores),
    Check("rewards", check_open_answers),
    Check("rollout.max_model_tokens", check_fit, of_records=True),
    Check("prompt", check_prompts, of_records=True),
)


def read_data(config: Config) -> Data:
    """Read all samples; raise ValueError with the first bad record."""
    return Data(
        train_sets=load_sets(config.data.train),
        held_out={each.label: read_held_out(each) for each in config.data.eval},
    )


def read_held_out(dataset: DatasetConfig) -> list[Sample]:
    """Read a held-out set, or the questions of its benchmark whose answers are published."""
    if dataset.benchmark is None:
        return load_samples([dataset])
    benchmark = find_benchmark(dataset.benchmark)
    check_judge(benchmark, dataset.judge, f"data.eval.{dataset.label}.judge")
    return [sample for sample in read_questions(benchmark, dataset) if sample.answer]
