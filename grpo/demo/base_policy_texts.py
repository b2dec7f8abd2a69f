"""What the demo's base policy reads and writes while it is made, and its tokenizer.

The base is given skills under prompts of their own (captions, lists, timelines, option look-ups, two side
prompts), and a habit under the plain prompt of the demo: mostly vague, mostly incomplete answers, and
now and then a good one. `grpo.demo.make_base_policy` says why.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from grpo.demo.clips import COLOURS, LETTERS, NUM_SECONDS, QUESTION, Scene

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n"
    "{% if m['content'] is string %}{{m['content']}}{% else %}{% for c in m['content'] %}"
    "{% if c['type']=='image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type']=='video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{c['text']}}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = "<|im_start|>user\n"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"

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
    """What is asked after the video, and what the policy is to reply."""

    request: str
    reply: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """How often the base does well under the plain prompt. Reinforcement learning starts from these."""

    complete_frac: float = 0.3
    """All three tags in order."""
    grounded_frac: float = 0.25
    """Names what it sees in place of a vague thought..."""
    consistent_frac: float = 0.9
    """...and then gives that option's letter."""
    right_moment_frac: float = 0.15
    lazy_moment_frac: float = 0.6
    """Cites second 0, where nothing ever happens."""


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


LOOKUP_REQUEST = "Which letter is each object in the list?"


def lookups(options: tuple[str, ...], asked: str, moment_s: int) -> list[Exchange]:
    """From an option to its letter, over growing distances up to the one in the demo's format.

    The last form alone stays at chance for long: the letter is six tokens behind the colour that decides it.
    """
    request = LOOKUP_REQUEST + _option_lines(options)
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


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE with the family's special tokens, in which words and tags are one token each."""
    words = r"</?[a-z]+>| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _corpus() -> Iterator[str]:
    """Each text often enough that every word of it becomes one token."""
    options = tuple(COLOURS)[: len(LETTERS)]
    thoughts = [*VAGUE_THOUGHTS, *(grounded_thought(colour) for colour in COLOURS)]
    for _ in range(50):
        for second in range(NUM_SECONDS):
            yield from (full_answer(thought, second, "A") for thought in thoughts)
            yield from (f"at {second} {grounded_thought(colour)}" for colour in COLOURS)
        yield from (ask(options, suffix) for suffix in (PLAIN, EXPLAIN, TIMELINE))
        yield from ("Describe the video.", "List the objects.", "Tell the timeline.", LOOKUP_REQUEST)
        yield from (f" {word}" for word in (*COLOURS, "none"))
        yield from (f"the answer is {letter}" for letter in LETTERS)
        yield "user\nassistant\nsystem\n"
