"""Checkpoints: written whole or not at all, compared with their checksums before they are loaded, and never run.

`step_000050/` holds what accelerate saves, the states that are kept by name (`keep_json`, `keep_weights`), and
`manifest.json`, which is written last: the step, its held-out score, and the size and SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_model, save_model
from torch import nn

from grpo.run.disk import disk_errors, put_in_place, write_text
from grpo.run.folder import CHECKPOINT_MANIFEST, Score, best_checkpoint, checkpoint_steps, teaching_checkpoint

SHARD_LIST = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip
"""What the list of shards of a checkpoint under FSDP2 is made of."""


class Stateful(Protocol):
    """An object whose state JSON can hold; it is the same in all processes."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any) -> object: ...


def keep_json(accelerator: Accelerator, name: str, owner: Stateful) -> None:
    """Make an object's state a part of checkpoints, as `NAME.json`.

    accelerate's own way (`register_for_checkpointing`) stores a pickle, and runs what is in it.
    """
    _keep(
        accelerator,
        f"{name}.json",
        lambda file: file.write_text(json.dumps(dict(owner.state_dict())), encoding="utf-8"),
        lambda file: owner.load_state_dict(json.loads(file.read_bytes())),
    )


def keep_weights(accelerator: Accelerator, name: str, module: nn.Module) -> None:
    """Make the weights of a module that does not train a part of checkpoints, as `NAME.safetensors`."""
    _keep(
        accelerator,
        f"{name}.safetensors",
        lambda file: save_model(module, str(file)),
        lambda file: load_model(module, file),
    )


def keep_folder(
    accelerator: Accelerator, name: str, write: Callable[[Path], None], read: Callable[[Path], None]
) -> None:
    """Make a folder of that name a part of checkpoints, which all processes are called to write and to read."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: write(Path(folder) / name))
    accelerator.register_load_state_pre_hook(lambda models, folder: read(Path(folder) / name))


def _keep(
    accelerator: Accelerator, name: str, write: Callable[[Path], object], read: Callable[[Path], object]
) -> None:
    """Have the first process write a file of that name into checkpoints, and all processes read it from there."""

    def on_save(models: object, weights: object, folder: str) -> None:
        if accelerator.is_main_process:
            write(Path(folder) / name)

    def on_load(models: object, folder: str) -> None:
        read(Path(folder) / name)

    accelerator.register_save_state_pre_hook(on_save)
    accelerator.register_load_state_pre_hook(on_load)


def save(folder: Path, step: int, accelerator: Accelerator, *, keep: int, score: Score | None = None) -> None:
    """Save weights, optimizer and random states as `folder/step_N`; only then remove what is kept no longer.

    keep: how many of the newest stay. The one with the best held-out score stays beside them, and the newest from
    before the run ceased to learn.
    """
    partial, finished = folder / f".partial_{step:06d}", _path(folder, step)
    if accelerator.is_main_process:
        _sweep(folder)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with disk_errors(partial, removes=accelerator.is_main_process):
        # The argument is for DeepSpeed alone.
        accelerator.save_state(str(partial), exclude_frozen_parameters=True)
        accelerator.wait_for_everyone()
        names = _own_share(_union(_files(partial)), accelerator)
        files = dict(sorted(gather_object([(name, _checksum(partial / name)) for name in names])))
        if accelerator.is_main_process:
            manifest = {"step": step, "score": score and score._asdict(), "files": files}
            write_text(partial / CHECKPOINT_MANIFEST, json.dumps(manifest, indent=2) + "\n")
            put_in_place(partial, finished)
            _remove_old(folder, step, keep)
    accelerator.wait_for_everyone()


def restore(folder: Path, accelerator: Accelerator) -> int:
    """Load the latest checkpoint that is whole and return its step; 0 if there is none at all.

    Damaged ones after it are set aside as `step_N.damaged`. Raises ValueError if there are checkpoints and all are
    damaged: a run that begins anew would lose what it has done.
    """
    found = _union(checkpoint_steps(folder))
    for step in reversed(found):
        path = _path(folder, step)
        damage = gather_object(_damage(path, step, accelerator))
        if not damage:
            _check_metadata(path)
            _check_processes(path, accelerator)
            with _tensors_only(accelerator):
                accelerator.load_state(str(path))
            if accelerator.is_main_process:
                for later in found[found.index(step) + 1 :]:
                    _set_aside(_path(folder, later))
            return step
        accelerator.print(f"note: {path} is damaged and left out: {damage[0]}", flush=True)
    if found:
        raise ValueError(
            f"{folder}: no checkpoint is whole; put one back, or remove the run's folder to begin anew"
        )
    return 0


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}"


def _remove_old(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest up to a step, the best one, and the newest of which the run learned.

    Later ones are damaged: the run began before them.
    """
    earlier = [each for each in checkpoint_steps(folder) if each <= step]
    kept = {*earlier[-keep:], best_checkpoint(folder), teaching_checkpoint(folder)}
    for old in {*checkpoint_steps(folder)} - kept:
        shutil.rmtree(_path(folder, old))


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed while they saved have left: nothing loads it."""
    for left in (*folder.glob(".partial_*"), *folder.glob(".step_*.older")):
        shutil.rmtree(left, ignore_errors=True)


def _set_aside(damaged: Path) -> None:
    """Rename a checkpoint so that it is none any more: it could have the best score, and a whole one go for it."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    # A process may have listed one that is gone.
    with suppress(FileNotFoundError):
        damaged.rename(aside)


def _union(own: Iterable[Any]) -> list[Any]:
    """Return what any process has found, in order: a network's file system may list what others wrote only later."""
    return sorted({*gather_object(own)})


def _own_share(names: list[str], accelerator: Accelerator) -> list[str]:
    """Return the files that this process reads: all together read each once."""
    return names[accelerator.process_index :: accelerator.num_processes]


def _files(folder: Path) -> list[str]:
    """Return the names of the files of a folder, below it too."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _damage(folder: Path, step: int, accelerator: Accelerator) -> list[str]:
    """Return what is wrong with a checkpoint: its manifest, and of the files that this one names this process's share.

    Other files are nobody's business: file systems and file managers leave some.
    """
    try:
        manifest = json.loads((folder / CHECKPOINT_MANIFEST).read_bytes())
        stored, written = dict(manifest["files"]), manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{CHECKPOINT_MANIFEST} cannot be read: {' '.join(str(error).split())}"]
    if written != step:
        return [f"{CHECKPOINT_MANIFEST} is of step {written}"]
    own = _own_share(sorted(stored), accelerator)
    missing = [name for name in own if not (folder / name).is_file()]
    changed = [name for name in own if name not in missing and _checksum(folder / name) != stored[name]]
    return [f"{name} is missing" for name in missing] + [
        f"{name} is not as it was written" for name in changed
    ]


def _check_processes(path: Path, accelerator: Accelerator) -> None:
    """Raise ValueError for a checkpoint of another number of processes under DeepSpeed, which can't divide it anew."""
    # Each process stores random states of its own.
    num_before = len([*path.glob("random_states_*.pkl")])
    now = accelerator.num_processes
    if accelerator.distributed_type == DistributedType.DEEPSPEED and num_before != now:
        raise ValueError(
            f"{path} was saved by {num_before} processes, and DeepSpeed can't divide it among {now}: launch "
            f"{num_before}, or choose another run_dir"
        )


class _MetadataReader(pickle.Unpickler):
    """A reader of the pickle in which FSDP2 lists its shards; it knows nothing but what such a list holds."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in SHARD_LIST:
            raise pickle.UnpicklingError(f"{module}.{name} is nothing that a list of shards holds")
        return super().find_class(module, name)


def _check_metadata(path: Path) -> None:
    """Raise ValueError for a list of shards that would run something: torch reads it by plain `pickle.load`."""
    # accelerate's folders of shards; unlike `rglob`, this follows links, as torch does.
    for file in path.glob("*/.metadata"):
        try:
            with file.open("rb") as opened:
                _MetadataReader(opened).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{file}: {error}") from error


@contextmanager
def _tensors_only(accelerator: Accelerator) -> Iterator[None]:
    """Let `torch.load` rebuild tensors and plain values alone, whatever its caller asks for: DeepSpeed asks for all."""
    allowed = _deepspeed_values() if accelerator.distributed_type == DistributedType.DEEPSPEED else []
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _deepspeed_values() -> list[Any]:
    """Return the classes of plain values that DeepSpeed stores beside tensors."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]
