"""Completions that a policy may produce sooner or later, and synthetic groups to hang them on.

The probe before a run and the checker for plugin authors both use them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grpo.groups import Group, Prompt, Rollout, Sample
from grpo.media.clip import Clip, ClipFacts, ClipSource
from grpo.media.sampling import QWEN2_5_VL
from rewards import Counterfactual
from rewards.parsing import TAGS

END_OF_TURN = 100_000

COMPLETIONS: Mapping[str, str] = {
    "right": "<think>It is red.</think><keyframes>3.5</keyframes><answer>B</answer>",
    "right, no moments": "<think>It is red.</think>\n<answer>B</answer>",
    "wrong": "<think>Blue?</think><keyframes>0.0-8.0</keyframes><answer>A</answer>",
    "long reasoning": "<think>At first the hand rests on the table, beside the plate. Then it moves to the shelf, "
    "takes the red cup and puts it down. So the answer is B.</think><keyframes>3.5</keyframes><answer>B</answer>",
    "span": "<think>x</think><keyframes>3.5</keyframes><answer>3.0-4.5</answer>",
    "order": "<think>x</think><keyframes>3.5</keyframes><answer>B, A, C</answer>",
    "empty": "",
    "one space": " ",
    "plain text": "The hand takes the red object after about three seconds.",
    "no think": "<answer>B</answer>",
    "blank blocks": "<think></think><keyframes> </keyframes><answer>\n</answer>",
    "invisible answer": "<think>x</think><keyframes>3</keyframes><answer>\u200b\u2060</answer>",
    "cut off": "<think>First I see the hand, then <keyframes>3.5, 4",
    "unclosed answer": "<think>x</think><keyframes>3</keyframes><answer>B",
    "closed only": "</think></keyframes></answer>",
    "nested": "<think><answer>B</answer></think><keyframes><answer>B</answer></keyframes>",
    "reversed": "<answer>B</answer><keyframes>3</keyframes><think>x</think>",
    "misspelt": "<Think>x</Think>< keyframes >3</ keyframes><answer lang='en'>B</answer>",
    "two answers": "<think>x</think><answer>A</answer><answer>B</answer>",
    "all letters": "<think>x</think><keyframes>3</keyframes><answer>A, B, C or D</answer>",
    "two boxes": r"<answer>\boxed{A} \boxed{B}</answer>",
    "letter outside": "<think>x</think><keyframes>3</keyframes><answer>Z</answer>",
    "10,000 digits": "<think>x</think><keyframes>{0}</keyframes><answer>{0}</answer>".format("9" * 10_000),
    "foreign numerals": "<think>x</think><keyframes>٣.٥, ३, ３</keyframes><answer>٤٢</answer>",
    "full-width letter": "<think>x</think><keyframes>3</keyframes><answer>Ｂ</answer>",
    "not a number": "<think>x</think><keyframes>nan, inf, -inf, 1e999</keyframes><answer>nan</answer>",
    "infinity": "<think>x</think><keyframes>1e999</keyframes><answer>-Infinity</answer>",
    "outside the clip": "<think>x</think><keyframes>-3, 9999, -5--1</keyframes><answer>-0</answer>",
    "backward span": "<think>x</think><keyframes>4.5-3.0, 1-2-3</keyframes><answer>1/0</answer>",
    "every moment": f"<keyframes>{','.join(str(s / 10) for s in range(2000))}</keyframes><answer>B</answer>",
    "commas": "<keyframes>" + "," * 2_000 + "</keyframes>",
    "one long word": "a" * 30_000,
    "one long gap": "<think>" + " " * 30_000 + "<answer>",
    "many open tags": "<answer>" * 4_000,
    "many answers": "<answer>B</answer>" * 2_000,
    "many brackets": "<" * 15_000 + ">" * 15_000,
    "deep nesting": "(" * 10_000 + "[" * 10_000 + "{" * 10_000,
    "markup": "<!DOCTYPE html><html><script>alert('B')</script>&lt;answer&gt;B&lt;/answer&gt;<![CDATA[<answer>]]>",
    "json": '{"answer": "B", "keyframes": [3.5, null, NaN]}',
    "latex": r"\boxed{B} $\frac{1}{0}$ \left( \input{x}",
    "format strings": "%s %d %(x)s {0} {x!r} {} \\1 \\g<0> $x ${x}",
    "code": "__import__('os').getcwd() # <answer>B</answer>",
    "control characters": "<answer>B\x00\x07\x1b[31m\ufffd\u202e</answer>",
    "right to left": "<think>\u202eהיד לוקחת</think><keyframes>3</keyframes><answer>الكأس الأحمر</answer>",
    "100,000 characters": "<think>" + "The hand moves. " * 6_250 + "</think><answer>B</answer>",
    "many accents": "<answer>B" + "\u0301\u0316" * 15_000 + "</answer>",
    "emoji": "<think>🖐️🔴</think><keyframes>3</keyframes><answer>🅱️</answer>",
    "many lines": "B\n\r\u2028" * 5_000,
}


def groups(columns: Mapping[str, Any] | None = None) -> list[Group]:
    """Every hostile completion under every synthetic sample, whose records have these columns."""
    return [group for sample in synthetic_samples(columns or {}) for group in groups_of(sample)]


def groups_of(sample: Sample) -> list[Group]:
    """The hostile completions as one group; then a group of equal completions, and a group of one."""
    texts = list(COMPLETIONS.values())
    clip = moving_clip() if sample.clip_source else None
    tags = TAGS if sample.keyframes_s else ("think", "answer")
    return [
        make_group(part, sample, clip=clip, tags=tags)
        for part in (texts, [COMPLETIONS["right"]] * 4, [COMPLETIONS["empty"]])
    ]


def make_group(
    texts: Sequence[str], sample: Sample, *, clip: Clip | None = None, tags: tuple[str, ...] = TAGS
) -> Group:
    """A group of completions of one sample, with stand-ins for tokens and log-probs."""
    prompt = Prompt(sample=sample, clip=clip, token_ids=(1, 2, 3), tags=tags)
    return Group(prompt=prompt, rollouts=tuple(_rollout(text, prompt) for text in texts))


def with_counterfactuals(group: Group, declared: Sequence[Counterfactual]) -> Group:
    """The group with what its reward declares: the same completions again, and none for the first one."""
    if not declared:
        return group
    others = group.rollouts[:2]
    rollouts = [
        replace(rollout, counterfactuals={each.frames: others if index else () for each in declared})
        for index, rollout in enumerate(group.rollouts)
    ]
    return replace(group, rollouts=tuple(rollouts))


def synthetic_samples(columns: Mapping[str, Any]) -> list[Sample]:
    """One sample for each way in which samples differ: task, options, annotated moments, video or none."""
    choice = Sample(
        id="probe-choice",
        question="Which object does the hand take?",
        answer="B",
        task="choice",
        options=("blue", "red", "green", "a (very) odd [option] 100%"),
        source="probe:1",
        clip_source=ClipSource(video="probe.mp4"),
        keyframes_s=((3.0, 4.5), (7.0, 7.0)),
        columns=columns,
    )
    without = {"options": (), "keyframes_s": ()}
    return [
        choice,
        replace(choice, id="probe-no-moments", source="probe:2", keyframes_s=()),
        replace(choice, id="probe-text-only", source="probe:3", clip_source=None, keyframes_s=()),
        replace(choice, id="probe-number", source="probe:4", task="number", answer="42", **without),
        replace(choice, id="probe-text", source="probe:5", task="text", answer="a red cup", **without),
        replace(choice, id="probe-span", source="probe:7", task="span", answer="3.0-4.5", **without),
        replace(choice, id="probe-order", source="probe:8", task="text", answer="A, B, C", **without),
        replace(choice, id="probe-open", source="probe:6", task="open", answer="It falls.", **without),
    ]


def moving_clip() -> Clip:
    """Eight seconds of a white bar that moves over black, two frames a second, as small as the model takes them."""
    frames_FHWC = np.zeros((16, 28, 28, 3), np.uint8)
    for index, frame_HWC in enumerate(frames_FHWC):
        frame_HWC[:, index : index + 4 + index // 2] = 255
    facts = ClipFacts.at_fps(frames_FHWC.shape, 2.0, path="probe.mp4", patches=QWEN2_5_VL)
    return Clip(facts, frames_FHWC)


def _rollout(text: str, prompt: Prompt) -> Rollout:
    # About what a tokenizer makes of it, equal ones for equal pieces, with the end-of-turn token.
    pieces = [text[start : start + 4] for start in range(0, 4 * (len(text) // 4), 4)]
    token_ids = (*(zlib.crc32(piece.encode(errors="replace")) % 100_000 for piece in pieces), END_OF_TURN)
    return Rollout(
        sample=prompt.sample,
        clip=prompt.clip,
        tags=prompt.tags,
        text=text,
        token_ids=token_ids,
        logprobs=(-1.0,) * len(token_ids),
        stopped=len(token_ids) < 1024,
    )
