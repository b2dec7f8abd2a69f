"""What a judge is asked and how its reply is read: a prompt file, made strict.

A prompt file is a text with fields in braces. A header between two lines of `---`, in YAML, may state the scale of
the score, the pattern that finds it in a reply, fields of the request (`request: {temperature: 0.2}`), and
`cut_tail: true` for a prediction without what follows its last full stop:

    ---
    scale: [1, 5]
    pattern: '([1-5])'
    ---
    How well does the response answer the question {question}?
    {prediction}

Fields are `{question}`, `{options}`, `{answer}`, `{extra_answers}` and `{detailed_answer}` (the sample's columns of
that name), `{extra_list}` (the extra answers as Python writes a list), `{completion}` and `{prediction}` (the content
of the answer block). A brace of the text's own is written twice.

Published prompts need more to be sent byte for byte: `words: {correct: 1}` for a reply in words, `system` for a system
turn, `with_extra` for the prompt of questions with extra answers, and `fence: false` to show what the policy wrote as
it is. Only an evaluation should go without fences: a policy that is trained may learn to talk to its judge.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.groups import Rollout, Sample
from rewards.scoring.loading import did_you_mean

FIELDS = (
    "question", "options", "answer", "extra_answers", "extra_list", "detailed_answer", "completion", "prediction",
)  # fmt: skip
BUILT_IN = Path(__file__).with_name("prompts")
HEADER_KEYS = ("scale", "pattern", "request", "cut_tail", "words", "system", "fence", "with_extra")
# Without a pattern the whole reply has to be a number.
WHOLE_REPLY = r"\A\s*([+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*\Z"

_HEADER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*\n", re.DOTALL | re.MULTILINE)
_BRACES = re.compile(r"\{\{|\}\}|\{\w+\}|[{}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgePrompt:
    """A prompt file as read."""

    template: str
    """A format string of FIELDS alone."""
    scale: tuple[float, float]
    """Lowest and highest score."""
    pattern: re.Pattern[str]
    request: Mapping[str, Any]
    """Fields of the request, unless the config has others."""
    cut_tail: bool
    words: Mapping[str, float] = field(default_factory=dict)
    """The scores that words stand for."""
    system: str | None = None
    fence: bool = True
    """Whether what the policy wrote is shown between lines that it can't write itself."""
    with_extra: JudgePrompt | None = None
    """The prompt for questions with extra answers, where that is another one."""

    def of(self, sample: Sample) -> JudgePrompt:
        """The prompt that is sent for a question."""
        return self.with_extra if self.with_extra and _extra_answers(sample) else self

    def messages(self, text: str) -> list[dict[str, str]]:
        """The turns of a request with this text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    @property
    def firmly(self) -> str:
        """What is added to a prompt after a reply without a score."""
        low, high = self.scale
        if self.read_score(f"{low:g}") is None:
            return "Reply in exactly the form that is asked for above, and write nothing else."
        return f"Write nothing but one number from {low:g} to {high:g}: no words, no explanation."

    def predicted(self, answer: str) -> str:
        """What is shown of an answer as the prediction."""
        return without_tail(answer) if self.cut_tail else answer

    def render(self, fields: Mapping[str, str]) -> str:
        """The prompt with its fields filled in, in one pass: braces in their contents mean nothing."""
        return self.template.format(**fields)

    def read_score(self, reply: str) -> float | None:
        """The one number of the scale that the pattern finds in a reply; None if there is none, or several."""
        found = [*self.pattern.finditer(reply)]
        if len(found) != 1:
            return None
        try:
            score = float(self.words.get(found[0][1], found[0][1]))
        except (TypeError, ValueError):
            # A pattern may leave its group out, or match what is no number.
            return None
        return score if self.scale[0] <= score <= self.scale[1] else None

    def scaled(self, score: float) -> float:
        """The score as a value from 0 to 1."""
        low, high = self.scale
        return (score - low) / (high - low)


def load_prompt(
    prompt: str, *, scale: Sequence[float] | None = None, pattern: str | None = None
) -> JudgePrompt:
    """Read a built-in prompt or a file; a scale or pattern given here wins over the file's own.

    Raises ValueError or FileNotFoundError, which names the file and line.
    """
    place, text = find_prompt(prompt)
    header = _HEADER.match(text)
    stated = _read_header(header[1], place) if header else {}
    template = text[header.end() :] if header else text
    first_line = 1 + text[: header.end()].count("\n") if header else 1
    if problem := _mistyped(stated):
        raise ValueError(f"{place}: header: {problem}")
    extra = stated.get("with_extra")
    return JudgePrompt(
        request=stated.get("request", {}),
        cut_tail=stated.get("cut_tail", False),
        words=stated.get("words", {}),
        system=stated.get("system"),
        fence=stated.get("fence", True),
        with_extra=load_prompt(extra, scale=scale, pattern=pattern) if extra else None,
        template=_checked_template(template.rstrip(), place, first_line),
        scale=_checked_scale(stated.get("scale") if scale is None else scale, place),
        pattern=_compiled(stated.get("pattern", WHOLE_REPLY) if pattern is None else pattern, place),
    )


def _mistyped(stated: Mapping[str, Any]) -> str | None:
    """What is wrong with the types of a header's values; None if nothing is."""
    words = stated.get("words", {})
    is_numbers = isinstance(words, dict) and all(type(score) in (int, float) for score in words.values())
    if not is_numbers or not isinstance(stated.get("request", {}), dict):
        return "request is a mapping, and words a mapping to numbers"
    if not all(isinstance(stated.get(key, True), bool) for key in ("cut_tail", "fence")):
        return "cut_tail and fence are true or false"
    if not all(isinstance(stated.get(key, ""), str) for key in ("system", "with_extra")):
        return "system and with_extra are texts"
    return None


def without_tail(text: str) -> str:
    """The text up to its last full stop, if it has one: OpenEQA judges no sentence that was cut off.

    A point inside a number is none; OpenEQA itself cuts there too.
    """
    stops = [*re.finditer(r"\.(?=\s)", text)]
    return text if not stops or text.endswith(".") else text[: stops[-1].end()]


def find_prompt(prompt: str) -> tuple[str, str]:
    """Where a prompt lies and its text."""
    path = BUILT_IN / f"{prompt}.txt"
    if not path.is_file():
        path = Path(prompt).expanduser()
    if not path.is_file():
        built_in = sorted(each.stem for each in BUILT_IN.glob("*.txt"))
        raise FileNotFoundError(
            f"prompt: {prompt!r} is neither a file nor built in{did_you_mean(prompt, built_in)}; "
            f"built in: {', '.join(built_in)}"
        )
    try:
        return f"prompt {prompt}", path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt {prompt}: not UTF-8 text ({error.reason})") from None


def fields_of(rollout: Rollout, prediction: str, *, max_chars: int, fence: bool = True) -> dict[str, str]:
    """What a prompt's fields stand for. What the policy wrote is cut to max_chars and fenced."""
    sample = rollout.sample
    extra = _extra_answers(sample)
    completion, prediction = (shortened(text, max_chars) for text in (rollout.text, prediction))
    letters = string.ascii_uppercase
    options = [f"{letter}: {text}" for letter, text in zip(letters, sample.options, strict=False)]
    return {
        "question": sample.question,
        "options": "; ".join(options) or "none",
        "answer": next((each for each in options if each.startswith(f"{sample.answer}:")), sample.answer),
        "extra_answers": "; ".join(extra) or "none",
        "extra_list": str(extra),
        "detailed_answer": str(sample.columns.get("detailed_answer", "none")),
        "completion": fenced("completion", completion) if fence else sendable(completion),
        "prediction": fenced("response", prediction) if fence else sendable(prediction),
    }


def fenced(name: str, text: str) -> str:
    """The text between two lines that it can't write itself, as they carry a code made from all of it.

    The same text gets the same code, so that its prompt is found in the cache.
    """
    text = sendable(text)
    code = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
    return f"[begin {name} {code}]\n{text}\n[end {name} {code}]"


def sendable(text: str) -> str:
    """The text without lone surrogates, which JSON in UTF-8 can't hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shortened(text: str, max_chars: int) -> str:
    """The text, or its first and last part if it is longer: a request's cost must have a bound."""
    if len(text) <= max_chars:
        return text
    head, tail = text[: max_chars - max_chars // 2], text[len(text) - max_chars // 2 :]
    return f"{head}\n[{len(text) - max_chars} characters left out]\n{tail}"


def _extra_answers(sample: Sample) -> list[str]:
    extra = sample.columns.get("extra_answers") or []
    if not isinstance(extra, list | tuple) or not all(isinstance(each, str) for each in extra):
        raise ValueError(f"{sample.source}: extra_answers is no list of texts")
    return [*extra]


def _checked_template(template: str, place: str, first_line: int) -> str:
    """The template; ValueError for an unknown field or a lone brace, with its line."""
    for number, line in enumerate(template.splitlines(), first_line):
        for token in _BRACES.findall(line):
            if token in ("{", "}"):
                raise ValueError(
                    f"{place}:{number}: a lone {token}; a brace of the text's own is written twice"
                )
            if token not in ("{{", "}}") and token[1:-1] not in FIELDS:
                known = f"{did_you_mean(token[1:-1], FIELDS)}; it takes {', '.join(FIELDS)}"
                raise ValueError(f"{place}:{number}: no field {token}{known}")
    if not {"{completion}", "{prediction}"} & {*_BRACES.findall(template)}:
        raise ValueError(f"{place}: neither {{completion}} nor {{prediction}} in it: nothing to judge")
    return template


def _read_header(header: str, place: str) -> dict[str, Any]:
    import yaml

    try:
        stated = yaml.safe_load(header) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: header: {' '.join(str(error).split())}") from None
    if not isinstance(stated, dict):
        raise ValueError(f"{place}: header: no mapping of {' and '.join(HEADER_KEYS)}")
    for key in stated:
        if key not in HEADER_KEYS:
            raise ValueError(f"{place}: header: no key {key!r}{did_you_mean(str(key), HEADER_KEYS)}")
    return stated


def _checked_scale(scale: object, place: str) -> tuple[float, float]:
    if scale is None:
        raise ValueError(f"{place}: no scale: state `scale: [lowest, highest]` in its header or in args")
    match scale:
        case [int() | float() as low, int() | float() as high] if -1e9 <= low < high <= 1e9:
            return float(low), float(high)
    raise ValueError(f"{place}: scale: {scale!r} is no [lowest, highest]")


def _compiled(pattern: object, place: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern) if isinstance(pattern, str) else None
    except re.error as error:
        raise ValueError(f"{place}: pattern: {pattern!r}: {error}") from None
    if compiled is None or compiled.groups != 1:
        raise ValueError(f"{place}: pattern: {pattern!r} is no regular expression with one group, the number")
    return compiled
