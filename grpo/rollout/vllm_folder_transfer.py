"""The workers' side of a weight transfer by files, for servers that share no NCCL with the learner, as on a CPU.

A worker that is started with `Extension` knows this backend of vLLM's weight transfer, beside vLLM's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from grpo.rollout.server_flags import FOLDER, ORDER
from grpo.rollout.vllm_weights import WeightLoader


@dataclass
class FolderInit(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class FolderUpdate(WeightTransferUpdateInfo):
    files: list[str]
    """The files with all weights of the policy, by their names in checkpoints."""


class FolderTransfer(WeightTransferEngine[FolderInit, FolderUpdate]):
    """A weight transfer by safetensors files on a file system that the server sees too."""

    init_info_cls, update_info_cls = FolderInit, FolderUpdate

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self.loader = WeightLoader(self, repacks=device.type == "cpu")

    def get_model(self) -> Any:
        """Return the model, which the loader asks for as it asks a worker."""
        return self.model

    def init_transfer_engine(self, init_info: FolderInit) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FolderUpdate) -> None:
        """Load the files; raise ValueError with the names that only the policy has, or only this model."""
        self.loader.load(_stored(update_info.files))

    def finish_weight_update(self) -> None: ...

    def shutdown(self) -> None: ...


def _stored(files: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            # The policy's order: a packed parameter has its weights one after another, as they come.
            yield from ((name, file.get_tensor(name)) for name in json.loads(file.metadata()[ORDER]))


WeightTransferEngineFactory.register_engine(FOLDER, FolderTransfer)


class Extension:
    """What vLLM adds to its workers, which import this module for it."""

    weight_transfer_engine: FolderTransfer
    _weight_update_active: bool
    finish_weight_update: Callable[[], None]

    def end_update(self) -> None:
        """End a weight update that was cut short, if there is one, as that of a run that was killed.

        vLLM would refuse the next one, or take its weights for more of those of the last one.
        """
        self._weight_update_active = True
        self.finish_weight_update()

    def differing_weights(self, files: list[str]) -> list[str]:
        """Return the names of the weights in these files that the model computes with other values of."""
        return self.weight_transfer_engine.loader.differing(_stored(files))
