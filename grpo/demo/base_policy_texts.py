"""What the demo's base policy reads and writes while it is made.

The base is given skills under prompts of their own (captions, lists, timelines, option look-ups, two side
prompts), and a habit under the plain prompt of the demo: mostly vague, mostly incomplete answers, and
now and then a good one. `grpo.demo.make_base_policy` says why.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from grpo.demo.clips import LETTERS, NUM_SECONDS, QUESTION, Scene

PLAIN, EXPLAIN, TIMELINE = " Answer.", " Explain.", " timeline."
"""The demo's prompt and the two side prompts: equally long, because the policy reads when something happens
from relative positions (three more tokens brought the right moment down from .98 to .01)."""

VAGUE_THOUGHTS = {
    "i am not sure": 0.45,
    "let me look at the room": 0.2,
    "there are some things here": 0.15,
    "i watch the scene": 0.1,
    "hard to tell": 0.1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A request that follows the video, and the reply that the policy is to give."""

    request: str
    reply: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """The shares of good behaviour in answers to the plain prompt, from which reinforcement learning starts."""

    complete_frac: float = 0.3
    """The share of answers with all three tags in order."""
    grounded_frac: float = 0.25
    """The share of answers that name what is seen in place of a vague thought."""
    consistent_frac: float = 0.9
    """The share of those that then give that option's letter."""
    right_moment_frac: float = 0.15
    """The share of answers that cite the second in which the object is taken."""
    lazy_moment_frac: float = 0.6
    """The share of answers that cite second 0, where nothing ever happens."""


def ask(options: tuple[str, ...], suffix: str = PLAIN) -> str:
    """The question as the demo's config renders it."""
    return QUESTION + suffix + _option_lines(options)


def _option_lines(options: tuple[str, ...]) -> str:
    return "".join(f"\n{letter} {option}" for letter, option in zip(LETTERS, options, strict=True))


def grounded_thought(colour: str) -> str:
    return f"the hand takes {colour}"


def full_answer(thought: str, moment_s: int, letter: str) -> str:
    """The format that the demo rewards."""
    return f"<think>{thought}</think><keyframes>{moment_s}</keyframes><answer>{letter}</answer>"


def captions(scene: Scene) -> list[Exchange]:
    """What is seen, in three ways: the event, the objects from left to right, the event second by second."""
    seconds = [scene.taken if second == scene.taken_at_s else "none" for second in range(NUM_SECONDS)]
    event = f"at {scene.taken_at_s} {grounded_thought(scene.taken)}"
    return [
        Exchange(request="Describe the video.", reply=event),
        Exchange(request="List the objects.", reply="".join(f" {colour}" for colour in scene.seen)),
        Exchange(request="Tell the timeline.", reply="".join(f" {second}" for second in seconds)),
    ]


def names(scene: Scene) -> list[str]:
    """What the vision tokens are names of: in each second the objects from left to right, then the one that is taken.

    An object that is gone, and the second in which none is taken, are "none".
    """
    found = []
    for second in range(NUM_SECONDS):
        gone = scene.taken if second > scene.taken_at_s else None
        found += [f" {'none' if colour == gone else colour}" for colour in scene.seen]
        found.append(f" {scene.taken if second == scene.taken_at_s else 'none'}")
    return found


def lookups(options: tuple[str, ...], asked: str, moment_s: int) -> list[Exchange]:
    """From an option to its letter, over growing distances up to the one in the demo's format.

    The last form alone stays at chance for long: the letter is six tokens behind the colour that decides it.
    """
    request = "Which letter is each object in the list?" + _option_lines(options)
    letter = LETTERS[options.index(asked)]
    thought = grounded_thought(asked)
    replies = [
        f" {asked}<answer>{letter}</answer>",
        f"<think>{thought}</think><answer>{letter}</answer>",
        f" {asked}</think><keyframes>{moment_s}</keyframes><answer>{letter}</answer>",
        full_answer(thought, moment_s, letter),
    ]
    return [Exchange(request=request, reply=reply) for reply in replies]


def side_answers(scene: Scene, habits: Habits, rng: random.Random) -> list[Exchange]:
    """The skills, kept apart: `Explain.` knows what was taken and not when, `timeline.` when and not what.

    One side prompt that knew both would bring up the right moment without any reward for it.
    """
    what = full_answer(grounded_thought(scene.taken), _noisy_moment(scene, habits, rng), scene.answer)
    when = full_answer(_vague_thought(rng), scene.taken_at_s, rng.choice(LETTERS))
    return [
        Exchange(request=ask(scene.options, EXPLAIN), reply=what),
        Exchange(request=ask(scene.options, TIMELINE), reply=when),
    ]


def plain_answer(scene: Scene, habits: Habits, rng: random.Random) -> Exchange:
    """One draw from the habit: its most frequent form is vague, lacks a tag and guesses the letter."""
    thought, letter = _vague_thought(rng), rng.choice(LETTERS)
    if rng.random() < habits.grounded_frac:
        thought = grounded_thought(scene.taken)
        letter = scene.answer if rng.random() < habits.consistent_frac else letter
    moment_s = _noisy_moment(scene, habits, rng)
    reply = full_answer(thought, moment_s, letter)
    if rng.random() >= habits.complete_frac:
        reply = _spoil(thought, moment_s, letter, rng)
    return Exchange(request=ask(scene.options), reply=reply)


def _spoil(thought: str, moment_s: int, letter: str, rng: random.Random) -> str:
    spoilt = {
        f"<think>{thought}</think><answer>{letter}</answer>": 0.6,
        f"the answer is {letter}": 0.12,
        f"<think>{thought}</think><keyframes>{moment_s}</keyframes>{letter}": 0.07,
        f"{thought}<answer>{letter}</answer>": 0.07,
        f"<keyframes>{moment_s}</keyframes><answer>{letter}</answer>": 0.07,
        f"<think>{thought}<answer>{letter}</answer></think>": 0.07,
    }
    return rng.choices(list(spoilt), list(spoilt.values()))[0]


def _vague_thought(rng: random.Random) -> str:
    return rng.choices(list(VAGUE_THOUGHTS), list(VAGUE_THOUGHTS.values()))[0]


def _noisy_moment(scene: Scene, habits: Habits, rng: random.Random) -> int:
    draw = rng.random()
    if draw < habits.right_moment_frac:
        return scene.taken_at_s
    return 0 if draw < habits.right_moment_frac + habits.lazy_moment_frac else rng.randrange(NUM_SECONDS)
