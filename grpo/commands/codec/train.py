"""A codec trained on streams, with its figures and their picture in its folder: `egogrpo codec train`."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf

from grpo.codec.codec import SPEC_FILE, Codec, save_codec
from grpo.codec.collection import find_streams, read_streams
from grpo.codec.settings import CodecConfig, contradictions
from grpo.codec.spec import NAME
from grpo.codec.training import train_codec
from grpo.config.load import load_settings, to_layer
from grpo.run.curves import keys, line
from rewards.scoring.loading import find_function

METRICS_FILE, PICTURE_FILE = "metrics.jsonl", "curves.png"
ERROR, USED, PERPLEXITY = "held_out/error/", "codes/used_frac/", "codes/perplexity/"
MOST_DRAWN = 8
"""The levels whose codes are drawn: bins have one for each channel."""


def train(argv: Sequence[str]) -> Codec:
    """The codec that files of settings and `key=value` describe, saved in its folder; each epoch's figures are printed.

    ValueError or OSError for settings, streams or a folder that can't be used, before anything is trained.
    """
    config = load_settings(argv, CodecConfig, contradictions)
    folder = Path(config.out)
    if not NAME.fullmatch(config.name):
        raise ValueError(f"config: name={config.name}: a codec's name is lower-case letters and digits")
    if (folder / SPEC_FILE).exists():
        raise ValueError(f"config: out={config.out} has a codec already")
    positions = None
    if config.positions_fn is not None:
        positions = find_function(config.positions_fn, key="config: positions_fn")
    streams = read_streams(
        find_streams(config.streams), min_steps=1 if config.kind == "bins" else config.window_steps
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(to_layer(config)), encoding="utf-8")
    rows: list[Mapping[str, float]] = []
    with (folder / METRICS_FILE).open("w", encoding="utf-8") as file:

        def report(metrics: Mapping[str, float]) -> None:
            rows.append(metrics)
            print(json.dumps(metrics), file=file, flush=True)
            print(described(metrics, config.num_epochs), flush=True)

        codec = train_codec(config, streams, report, positions)
    draw(rows, folder / PICTURE_FILE)
    return save_codec(codec, folder)


def described(metrics: Mapping[str, float], num_epochs: int) -> str:
    """An epoch's figures as a line: the held-out error in the streams' units, and the use of codes."""
    parts = [f"epoch {metrics['epoch']:.0f}/{num_epochs}"]
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4g}")
    errors = [f"{metrics[key]:.4g} {key.removeprefix(ERROR)}" for key in metrics if key.startswith(ERROR)]
    if errors:
        lost = metrics.get("held_out/lost_frac", 0.0)
        parts.append(f"held-out error {', '.join(errors)} ({lost:.1%} of the variance)")
        used, perplexity = ([v for k, v in metrics.items() if k.startswith(p)] for p in (USED, PERPLEXITY))
        parts.append(f"codes used {min(used):.0%} to {max(used):.0%} of a level's")
        parts.append(f"perplexity {min(perplexity):.0f} to {max(perplexity):.0f}")
    else:
        parts.append("without codes yet")
    return "; ".join(parts)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw held-out errors and losses, and the use of codes over epochs."""
    rows = [{"step": row["epoch"], **row} for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), constrained_layout=True)
    for key in [*keys(rows, prefix="held_out/", suffix=""), *keys(rows, prefix="train/", suffix="")]:
        is_held_out = key.startswith("held_out/")
        line(
            left,
            rows,
            key,
            label=_label(key),
            style="-" if is_held_out else ":",
            marker="o" if is_held_out else "",
        )
    left.set(title="Held-out errors in their units, and losses of training", xlabel="epoch", yscale="log")
    levels = range(MOST_DRAWN)
    for key in (
        f"{name}{level}" for name in (USED, PERPLEXITY) for level in levels if f"{name}{level}" in rows[-1]
    ):
        line(right, rows, key, label=_label(key), marker="o")
    right.set(title="Codes of each level: share used, perplexity", xlabel="epoch", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    del figure, axes, left, right
    gc.collect()


def _label(key: str) -> str:
    return key.removeprefix("held_out/").removeprefix("codes/").replace("error/", "error, ")
