"""The demo's scenes as prompts that the shipped policy answers by looking: under `Explain.` it names what is taken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from grpo.demo.clips import FPS, scene_at
from grpo.feed.prompts import Render
from grpo.groups import Group, Prompt, Rollout
from grpo.media.clip import ClipSource
from grpo.policy.model import Policy
from grpo.rollout import OnGroup, Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from tests.support import tiny
from tests.support.clips import clip_of

EXPLAIN = "{question} Explain.\n{options}"
RENDER: Render = partial(tiny.family().render, template=EXPLAIN, option="{letter} {text}", tags=tiny.TAGS)


class RecordingEngine(TransformersEngine):
    """The real engine; it remembers what it was asked."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.calls: list[tuple[list[Prompt], Sampling]] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        self.calls.append((list(prompts), sampling))
        return super().generate(prompts, sampling, seeds, on_group)


def prompts(count: int) -> list[Prompt]:
    """Of scenes that the policy was not made with, annotated with the second at which the hand is there."""
    scenes = [scene_at("probe", index, seed=0) for index in range(count)]
    return [
        RENDER(
            tiny.sample(
                f"scene-{index}",
                answer=scene.answer,
                options=scene.options,
                clip_source=ClipSource(video=f"scene-{index}.mp4"),
                keyframes_s=((scene.taken_at_s, scene.taken_at_s + 0.5),),
            ),
            [clip_of(scene.frames_FHWC, fps=FPS, path=f"scene-{index}.mp4")],
        )
        for index, scene in enumerate(scenes)
    ]


def group(of: Prompt, *cited: str) -> Group:
    """Right answers that cite these moments."""
    texts = [
        f"<think>x</think><keyframes>{each}</keyframes><answer>{of.sample.answer}</answer>" for each in cited
    ]
    return Group(prompt=of, rollouts=tuple(tiny.rollout(of, [1, 2], text=text) for text in texts))


def texts(rollouts: tuple[Rollout, ...]) -> list[str]:
    return [rollout.text for rollout in rollouts]
