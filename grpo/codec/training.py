"""The training of codecs (`train_codec`).

The loss has a VQ-VAE's terms as EgoLM's (arXiv 2409.18127): values, velocities, positions and commitment. Codebooks
follow the latent vectors as moving averages, and dead codes are reset, both by vector-quantize-pytorch. Before that,
encoder and decoder learn for some epochs without codes, so that k-means starts the codebooks from vectors that mean
something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec
from grpo.codec.collection import parted, spec_of, varies
from grpo.codec.measures import code_use, held_out_errors
from grpo.codec.network import Network, Shape, Vectors
from grpo.codec.settings import CodecConfig
from grpo.codec.spec import CodecSpec
from grpo.codec.streams import Stream

Positions = Callable[[Tensor], Tensor]
"""Positions of values in their units (B, T, C), differentiable."""
Metrics = Mapping[str, float]

MOST_FIRST_VECTORS = 16384
"""Latent vectors that codebooks are started from; k-means has a row of all codes for each."""
WARMUP_FRAC = 0.05
BETA = 0.1
"""The size, of standardised values, above which an error counts linearly, as it does in a mean distance."""


def train_codec(
    config: CodecConfig,
    streams: Sequence[Stream],
    report: Callable[[Metrics], None],
    positions: Positions | None = None,
) -> Codec:
    """Train a codec on streams of one kind; the same seed gives the same codec on a CPU.

    report: gets the figures of each epoch. Bins have a single one.
    """
    kept, held_out = parted(streams, config.held_out_frac, config.seed)
    if config.kind == "bins":
        spec, bins = fit_bins(config.name, kept, codebook_size=config.codebook_size, coverage=config.coverage)
        codec = Codec(spec, bins)
        use = code_use(np.concatenate([codec.encode(stream) for stream in kept]), config.codebook_size)
        report({"epoch": 1} | use | held_out_errors(codec, held_out))
        return codec
    # The library draws from torch's global generator, which goes on for the caller as if nothing had been drawn.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        trainer = Trainer(config, kept, positions)
        for epoch in range(1, config.num_epochs + 1):
            has_codes = epoch > config.num_warmup_epochs
            if epoch == config.num_warmup_epochs + 1:
                trainer.start_codebooks()
            metrics = trainer.epoch(has_codes)
            codec = trainer.codec()
            report({"epoch": epoch} | metrics | (held_out_errors(codec, held_out) if has_codes else {}))
    return codec


def schedule(optimizer: Optimizer, lr: float, num_updates: int) -> LRScheduler:
    """The learning rate of each update: a rise to `lr`, unless that would be one update or less, and a cosine to 0."""
    if WARMUP_FRAC * num_updates <= 1:
        return CosineAnnealingLR(optimizer, T_max=num_updates)
    return OneCycleLR(
        optimizer, max_lr=lr, total_steps=num_updates, pct_start=WARMUP_FRAC, cycle_momentum=False
    )


class Trainer:
    """A network in training with its codebooks, optimizer and data."""

    def __init__(self, config: CodecConfig, streams: Sequence[Stream], positions: Positions | None) -> None:
        self.config, self.positions = config, positions
        self.weights = {"values": 1.0, **asdict(config.terms)}
        self.device = _device(config.device)
        levels = 1 if config.kind == "plain" else config.levels
        self.spec = spec_of(
            config.name,
            config.kind,
            streams[0],
            levels=levels,
            codebook_size=config.codebook_size,
            downsampling=config.downsampling,
        )
        self.shape = Shape(width=config.width, depth=config.depth, code_dim=config.code_dim)
        self.mean_C, self.scale_C = statistics(streams)
        self.network = Network(self.spec, self.shape).to(self.device)
        self.quantiser = _quantiser(config, self.spec).to(self.device)
        self.standard = [_standardised(each, self.mean_C, self.scale_C) for each in streams]
        self.draw = np.random.default_rng(config.seed)
        # Codebooks have no gradient: they are moving averages.
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.lr, weight_decay=0.0)
        num_updates = config.num_epochs * math.ceil(self._num_windows() / config.batch_size)
        self.schedule = schedule(self.optimizer, config.lr, num_updates)

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Start codebooks by k-means of latent vectors, several for each code, from more windows than a batch has."""
        per_window = self.config.window_steps // self.spec.downsampling
        num_vectors = min(4 * self.spec.codebook_size, MOST_FIRST_VECTORS)
        windows_BTC = self._windows()[: math.ceil(num_vectors / per_window)]
        self.quantiser.train()(self.network.latents(windows_BTC.to(self.device)))

    def epoch(self, has_codes: bool) -> dict[str, float]:
        """Train on windows of all streams once; the mean of the loss's terms, and the use of codes if there are any."""
        sums: dict[str, float] = {}
        codes: list[np.ndarray] = []
        batches = self._windows().split(self.config.batch_size)
        for windows_BTC in batches:
            terms, codes_NQ = self._update(windows_BTC.to(self.device), has_codes)
            codes.append(codes_NQ)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / len(batches)
        if not math.isfinite(sums["loss"]):
            raise ValueError(
                f"training diverged: its loss is {sums['loss']}; try a lower lr than {self.config.lr}"
            )
        used = code_use(np.concatenate(codes), self.spec.codebook_size) if has_codes else {}
        return {f"train/{name}": mean for name, mean in sums.items()} | used

    def codec(self) -> Codec:
        """The codec as it is now, on the CPU and with weights of its own."""
        network = Network(self.spec, self.shape)
        state = {name: tensor.cpu().clone() for name, tensor in self.network.state_dict().items()}
        state["codebooks_QVD"] = self.quantiser.codebooks.flatten(0, 1).cpu().clone()
        network.load_state_dict(state)
        vectors = Vectors(network=network.eval(), shape=self.shape, mean_C=self.mean_C, scale_C=self.scale_C)
        return Codec(self.spec, vectors)

    def _update(self, given_BTC: Tensor, has_codes: bool) -> tuple[dict[str, Tensor], np.ndarray]:
        latents_BKD = self.network.latents(given_BTC)
        codes_NQ, commitment = np.zeros((0, self.spec.levels), dtype=np.int64), {}
        if has_codes:
            latents_BKD, codes_GBKL, commitments = self.quantiser(latents_BKD)
            # Groups of product quantisation and levels of residual one are the codec's levels alike.
            codes_NQ = codes_GBKL.permute(1, 2, 0, 3).reshape(-1, self.spec.levels).cpu().numpy()
            commitment = {"commitment": commitments.sum()}
        positions = None if self.positions is None else self._positions
        terms = loss_terms(self.network.values(latents_BKD), given_BTC, positions) | commitment
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.detach()} | terms, codes_NQ

    def _positions(self, standard_BTC: Tensor) -> Tensor:
        assert self.positions is not None
        mean_C, scale_C = (torch.from_numpy(each).to(standard_BTC) for each in (self.mean_C, self.scale_C))
        return self.positions(standard_BTC * scale_C + mean_C)

    def _num_windows(self) -> int:
        return sum(len(each) // self.config.window_steps for each in self.standard)

    def _windows(self) -> Tensor:
        """As many windows (B, T, C) as fit into the streams, from random places, in random order."""
        steps = self.config.window_steps
        windows = [
            standard_TC[start : start + steps]
            for standard_TC in self.standard
            for start in self.draw.integers(len(standard_TC) - steps + 1, size=len(standard_TC) // steps)
        ]
        order = self.draw.permutation(len(windows))
        return torch.stack([windows[index] for index in order])


def loss_terms(made_BTC: Tensor, given_BTC: Tensor, positions: Positions | None) -> dict[str, Tensor]:
    """The terms of reconstruction, smooth L1 with `BETA`, of standardised values and of the positions made of them."""
    pairs = {
        "values": (made_BTC, given_BTC),
        "velocity": (made_BTC.diff(dim=1), given_BTC.diff(dim=1)),
    }
    if positions is not None:
        pairs["positions"] = positions(made_BTC), positions(given_BTC)
    return {name: smooth_l1_loss(made, given, beta=BETA) for name, (made, given) in pairs.items()}


def _quantiser(config: CodecConfig, spec: CodecSpec) -> Any:
    """The library's quantiser: groups of one level for a product, one group of all levels otherwise."""
    from vector_quantize_pytorch import GroupedResidualVQ

    groups, levels = (spec.levels, 1) if spec.kind == "product" else (1, spec.levels)
    even_use = config.batch_size * config.window_steps / spec.downsampling / spec.codebook_size
    return GroupedResidualVQ(
        dim=config.code_dim * groups,
        groups=groups,
        num_quantizers=levels,
        codebook_size=spec.codebook_size,
        decay=config.ema_decay,
        kmeans_init=True,
        # Its unit is codes per batch, so that the library's usual 2 would reset most codes of a large codebook always.
        threshold_ema_dead_code=config.dead_frac * even_use,
        rotation_trick=False,
    )


def statistics(streams: Sequence[Stream]) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean, and its unit's scale: the deviation of the unit's channels together, 1 if all are constant.

    An error of a millimetre then weighs the same in a joint that hardly moves as in a hand.
    """
    values_NC = np.concatenate([stream.values_TC for stream in streams]).astype(np.float64)
    units, scale_C = np.array(streams[0].units), np.ones(values_NC.shape[1])
    for unit in np.unique(units[varies(values_NC, streams[0].units)]):
        scale_C[units == unit] = math.sqrt(values_NC[:, units == unit].var(axis=0).mean())
    return values_NC.mean(axis=0), scale_C


def _standardised(stream: Stream, mean_C: np.ndarray, scale_C: np.ndarray) -> Tensor:
    return torch.from_numpy(((stream.values_TC - mean_C) / scale_C).astype(np.float32))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {error}".splitlines()[0]) from error
