"""From a reward's name in a config to a function that is ready to be called.

Everything that can be wrong with it is found here, before a model is loaded, and says which config
key is meant.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards import Counterfactual
from rewards.scoring.specs import Calling, Reward, RewardSpec

BUILTINS = {
    # answers
    "accuracy": "rewards.builtin.accuracy:accuracy",
    "choice": "rewards.builtin.answers:choice",
    "exact_set": "rewards.builtin.answers:exact_set",
    "graded_accuracy": "rewards.builtin.answers:graded_accuracy",
    "number": "rewards.builtin.answers:number",
    "ocr": "rewards.builtin.answers:ocr",
    "regression": "rewards.builtin.answers:regression",
    "relative_accuracy": "rewards.builtin.answers:relative_accuracy",
    "rouge": "rewards.builtin.answers:rouge",
    "text": "rewards.builtin.answers:text",
    "video_r1_accuracy": "rewards.builtin.video_r1:video_r1_accuracy",
    "judge": "rewards.builtin.judge:Judge",
    # answers about time
    "counting": "rewards.builtin.temporal:counting",
    "event_order": "rewards.builtin.temporal:event_order",
    "point_in_span": "rewards.builtin.temporal:point_in_span",
    "temporal_iou": "rewards.builtin.temporal:temporal_iou",
    # cited moments
    "few_moments": "rewards.builtin.keyframe:few_moments",
    "keyframe": "rewards.builtin.keyframe:keyframe",
    "keyframe_distance": "rewards.builtin.keyframe:keyframe_distance",
    "keyframe_hit": "rewards.builtin.keyframe:keyframe_hit",
    "keyframe_iou": "rewards.builtin.keyframe:keyframe_iou",
    "keyframe_scores": "rewards.builtin.keyframe:keyframe_scores",
    "self_evidence": "rewards.builtin.keyframe:self_evidence",
    "self_evidence_cut": "rewards.builtin.keyframe:self_evidence_cut",
    # against completions about changed frames
    "blank_contrast": "rewards.builtin.contrast:blank_contrast",
    "other_clip_contrast": "rewards.builtin.contrast:other_clip_contrast",
    "t_grpo": "rewards.builtin.contrast:t_grpo",
    # form
    "format": "rewards.builtin.format:format",
    "format_lenient": "rewards.builtin.format:format_lenient",
    "tag_order": "rewards.builtin.format:tag_order",
    "tags_once": "rewards.builtin.format:tags_once",
    "video_r1_format": "rewards.builtin.video_r1:video_r1_format",
    # length and reasoning
    "brevity": "rewards.builtin.length:brevity",
    "consistency": "rewards.builtin.reasoning:consistency",
    "cosine_length": "rewards.builtin.length:cosine_length",
    "language": "rewards.builtin.reasoning:language",
    "length_window": "rewards.builtin.length:length_window",
    "overlong": "rewards.builtin.length:overlong",
    "repetition": "rewards.builtin.reasoning:repetition",
}
LIGHT = frozenset(
    BUILTINS[name]
    for name in (
        "accuracy", "choice", "few_moments", "keyframe", "keyframe_distance", "keyframe_hit", "keyframe_iou",
        "keyframe_scores", "format", "format_lenient", "tag_order", "tags_once", "video_r1_format", "brevity",
        "cosine_length", "length_window", "overlong",
    )
)  # fmt: skip
"""Built-ins that only read a completion's text, in a time that grows with its length alone: they hang and crash no
process, and are called in the trainer's own."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TRL_ARGUMENTS = ("prompts", "completions", "completion_ids")


def find_function(fn: str, *, key: str) -> Callable[..., Any]:
    """The function, object or class that `fn` names: a built-in, `package.module:function`,
    `path/to/file.py:function`, or an installed entry point of the group `grpo.rewards`.

    Raises ValueError or FileNotFoundError, beginning with the config key, if there is none.
    """
    place, colon, function = _known(fn).rpartition(":")
    if not colon:
        guess = f"{fn}:FUNCTION" if fn.endswith(".py") else ":".join(fn.rsplit(".", 1))
        hint = (
            did_you_mean(fn, [*BUILTINS, *_entry_points()])
            if "." not in fn
            else f" (did you mean {guess!r}?)"
        )
        raise ValueError(
            f"{key}: no built-in reward named {fn!r}{hint}; "
            "a reward of your own is package.module:function or path/to/file.py:function"
        )
    module = _module_of_file(place, key) if place.endswith(".py") else _module_of_name(place, key)
    try:
        found = getattr(module, function)  # not vars(): some packages load their members when asked
    except AttributeError:
        raise ValueError(f"{key}: no {function!r} in {place}{did_you_mean(function, dir(module))}") from None
    if callable(found):
        return found
    raise ValueError(f"{key}: {fn} is no function but a value of type {type(found).__name__}")


def reads_cited_moments(fn: str) -> bool:
    """Whether a reward of that name reads the keyframes tag, as far as its name says."""
    return _known(fn).startswith("rewards.builtin.keyframe:")


def _known(fn: str) -> str:
    """A built-in's or entry point's `module:function`; anything else as it is."""
    return BUILTINS.get(fn) or _entry_points().get(fn, fn)


@lru_cache
def _entry_points() -> dict[str, str]:
    """Rewards that installed packages offer by name."""
    return {point.name: point.value for point in entry_points(group="grpo.rewards")}


def load_reward(name: str, spec: RewardSpec) -> Reward:
    """One reward, without a look at the others; ValueError or FileNotFoundError names the key."""
    key = f"rewards.{name}"
    fn = find_function(name if spec.fn is None else spec.fn, key=key)
    check_signature(fn, spec.args, key=key)
    declared: tuple[Counterfactual, ...] = getattr(_marked(fn), "reward_counterfactuals", ())
    if spec.counterfactual_samples is not None:
        if not any(not each.greedy for each in declared) or spec.counterfactual_samples < 1:
            raise ValueError(
                f"{key}.counterfactual_samples: must be above 0, and only a reward that declares sampled "
                "counterfactuals has a number of them (greedy ones are all alike)"
            )
        declared = tuple(each._replace(num_samples=spec.counterfactual_samples) for each in declared)
    return Reward(
        name=name,
        fn=fn,
        calling=calling_of(fn),
        spec=spec,
        counterfactuals=declared,
        is_light=_known(name if spec.fn is None else spec.fn) in LIGHT,
    )


def _class_of(fn: Callable[..., Any]) -> type:
    return fn if isinstance(fn, type) else type(fn)


def _marked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What carries the decorators' marks: the function, the class, or its `__call__`."""
    if inspect.isroutine(fn) or hasattr(fn, "reward_calling"):
        return fn
    return _class_of(fn).__call__


def calling_of(fn: Callable[..., Any]) -> Calling:
    """What the decorator says; without one it is called as TRL calls rewards."""
    return getattr(_marked(fn), "reward_calling", None) or _trl_calling(fn)


def _trl_calling(fn: Callable[..., Any]) -> Calling:
    """Whether a TRL reward expects chat messages: its annotation says so, or it looks up their "content"."""
    called = fn if inspect.isroutine(fn) else _class_of(fn).__call__
    parameter = inspect.signature(called).parameters.get("completions")
    if parameter is not None and parameter.annotation is not parameter.empty:
        return "messages" if "dict" in str(parameter.annotation) else "columns"
    try:
        return "messages" if re.search(r"""\[["']content["']\]""", inspect.getsource(called)) else "columns"
    except (OSError, TypeError):
        return "columns"


def check_signature(fn: Callable[..., Any], args: Mapping[str, Any], *, key: str) -> None:
    """Raise ValueError unless it can be called that way with these arguments."""
    if inspect.isclass(fn):
        check_class(fn, args, key=key)
        return
    if calling_of(fn) in ("columns", "messages"):
        check_trl_signature(fn, args, key=key)
        return
    parameters = inspect.signature(fn).parameters.values()
    if len([each for each in parameters if each.kind in POSITIONAL]) != 1:
        raise ValueError(f"{key}: it must take one positional argument; knobs are keyword-only, after a *")
    check_knobs(parameters, args, key=key)


def check_class(cls: type, args: Mapping[str, Any], *, key: str) -> None:
    """Raise ValueError unless the class can be made with these arguments, and its objects called."""
    if "__call__" not in dir(cls):
        raise ValueError(f"{key}: {cls.__name__} is a class whose objects can't be called")
    if calling_of(cls) in ("columns", "messages"):
        check_trl_signature(cls.__call__, {}, key=key)
    made_with = [] if cls.__init__ is object.__init__ else [*inspect.signature(cls).parameters.values()]
    if any(each.kind in POSITIONAL and each.default is each.empty for each in made_with):
        raise ValueError(f"{key}: {cls.__name__} must take its knobs as keyword-only arguments, after a *")
    check_knobs(made_with, args, key=key)


def check_knobs(parameters: Iterable[inspect.Parameter], args: Mapping[str, Any], *, key: str) -> None:
    """Raise ValueError for an argument that is not known, or one that is missing."""
    knobs = [each for each in parameters if each.kind == inspect.Parameter.KEYWORD_ONLY]
    check_names(args, [knob.name for knob in knobs], key=key)
    missing = [knob.name for knob in knobs if knob.default is knob.empty and knob.name not in args]
    if missing:
        raise ValueError(f"{key}.args: {', '.join(missing)} missing, without default")


def check_trl_signature(fn: Callable[..., Any], args: Mapping[str, Any], *, key: str) -> None:
    """As `check_signature`. Which columns the data set has is not known here; a probe with samples tells."""
    parameters = inspect.signature(fn).parameters.values()
    if all(each.kind != inspect.Parameter.VAR_KEYWORD for each in parameters):
        raise ValueError(
            f"{key}: it has no decorator, so it is called as TRL calls rewards and must take **kwargs; "
            "or is @reward or @group_reward missing?"
        )
    named = [each.name for each in parameters if each.kind != inspect.Parameter.VAR_KEYWORD]
    check_names(args, [name for name in named if name not in TRL_ARGUMENTS], key=key)


def check_names(args: Mapping[str, Any], known: Sequence[str], *, key: str) -> None:
    """Raise ValueError for the first argument that is not known; **kwargs does not make it so."""
    for name in args:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{key}.args: no argument {name!r}{did_you_mean(name, known)}; {takes}")


def required_columns(fn: Callable[..., Any], args: Mapping[str, Any]) -> list[str]:
    """Dataset columns without which a function called as TRL does would raise."""
    if calling_of(fn) not in ("columns", "messages") or not inspect.isroutine(fn):
        return []
    needed = [each for each in inspect.signature(fn).parameters.values() if each.default is each.empty]
    given = {*TRL_ARGUMENTS, *args}
    return [each.name for each in needed if each.kind != each.VAR_KEYWORD and each.name not in given]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion in brackets, with a space before it; nothing if no known name is close."""
    close = difflib.get_close_matches(name, [*known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _module_of_file(place: str, key: str) -> ModuleType:
    """The module of a Python file; executed once, however many rewards it holds, unless it was edited."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no file {place} (looked at {path})")
    version = zlib.crc32(f"{path}:{path.stat().st_mtime_ns}".encode())
    name = f"rewards_plugin_{path.stem}_{version:08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{key}: {place} does not import: {type(error).__name__}: {error}") from error
    return module


def _module_of_name(place: str, key: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a script's path starts from its own folder, not from where it is called
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{key}: {place} does not import: {type(error).__name__}: {error}") from error
