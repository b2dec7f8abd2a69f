"""The doctor's report as lines to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOKEN_NAMES = {
    "tokens of a prompt": "prompt",
    "  of its text": "text",
    "  of its clip": "vision",
    "frames of a clip": "frames",
}


WRONG = ("record", "too short")
"""The kinds of findings that are a mistake even where no run stops at it: an answer that nothing is equal to, or a time
behind a video's end."""


def as_text(report: dict[str, Any]) -> str:
    """The report as lines to read."""
    lines = [f"{key}: {text}" for key, text in report["sets"].items()]
    for title, found in _sorted_out(report["findings"]).items():
        width = max((len(each["kind"]) for each in found), default=0)
        lines += [f"{len(found)} found, {title}:"] if found else []
        lines += [f"  {each['kind']:<{width}}  {each['source']}: {each['reason']}" for each in found]
    if "tokens" in report:
        lines += ["the first prompt:", *(f"  | {line}" for line in report["prompt"].splitlines())]
        lines += [*_token_lines(report), *_memory_lines(report), *_fit_lines(report["memory"])]
    if "decoding" in report:
        lines.append(_decoding_line(report["decoding"]))
    if "time" in report:
        lines.append(
            "time, if completions are as long as they may be: {step_s:.3g} s a step, {eval_s:.3g} s an evaluation, "
            "{run_h:.3g} h the run".format(**report["time"])
        )
    return "\n".join([*lines, "this would run" if report["would_run"] else "this would NOT run as it is"])


def _sorted_out(findings: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The findings by what they do to a run."""
    stops = [each for each in findings if each["is_fatal"]]
    others = [each for each in findings if not each["is_fatal"]]
    return {
        "the run would stop at these or lose them": stops,
        "wrong, though no run stops at it": [each for each in others if each["kind"] in WRONG],
        "odd, but no obstacle": [each for each in others if each["kind"] not in WRONG],
    }


def _token_lines(report: dict[str, Any]) -> list[str]:
    tokens = report["tokens"]
    lines = [
        f"{report['num_opened']} of {report['num_clips']} clips opened",
        *(f"{name}: {_line(tokens[key])}" for name, key in TOKEN_NAMES.items() if tokens[key]),
        f"a prompt may have {tokens['prompt_limit']} tokens; a step has at most {tokens['step_at_most']:,}, "
        f"in rows of {tokens['tokens_per_row']}",
    ]
    if (shared_by := tokens["processes_per_row"]) > 1:
        lines[-1] += f", each computed by {shared_by} processes"
    if tokens["longest_row"] > tokens["tokens_per_row"]:
        lines.append(
            f"  a prompt with one completion can make a row of {tokens['longest_row']}: optim.tokens_per_row is "
            "exceeded then, and so is the memory that fits it"
        )
    return lines


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


def _fit_lines(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each launch file and size of GPU."""
    lines = ["memory on each GPU, as far as shapes tell (launch/accelerate):"]
    if engine := next((each["engine_gib"] for each in verdicts if each["engine_gib"]), {}):
        parts = ", ".join(f"{part} {gib:.1f}" for part, gib in engine.items())
        lines.append(f"  vLLM needs {sum(engine.values()):.1f} GiB of it (rollout.gpu_memory_frac): {parts}")
    for each in verdicts:
        said = "fits" if each["fits"] else f"does not fit, change: {each['change']}"
        lines.append(f"  {each['launch']}.yaml on {each['gpu_gb']} GB: {each['needs_gib']:.0f} GiB, {said}")
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
