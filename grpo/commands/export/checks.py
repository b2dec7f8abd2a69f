"""What can be wrong with the arguments of an export, which is said before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo.policy.model_folder import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def target_folders(out: Path, alphas: Sequence[float]) -> list[Path]:
    """Return the folder of each share's model: `out` of a single one; raise ValueError for what can't be written."""
    folders = [out / f"alpha_{alpha:g}" for alpha in alphas] if len(alphas) > 1 else [out]
    for alpha, folder in zip(alphas, folders, strict=True):
        check_share(alpha)
        check_free(folder)
    return folders


def check_share(alpha: float) -> None:
    """Raise ValueError unless it is a share."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha must lie in [0, 1], not {alpha:g}")


def check_free(out: Path) -> None:
    """Raise ValueError if there is something at a path."""
    if out.exists():
        raise ValueError(f"--out: there is something at {out} already")


def named_base(adapter: Path) -> str:
    """Return the base that adapters name; raise ValueError if there are no adapters in the folder."""
    if not (adapter / CONFIG).is_file() or not (adapter / WEIGHTS).is_file():
        raise ValueError(
            f"{adapter} has no {CONFIG} and {WEIGHTS}: a run with LoRA leaves them in final/adapter"
        )
    return read_json(adapter / CONFIG)["base_model_name_or_path"]
