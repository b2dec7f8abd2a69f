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
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards import Counterfactual
from rewards.scoring.specs import FAILURES, Calling, Reward, RewardSpec

BUILTINS = {
    name: f"rewards.builtin.{module}:{name}"
    for module, names in {
        "accuracy": "accuracy",
        "action": "action_error end_effector_distance task_success",
        "answers": "choice exact_set graded_accuracy number ocr regression relative_accuracy rouge text",
        "contrast": "blank_contrast other_clip_contrast t_grpo",
        "format": "format format_lenient tag_order tags_once",
        "keyframe": "few_moments keyframe keyframe_distance keyframe_hit keyframe_iou keyframe_scores self_evidence "
        "self_evidence_cut",
        "length": "brevity cosine_length length_window overlong",
        "motion": "foot_skate joint_velocity mpjpe token_validity",
        "reasoning": "consistency language repetition",
        "temporal": "counting event_order point_in_span temporal_iou timestamp_iou",
        "video_r1": "video_r1_accuracy video_r1_format",
    }.items()
    for name in names.split()
} | {"judge": "rewards.builtin.judge:Judge"}
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
TRL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def find_place(fn: str, *, key: str) -> tuple[str, str]:
    """The file or module that `fn` names and the name in it: of a built-in, `package.module:function`,
    `path/to/file.py:function`, or an installed entry point of the group `grpo.rewards`.

    Raises ValueError or FileNotFoundError, beginning with the config key, for what can't be one; imports nothing.
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
    if place.endswith(".py") and not (path := Path(place).expanduser().resolve()).is_file():
        raise FileNotFoundError(f"{key}: no file {place} (looked at {path})")
    return place, function


def is_builtin(name: str, spec: RewardSpec) -> bool:
    """Whether a reward is one of ours, which are loaded in the trainer's process; raises as `find_place`."""
    place, _ = find_place(_fn_of(name, spec), key=f"rewards.{name}")
    return place.startswith("rewards.builtin.")


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


def _fn_of(name: str, spec: RewardSpec) -> str:
    return name if spec.fn is None else spec.fn


def find_function(fn: str, *, key: str) -> Callable[..., Any]:
    """The function, object or class that `fn` names, whose code is loaded in this process; raises as `find_place`."""
    place, function = find_place(fn, key=key)
    module = _module_of_file(place, key) if place.endswith(".py") else _module_of_name(place, key)
    try:
        # not vars(): some packages load their members when asked
        found = getattr(module, function)
    except AttributeError:
        hint = did_you_mean(function, dir(module)) or _did_you_mean_a_file(place, function)
        raise ValueError(f"{key}: no {function!r} in {place}{hint}") from None
    if callable(found):
        return found
    raise ValueError(f"{key}: {fn} is no function but a value of type {type(found).__name__}")


def load_reward(name: str, spec: RewardSpec) -> Reward:
    """One reward, whose code is loaded in this process; ValueError or FileNotFoundError names the key."""
    fn, key = _fn_of(name, spec), f"rewards.{name}"
    function = find_function(fn, key=key)
    check_signature(function, spec.args, key=key)
    is_light = {_known(fn), _known(spec.args.get("right_by", fn))} <= LIGHT
    return as_reward(name, function, spec, is_light=is_light)


def as_reward(name: str, fn: Callable[..., Any], spec: RewardSpec, *, is_light: bool = False) -> Reward:
    """The reward that a function, an object or a class is, by its marks; ValueError names the key."""
    declared: tuple[Counterfactual, ...] = getattr(_marked(fn), "reward_counterfactuals", ())
    if spec.counterfactual_samples is not None:
        if not any(not each.greedy for each in declared) or spec.counterfactual_samples < 1:
            raise ValueError(
                f"rewards.{name}.counterfactual_samples: must be above 0, and only a reward that declares sampled "
                "counterfactuals has a number of them (greedy ones are all alike)"
            )
        declared = tuple(each._replace(num_samples=spec.counterfactual_samples) for each in declared)
    return Reward(
        name=name,
        spec=spec,
        fn=fn,
        calling=calling_of(fn),
        counterfactuals=declared,
        has_state=not inspect.isroutine(fn) and not isinstance(fn, partial),
        is_async=any(map(inspect.iscoroutinefunction, (fn, fn.__call__))),
        is_light=is_light,
        is_expensive=getattr(fn, "expensive", False),
        columns=tuple(required_columns(fn, spec.args)),
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


def _did_you_mean_a_file(module: str, function: str) -> str:
    """A suggestion to name the user's own file, where a module of that name hides it."""
    path = f"{module.replace('.', '/')}.py"
    return f" (did you mean '{path}:{function}'?)" if Path(path).is_file() else ""


def _module_of_file(place: str, key: str) -> ModuleType:
    """The module of a Python file; executed once, however many rewards it holds, unless it was edited."""
    path = Path(place).expanduser().resolve()
    version = zlib.crc32(f"{path}:{path.stat().st_mtime_ns}".encode())
    name = f"rewards_plugin_{path.stem}_{version:08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FAILURES as error:
        del sys.modules[name]
        raise _no_import(place, error, key) from error
    return module


def _module_of_name(place: str, key: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        # A script's path starts from its own folder, not from where it is called.
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(place)
    except FAILURES as error:
        raise _no_import(place, error, key) from error


def _no_import(place: str, error: BaseException, key: str) -> ValueError:
    hint = "" if place.endswith(".py") else _did_you_mean_a_file(place, "FUNCTION")
    return ValueError(f"{key}: {place} does not import: {type(error).__name__}: {error}{hint}")
