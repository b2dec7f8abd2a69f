"""Checks a run before it is started: `egogrpo doctor CONFIG.yaml ... key=value ... [--json]`.

Takes what the run will be started with and needs no GPU. It goes on where the run would stop: every bad record is
named with file and line, every clip's file is opened (--clips: some of them), and tokens, memory, caches and decoding
are worked out. Exit status 1 if the run would not start, or would lose samples on its way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import torch

from grpo.commands.examine import (
    Examined,
    Finding,
    alike,
    examine,
    read_set,
    repeated_questions,
    shared_ids,
    spread_clips,
    wordy_numbers,
)
from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.feed.planner import PromptPlan
from grpo.groups import Sample
from grpo.learner.launching import make_accelerator, quiet_libraries
from grpo.media.clip import MediaError
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.run.folder import RunDir
from grpo.startup.assembly import make_planner
from grpo.startup.checks import CHECKS, Data, Start, describe

GIB = 2**30
BYTES_TRAINED = {"adamw": 16, "adamw_8bit": 10}
"""Per parameter: fp32 weights, gradients and Adam's two moments."""

Plans = Sequence[tuple[Sample, PromptPlan]]


def main(argv: Sequence[str] | None = None) -> int:
    """Examine what the command line names; the exit status."""
    options = _parser().parse_intermixed_args(argv)
    quiet_libraries()
    try:
        config = load_config(options.configs)
        family = load_family(config.model.path)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(json.dumps({"would_run": False, "error": reason}) if options.json else f"error: {reason}")
        return 1
    report = examine_run(config, family, num_clips=options.clips, num_decoded=options.decode)
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0 if report["would_run"] else 1


def examine_run(
    config: Config, family: ModelFamily, *, num_clips: int | None = None, num_decoded: int = 8
) -> dict[str, Any]:
    """What a run with this config would meet, as plain data for `as_text` and JSON."""
    train = {f"data.train.{i}": read_set(dataset) for i, dataset in enumerate(config.data.train)}
    held_out = {f"data.eval.{i}": read_set(dataset) for i, dataset in enumerate(config.data.eval)}
    read = train | held_out
    sets = {key: samples for key, (samples, _) in read.items()}
    everything = [sample for samples in sets.values() for sample in samples]
    examined = examine(
        everything,
        make_planner(config, family),
        num_clips=num_clips,
        num_workers=len(os.sched_getaffinity(0)),
    )
    data = Data(
        train_sets=[samples for samples, _ in train.values()],
        held_out={
            dataset.label: samples
            for dataset, (samples, _) in zip(config.data.eval, held_out.values(), strict=True)
        },
    )
    with ExitStack() as opened:
        start = Start(
            config=config,
            run_dir=RunDir(config.run_dir),
            family=family,
            accelerator=make_accelerator(),
            opened=opened,
            read=lambda _: data,
            say=lambda _: None,
        )
        failed = failures(start)
    findings = [finding for _, found in read.values() for finding in found]
    findings += shared_ids(data.train_sets)
    findings += [Finding(kind="config", source=key, reason=reason) for key, reason in failed.items()]
    findings += examined.findings
    for samples in sets.values():
        findings += repeated_questions(samples) + wordy_numbers(samples)
    findings += alike(start.train, [*chain.from_iterable(data.held_out.values())])
    report: dict[str, Any] = {
        "sets": {key: describe(samples) for key, samples in sets.items()},
        "num_clips": len({sample.clip_source for sample in everything} - {None}),
    }
    if examined.plans and "model.lora" not in failed:
        num_ahead = _most_clips_ahead(config, map(len, data.held_out.values()))
        report |= _plan(config, start.outline, examined, report["num_clips"], num_ahead)
    if report.get("num_opened") and num_decoded:
        damaged, report["decoding"] = _decoding(config, family, examined.plans, num_decoded)
        findings += damaged
    report["findings"] = [asdict(finding) for finding in findings]
    report["would_run"] = not any(finding.is_fatal for finding in findings)
    return report


def failures(start: Start) -> dict[str, str]:
    """Why a run would stop at its start, by the key of the check that fails; records are examined elsewhere."""
    reasons: dict[str, str] = {}
    for check in CHECKS:
        if check.of_records or check.key in reasons:
            continue
        try:
            check.run(start)
        except (ValueError, OSError) as error:
            reasons[check.key] = str(error).splitlines()[0]
    return reasons


def _plan(
    config: Config, outline: Policy, examined: Examined, num_clips: int, num_ahead: int
) -> dict[str, Any]:
    plans = [plan for _, plan in examined.plans]
    clips = {sample.clip_source: plan.clip for sample, plan in examined.plans if plan.clip is not None}
    sizes = [clip.num_bytes for clip in clips.values()] or [0]
    family = outline.family
    patches, width = family.patches, family.feature_width
    model = memory_of(config, outline)
    bf16 = 0 if model["trains_vision"] else 2  # features are kept of a frozen tower alone
    features = [clip.num_tokens(patches) * width * bf16 for clip in clips.values()] or [0]
    rollout, optim = config.rollout, config.optim
    longest = max(plan.num_tokens for plan in plans)
    completions = optim.prompts_per_step * rollout.group_size * rollout.max_new_tokens
    return {
        "num_opened": len(clips),
        "tokens": {
            "prompt": _spread([plan.num_tokens for plan in plans]),
            "text": _spread([plan.num_text_tokens for plan in plans]),
            "vision": _spread([plan.num_vision_tokens for plan in plans]),
            "frames": _spread([clip.num_frames for clip in clips.values()]),
            "prompt_limit": rollout.max_prompt_tokens,
            "step_at_most": optim.prompts_per_step * longest + completions,
            "longest_row": max(longest + rollout.max_new_tokens, optim.tokens_per_row),
            "tokens_per_row": optim.tokens_per_row,
        },
        "cached": {
            "clip_mib": _spread([size / 2**20 for size in sizes]),
            "frames_gib": float(np.mean(sizes)) * num_clips / GIB,
            "features_gib": float(np.mean(features)) * num_clips / GIB,
            "ahead_gib": max(sizes) * num_ahead / GIB,
            "cache_gib": config.media.cache_gib,
            "cache_disk_gib": config.media.cache_disk_gib,
        },
        "model": model,
    }


def _most_clips_ahead(config: Config, eval_sizes: Iterable[int]) -> int:
    """Clips that a process holds beside those it has handed over, where it is the only one."""
    step, later = config.optim.prompts_per_step, config.media.prefetch_steps * config.optim.prompts_per_step
    evaluated = max(eval_sizes, default=0) if config.eval.every_steps else 0
    if config.eval.max_samples is not None:
        evaluated = min(evaluated, config.eval.max_samples)
    return later + max(step, min(2 * config.eval.batch_prompts, evaluated))


def memory_of(config: Config, policy: Policy) -> dict[str, float]:
    """What is known without activations, which come on top."""
    model = config.model
    text = policy.family.config.text_config
    head_size = text.hidden_size // text.num_attention_heads
    weights = [*policy.parameters()]
    num_trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    num_frozen = sum(weight.numel() for weight in weights) - num_trained
    language = [m for m in policy.model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    frozen_linear = [m.weight.numel() for m in language if not m.weight.requires_grad]
    num_4bit = sum(frozen_linear) if model.load_in_4bit else 0
    second_copy = config.loss.beta > 0 and not model.lora.is_on
    return {
        "num_trained": num_trained,
        "num_frozen": num_frozen,
        "trains_vision": policy.trains_vision,
        "trained_gib": num_trained * BYTES_TRAINED[config.optim.optimizer] / GIB,
        "frozen_gib": (num_frozen * (2 if model.lora.is_on else 4) - 1.5 * num_4bit) / GIB,
        "reference_gib": 4 * (num_trained + num_frozen) / GIB if second_copy else 0.0,
        "engine_bf16_gib": (num_trained + num_frozen) * 2 / GIB,
        "kv_bytes_per_token_bf16": 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size,
    }


def _decoding(
    config: Config, family: ModelFamily, plans: Plans, num_decoded: int
) -> tuple[list[Finding], dict[str, Any]]:
    """Clips that turn out damaged, how fast the run's own workers decode, and how long they need for a step."""
    some = spread_clips([sample for sample, plan in plans if plan.clip is not None], num_decoded)
    samples = {sample.clip_source: sample for sample in some if sample.clip_source is not None}
    workers = config.media.num_workers
    reader = ClipReader(settings=config.media, patches=family.patches)
    loader = ClipLoader(reader, cache_gib=0, num_workers=workers, timeout_s=config.media.timeout_s)
    damaged = []
    with closing(loader):
        with suppress(MediaError):
            loader.get(next(iter(samples)))  # the processes have started now
        begun_s = time.perf_counter()
        loader.prefetch(samples)
        for source, sample in samples.items():
            try:
                loader.get(source)
            except MediaError as error:
                reason = f"sample {sample.id}: {error}"
                damaged.append(Finding(kind="unreadable", source=sample.source, reason=reason))
        per_clip_s = (time.perf_counter() - begun_s) / len(samples)
    return damaged, {
        "num_decoded": len(samples),
        "num_workers": workers,
        "clips_per_s": 1 / per_clip_s,
        "prompts_per_step": config.optim.prompts_per_step,
        "step_s": per_clip_s * config.optim.prompts_per_step,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median, 95 % and most."""
    if not values:
        return {}
    low, middle, high, most = np.percentile(values, [0, 50, 95, 100])
    return {"min": float(low), "median": float(middle), "p95": float(high), "max": float(most)}


def as_text(report: dict[str, Any]) -> str:
    """The report as lines to read."""
    lines = [f"{key}: {text}" for key, text in report["sets"].items()]
    for is_fatal, title in (
        (True, "the run would stop at these or lose them"),
        (False, "odd, but no obstacle"),
    ):
        found = [finding for finding in report["findings"] if finding["is_fatal"] is is_fatal]
        if found:
            lines.append(f"{len(found)} found, {title}:")
        lines += [f"  {each['source']}: {each['kind']}: {each['reason']}" for each in found]
    if "tokens" in report:
        lines += [*_token_lines(report), *_memory_lines(report)]
    if "decoding" in report:
        lines.append(_decoding_line(report["decoding"]))
    return "\n".join([*lines, "this would run" if report["would_run"] else "this would NOT run as it is"])


def _token_lines(report: dict[str, Any]) -> list[str]:
    tokens = report["tokens"]
    lines = [
        f"{report['num_opened']} of {report['num_clips']} clips opened",
        *(f"{name}: {_line(tokens[key])}" for name, key in TOKEN_NAMES.items() if tokens[key]),
        f"a prompt may have {tokens['prompt_limit']} tokens; a step has at most {tokens['step_at_most']:,}, "
        f"in rows of {tokens['tokens_per_row']}",
    ]
    if tokens["longest_row"] > tokens["tokens_per_row"]:
        lines.append(
            f"  a prompt with one completion can make a row of {tokens['longest_row']}: optim.tokens_per_row is "
            "exceeded then, and so is the memory that fits it"
        )
    return lines


TOKEN_NAMES = {
    "tokens of a prompt": "prompt",
    "  of its text": "text",
    "  of its clip": "vision",
    "frames of a clip": "frames",
}


def _memory_lines(report: dict[str, Any]) -> list[str]:
    model, cached = report["model"], report["cached"]
    lines = [
        f"model: {model['num_trained'] / 1e6:.4g} M parameters train: {model['trained_gib']:.3g} GiB of fp32 weights, "
        "gradients and Adam's moments (ZeRO shares them out), and activations",
        f"  {model['num_frozen'] / 1e6:.4g} M are frozen: {model['frozen_gib']:.3g} GiB; "
        f"a second copy as the reference: {model['reference_gib']:.3g} GiB",
        f"engine: {model['engine_bf16_gib']:.3g} GiB of weights in bf16, "
        f"{model['kv_bytes_per_token_bf16'] / 1024:.3g} KiB per token in its cache",
        f"decoded frames: {_line(cached['clip_mib'])} MiB a clip; all clips {cached['frames_gib']:.3g} GiB, "
        f"{cached['features_gib']:.3g} GiB of features of a frozen tower",
        f"  in memory at most media.cache_gib={cached['cache_gib']:g}, and {cached['ahead_gib']:.3g} GiB decoded ahead "
        "(media.prefetch_steps, eval.batch_prompts; shared out over the processes)",
    ]
    needed_gib = cached["frames_gib"] + cached["features_gib"]
    lines += [
        f"  media.{key}={cached[key]:g} does not hold them all: that would take {needed_gib:.3g}"
        for key in ("cache_gib", "cache_disk_gib")
        if cached[key] < needed_gib
    ]
    return lines


def _decoding_line(decoding: dict[str, Any]) -> str:
    return (
        f"decoding: {decoding['clips_per_s']:.3g} clips/s with media.num_workers={decoding['num_workers']}; "
        f"a single process would wait for its clips if a step of {decoding['prompts_per_step']} new ones took less "
        f"than {decoding['step_s']:.2g} s"
    )


def _line(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']:.4g}"
    return "{min:.4g} to {max:.4g}, median {median:.4g}, 95 % up to {p95:.4g}".format(**spread)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="egogrpo doctor", description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG | key=value")
    parser.add_argument("--clips", type=int, metavar="N", help="open only N clips' files, spread evenly")
    parser.add_argument("--decode", type=int, metavar="N", default=8, help="clips to measure decoding with")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
