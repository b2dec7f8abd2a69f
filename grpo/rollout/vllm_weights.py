"""Weights and adapters on their way into the vLLM engine of this process, every name accounted for on both sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from grpo.policy.adapters import adapted_layers, adapter_weights, is_adapter, save_adapters
from grpo.policy.model import Policy
from grpo.policy.sharding import whole
from grpo.policy.weights import EMBEDDING, check_names


class WeightLoader:
    """The loader of weights into a worker's model.

    The first time, weights are loaded one by one, to see which of the model's parameters each name fills: vLLM ignores
    some names that it does not know. After that they are loaded all at once.
    """

    def __init__(self, worker: Any, *, repacks: bool) -> None:
        """Make a loader; repacks: the worker's layers keep their weights in another form, as they do on a CPU."""
        self.worker, self.repacks = worker, repacks
        self.fills: dict[str, frozenset[str]] = {}
        """The parameters of the model that each name fills; empty until the first time."""

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load all weights; raise ValueError with the names that only the policy has, or only the engine."""
        from vllm.config import set_current_vllm_config

        model, given = self.worker.get_model(), dict[str, frozenset[str]]()
        wanted = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
        with set_current_vllm_config(self.worker.vllm_config), self._unpacked(model):
            if not self.fills:
                given = {name: _load_one(model, name, weight) for name, weight in weights}
                filled = frozenset[str]().union(*given.values())
            else:
                filled = model.load_weights(_noted(weights, self.fills, given))
        unknown = [name for name, parameters in given.items() if not parameters]
        check_names(unknown, [*(self.fills.keys() - given.keys()), *(wanted - filled)])
        self.fills = given

    def clear_states(self) -> None:
        """Empty what a model holds beside weights and buffers, which after a sleep has any values.

        vLLM keeps buffers (`v1/worker/gpu_worker.py`, `sleep`), but the vision states that Qwen3-VL adds to its first
        layers are none, and in passes without vision it takes them for zeros (`models/qwen3_vl.py`,
        `_get_deepstack_input_embeds`).
        """
        for states_TD in getattr(self.worker.get_model(), "deepstack_input_embeds", ()):
            states_TD.zero_()

    @contextmanager
    def _unpacked(self, model: Any) -> Iterator[None]:
        """Let a model whose layers are packed take weights as a checkpoint has them inside the context."""
        if not self.repacks:
            yield
            return
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        initialize_layerwise_reload(model)
        try:
            yield
        finally:
            # After a failure too: else vLLM would count the next weights on top of these.
            finalize_layerwise_reload(model, self.worker.model_config)

    @torch.no_grad()
    def differing(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Return the names of weights that the model computes with other values of.

        Of a parameter that tensor parallelism has split, only the sums over the processes are compared, and all of the
        names that fill it are returned.
        """
        found: list[str] = []
        model = self.worker.get_model()
        device = next(model.parameters()).device
        # From files they come on the CPU.
        for parameter, pieces in self._by_parameter((name, weight.to(device)) for name, weight in weights):
            expected_OI = torch.cat([_as_rows(weight) for weight in pieces.values()])
            values_OI = _values(model, parameter, expected_OI)
            if values_OI.shape[1:] != expected_OI.shape[1:] or len(values_OI) < len(expected_OI):
                found += [] if _same_sums(values_OI, expected_OI) else pieces
                continue
            # The rows of a vocabulary are padded.
            parts = values_OI[: len(expected_OI)].split([len(weight) for weight in pieces.values()])
            found += [
                name
                for (name, weight), part in zip(pieces.items(), parts, strict=True)
                if not torch.allclose(part, _as_rows(weight), rtol=1e-5, atol=1e-7)
            ]
        return found

    def _by_parameter(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield each parameter with the weights that fill it, as soon as they are all there."""
        left = Counter(parameter for parameters in self.fills.values() for parameter in parameters)
        waiting: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, weight in weights:
            for parameter in self.fills[name]:
                waiting[parameter][name] = weight
                left[parameter] -= 1
                if not left[parameter]:
                    yield parameter, waiting.pop(parameter)


def _load_one(model: Any, name: str, weight: Tensor) -> frozenset[str]:
    """Load a weight and return the parameters that it filled; none if the model does not know its name."""
    try:
        return frozenset(model.load_weights([(name, weight)]))
    except ValueError as error:
        if "no module or parameter named" not in str(error):
            raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error
        return frozenset()


def _noted(
    weights: Iterable[tuple[str, Tensor]],
    fills: Mapping[str, frozenset[str]],
    given: dict[str, frozenset[str]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights whose names are known, with a note of all names in `given`."""
    for name, weight in weights:
        given[name] = fills.get(name, frozenset())
        if given[name]:
            yield name, weight


def _values(model: Any, parameter: str, like: Tensor) -> Tensor:
    """Return the values of a parameter that the model computes with, in the shape of a checkpoint's."""
    path, _, kind = parameter.rpartition(".")
    layer = dict(model.named_modules())[path]
    layer = getattr(layer, "base_layer", layer)
    if kind == "weight" and hasattr(layer, "cpu_linear") and not parameter.endswith(EMBEDDING):
        # A packed layer has no weights to look at, but what it makes of unit vectors are its columns.
        # One that tensor parallelism has split has fewer inputs.
        units_II = torch.eye(getattr(layer, "input_size_per_partition", like.shape[1]), dtype=like.dtype)
        return layer.quant_method.apply(layer, units_II, None).T
    return _as_rows(getattr(layer, kind))


def _as_rows(weight: Tensor) -> Tensor:
    """Return a weight with at most two axes; a convolution's kernel becomes a row."""
    return weight.flatten(1) if weight.ndim > 1 else weight


def _same_sums(part: Tensor, expected: Tensor) -> bool:
    """Return whether the processes' parts of a parameter add up to the expected weights."""
    from vllm.distributed import get_tp_group

    def sums(weight: Tensor) -> Tensor:
        return torch.stack([weight.double().sum(), weight.double().abs().sum()]).float()

    wanted = sums(expected)
    return torch.allclose(
        get_tp_group().all_reduce(sums(part)), wanted, rtol=0.0, atol=1e-4 * float(wanted[1])
    )


class AdapterLoader:
    """The loader of adapters beside the engine's weights, each version under a name of its own.

    An adapter that is reloaded under its old name would be served with vision features of the old one (vLLM #44939).
    """

    def __init__(self, engine: Any, worker: Any, dtype: torch.dtype) -> None:
        """Make a loader for vLLM's engine and its worker in this process, which compute in a precision."""
        self.engine, self.worker, self.dtype = engine, worker, dtype
        self.version = 0

    def load(self, policy: Policy) -> Any:
        """Replace the engine's adapters by the policy's; return vLLM's request for them.

        Raises ValueError with the names of layers whose adapters the engine does not have. Sharded weights are
        gathered, so all processes must call it together.
        """
        from vllm.lora.request import LoRARequest

        weights = {
            name: whole(weight).to(self.dtype)
            for name, weight in policy.model.named_parameters()
            if is_adapter(name)
        }
        if self.version:
            self.engine.remove_lora(self.version)
        self.version += 1
        # vLLM takes adapters from files alone. They are gone again before a disk has to write them.
        with TemporaryDirectory(prefix="adapters_") as folder:
            path = Path(folder) / "adapter"
            save_adapters(path, policy.model, weights, policy.family.path)
            request = LoRARequest(f"version_{self.version}", self.version, str(path))
            if not self.engine.add_lora(request):
                raise ValueError(f"the engine does not take the policy's adapters, version {self.version}")
        theirs, ours = self._engine_adapters().keys(), self._names(policy).keys()
        check_names(theirs - ours, ours - theirs)
        return request

    def differing(self, policy: Policy) -> list[str]:
        """Return the names of the layers for which the engine has other adapters than the policy."""
        theirs, found = self._engine_adapters(), []
        for name, layer in self._names(policy).items():
            down_RI, up_OR, scaling = adapter_weights(layer)
            ours = (whole(down_RI), whole(up_OR) * scaling)
            same = name in theirs and all(
                torch.allclose(mine.cpu(), its.cpu().to(mine.dtype), rtol=1e-2, atol=1e-5)
                for mine, its in zip(ours, theirs[name], strict=True)
            )
            found += [] if same else [name]
        return found

    @property
    def _manager(self) -> Any:
        return self.worker.model_runner.lora_manager._adapter_manager

    def _names(self, policy: Policy) -> dict[str, Any]:
        """Return the adapted layers by the names that their modules have in the engine before it packs them."""
        mapper = self.worker.get_model().hf_to_vllm_mapper.get_rename_mapper()
        return {mapper.map_name(name): layer for name, layer in adapted_layers(policy.model).items()}

    def _engine_adapters(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the engine has of the adapters, A and scaled B, by the names of layers before they are packed."""
        manager, found = self._manager, dict[str, tuple[Tensor, Tensor]]()
        for name, lora in manager.get_adapter(self.version).loras.items():
            if name not in manager.modules:
                continue
            packed = manager.packed_modules.get(name)
            names, downs, ups = (
                ([name], [lora.lora_a], [lora.lora_b])
                if packed is None
                else (packed, lora.lora_a, lora.lora_b)
            )
            found |= {
                one: (down, up) for one, down, up in zip(names, downs, ups, strict=True) if down is not None
            }
        return found
