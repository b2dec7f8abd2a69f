"""From files and `key=value` overrides to one `Config`: they overlay left to right, all strict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo.config.limits import validate
from grpo.config.schema import Config


def load_config(argv: Sequence[str]) -> Config:
    """Layer YAML files, then key=value overrides, on the defaults; later ones win.

    An unknown key, a wrong type or an impossible combination raises ValueError here, before a model is loaded.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *_files(argv), _overrides(argv))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"config: {missing[0]} is not set")
        config = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    except TypeError as error:  # a list met something else; OmegaConf does not say which
        raise ValueError(f"config: {error}; lists are set whole: data.train=[{{path: FILE}}]") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config: no YAML: {' '.join(str(error).split())}") from error
    validate(config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved config, as a file that `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


FREE_TO_CHANGE = (
    "run_dir", "num_steps", "eval", "checkpoint", "log", "rewards_max_error_frac", "rewards_workers",
    "data.eval", "data.probe_clips", "data.allow_overlap",
    "media.num_workers", "media.timeout_s", "media.cache_gib", "media.cache_dir", "media.cache_disk_gib",
    "media.prefetch_steps", "model.attention", "model.gradient_checkpointing", "model.activation_offloading",
    "loss.reference_offload", "rollout.gpu_memory_frac", "rollout.sleep", "rollout.max_gap", "optim.tokens_per_row",
    "optim.max_skipped_updates", "optim.spike_factor",
)  # fmt: skip
"""What a resumed run may set anew: how it is run and watched, and how long. (Another `num_steps` stretches the rest
of a cosine schedule.)"""


def check_same_run(old: Path, config: Config) -> None:
    """Raise ValueError if a run folder's config file differs in a key that would make it another run."""
    before = _flat(OmegaConf.to_container(OmegaConf.load(old)))
    now = _flat(OmegaConf.to_container(OmegaConf.structured(config)))
    for key in sorted(before.keys() | now.keys()):
        is_free = any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE) or (
            key.startswith("rewards.") and key.endswith((".timeout_s", ".cache"))
        )
        if before.get(key) != now.get(key) and not is_free:
            raise ValueError(
                f"run_dir: {old.parent} holds a run with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another run_dir, or remove that folder"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    return {
        k: v
        for name, part in pairs
        for k, v in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _files(argv: Sequence[str]) -> list[Any]:
    paths = [Path(arg) for arg in argv if "=" not in arg]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"config: no file {path}")
    return [OmegaConf.load(path) for path in paths]


def _overrides(argv: Sequence[str]) -> Any:
    return OmegaConf.from_dotlist([arg for arg in argv if "=" in arg])


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
