"""From a reward's name in a config to a function that is ready to be called.

Everything that can be wrong with it is found here, before a model is loaded, and says which config
key is meant.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rewards.specs import Calling

BUILTINS = {
    "accuracy": "rewards.accuracy:accuracy",
    "brevity": "rewards.length:brevity",
    "choice": "rewards.answers:choice",
    "consistency": "rewards.reasoning:consistency",
    "cosine_length": "rewards.length:cosine_length",
    "exact_set": "rewards.answers:exact_set",
    "format_lenient": "rewards.format:format_lenient",
    "graded_accuracy": "rewards.answers:graded_accuracy",
    "language": "rewards.reasoning:language",
    "length_window": "rewards.length:length_window",
    "number": "rewards.answers:number",
    "ocr": "rewards.answers:ocr",
    "overlong": "rewards.length:overlong",
    "regression": "rewards.answers:regression",
    "relative_accuracy": "rewards.answers:relative_accuracy",
    "repetition": "rewards.reasoning:repetition",
    "rouge": "rewards.answers:rouge",
    "tag_order": "rewards.format:tag_order",
    "tags_once": "rewards.format:tags_once",
    "text": "rewards.answers:text",
    "video_r1_accuracy": "rewards.video_r1:video_r1_accuracy",
    "video_r1_format": "rewards.video_r1:video_r1_format",
    "format": "rewards.format:format",
    # cited moments
    "few_moments": "rewards.keyframe:few_moments",
    "keyframe": "rewards.keyframe:keyframe",
    "keyframe_distance": "rewards.keyframe:keyframe_distance",
    "keyframe_hit": "rewards.keyframe:keyframe_hit",
    "keyframe_iou": "rewards.keyframe:keyframe_iou",
    "keyframe_scores": "rewards.keyframe:keyframe_scores",
    "self_evidence": "rewards.keyframe:self_evidence",
    "self_evidence_cut": "rewards.keyframe:self_evidence_cut",
    # answers about time
    "counting": "rewards.temporal:counting",
    "event_order": "rewards.temporal:event_order",
    "point_in_span": "rewards.temporal:point_in_span",
    "temporal_iou": "rewards.temporal:temporal_iou",
    # against completions about changed frames
    "blank_contrast": "rewards.contrast:blank_contrast",
    "other_clip_contrast": "rewards.contrast:other_clip_contrast",
    "t_grpo": "rewards.contrast:t_grpo",
}
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TRL_ARGUMENTS = ("prompts", "completions", "completion_ids")


def find_function(fn: str, *, key: str) -> Callable[..., Any]:
    """The function that `fn` names: a built-in, `package.module:function` or `path/to/file.py:function`.

    Raises ValueError or FileNotFoundError, beginning with the config key, if there is none.
    """
    place, colon, function = BUILTINS.get(fn, fn).rpartition(":")
    if not colon:
        raise ValueError(
            f"{key}: no built-in reward named {fn!r}{did_you_mean(fn, BUILTINS)}; "
            "a reward of your own is package.module:function or path/to/file.py:function"
        )
    module = _module_of_file(place, key) if place.endswith(".py") else _module_of_name(place, key)
    try:
        found = getattr(module, function)  # not vars(): some packages load their members when asked
    except AttributeError:
        raise ValueError(f"{key}: no {function!r} in {place}{did_you_mean(function, dir(module))}") from None
    if inspect.iscoroutinefunction(found):
        raise ValueError(f"{key}: {fn} is async, which is not supported")
    if callable(found):
        return found
    raise ValueError(f"{key}: {fn} is no function but a value of type {type(found).__name__}")


def calling_of(fn: Callable[..., Any]) -> Calling:
    """What the function's decorator says; without one it is called as TRL calls rewards."""
    return cast(Calling, getattr(fn, "reward_calling", "columns"))


def check_signature(fn: Callable[..., Any], args: Mapping[str, Any], *, key: str) -> None:
    """Raise ValueError unless the function can be called that way with these arguments."""
    if calling_of(fn) == "columns":
        check_trl_signature(fn, args, key=key)
        return
    parameters = inspect.signature(fn).parameters.values()
    if len([each for each in parameters if each.kind in POSITIONAL]) != 1:
        raise ValueError(f"{key}: it must take one positional argument; knobs are keyword-only, after a *")
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
    if calling_of(fn) != "columns":
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
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{key}: {place} does not import: {type(error).__name__}: {error}") from error
