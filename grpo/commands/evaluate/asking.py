"""Asking a model what has no stored answer yet. Each answer is written as soon as it is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import torch
from tqdm import tqdm

from grpo.benchmarks.answers import likeliest, stored
from grpo.benchmarks.benchmark import StoredAnswer
from grpo.benchmarks.changed import BLIND, PLAIN
from grpo.evaluation import batches
from grpo.feed.prompts import Render
from grpo.groups import Batch, Group, LostSample, Prompt, Sample
from grpo.learner.candidates import candidate_row, mean_losses, untempered
from grpo.media.clip import Clip
from grpo.media.variants import blank
from grpo.startup.answering import Answering

Asked = tuple[Sample, str]
"""A question, in the form of its variant, and the variant."""


@dataclass(slots=True)
class Timing:
    """What a process's share of an evaluation took, in seconds."""

    num_questions: int = 0
    first_wait_s: float = 0.0
    """The seconds until the first batch's clips were decoded."""
    wall_s: float = 0.0
    """The seconds from there to the end."""
    engine_s: float = 0.0
    """The part of it in which the engine worked."""
    first_item_s: float = 0.0
    """The seconds from the engine's start to the first new answer."""


@dataclass(kw_only=True)
class Asker:
    """A model's answers to questions that have none, handed to `write` one by one."""

    model: Answering
    write: Callable[[StoredAnswer], object]
    seed: int
    batch_prompts: int
    num_samples: int = 1
    """Answers to each question; of one that failed each gets a line."""
    candidates: Callable[[Sample], tuple[str, ...]] | None = None
    """The texts of which the likeliest is the answer, in the place of generating; None: generate."""
    show: Callable[[Prompt], object] = lambda _: None
    """What is done with each question as it is, for the page that shows it."""
    timing: Timing = field(default_factory=Timing)

    def ask(self, asked: Sequence[Asked], bar: tqdm) -> Timing:
        """Ask all questions, one batch after another; the bar counts them."""
        begun = time.monotonic()
        for variant, questions in groupby(_by_variant(asked), key=lambda pair: pair[1]):
            for batch in one_ahead(self._batches([sample for sample, _ in questions], variant)):
                for lost in batch.lost:
                    for index in range(self.num_samples):
                        self._keep(failed(lost, variant, index), begun)
                    bar.update()
                self._answer(batch, variant, begun, bar)
        self.timing.wall_s = time.monotonic() - begun - self.timing.first_wait_s
        return self.timing

    def _batches(self, samples: Sequence[Sample], variant: str) -> Iterator[Batch]:
        for batch in batches(
            samples,
            self.model.loader,
            shown_blind(self.model.render) if variant == BLIND else self.model.render,
            seed=self.seed,
            batch_prompts=self.batch_prompts,
            max_prompt_tokens=self.model.max_prompt_tokens,
        ):
            # Ahead of the engine too, which would wait for the pictures otherwise.
            for prompt in batch.prompts if variant == PLAIN else ():
                self.show(prompt)
            yield batch

    def _answer(self, batch: Batch, variant: str, begun: float, bar: tqdm) -> None:
        def keep(group: Group) -> None:
            for index, rollout in enumerate(group.rollouts):
                self._keep(stored(group.prompt, rollout, index, variant), begun)
            bar.update()

        started = time.monotonic()
        if not self.timing.engine_s:
            self.timing.first_wait_s = started - begun
        if self.candidates is None:
            given = self.model.engine.generate(batch.prompts, self.model.sampling, batch.seeds, on_group=keep)
            if len(given) < len(batch.prompts):
                raise ValueError("rollout.servers: none is left; typed again, the command goes on")
        else:
            for prompt in batch.prompts:
                self._keep(self._likeliest(prompt, self.candidates(prompt.sample), variant), begun)
                bar.update()
        self.timing.engine_s += time.monotonic() - started

    def _keep(self, answer: StoredAnswer, begun: float) -> None:
        self.write(answer)
        if not self.timing.num_questions:
            self.timing.first_item_s = time.monotonic() - begun
        self.timing.num_questions += answer.index == self.num_samples - 1

    @torch.no_grad()
    def _likeliest(self, prompt: Prompt, texts: Sequence[str], variant: str) -> StoredAnswer:
        policy = self.model.policy.eval()
        row = candidate_row(prompt, texts, self.model.family).to(policy.device)
        with untempered(policy):
            return likeliest(prompt, mean_losses(row, policy(row).logps_T), variant)


def one_ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """The items, each made in the background while the one before it is used: the engine waits for no prompt."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def shown_blind(render: Render) -> Render:
    """The renderer that shows black frames in the place of a clip's own."""

    def rendered(sample: Sample, clips: Sequence[Clip]) -> Prompt:
        return render(sample, [blank(clip) for clip in clips])

    return rendered


def failed(lost: LostSample, variant: str, index: int) -> StoredAnswer:
    """What is stored of a question that could not be asked; it is asked again when the command is given again."""
    return StoredAnswer(
        sample_id=lost.sample_id, index=index, text=lost.reason, finish="failed", variant=variant
    )


def _by_variant(asked: Sequence[Asked]) -> list[Asked]:
    """All questions as they are first, then each variant: what is wanted most is there first."""
    return sorted(asked, key=lambda pair: pair[1])
