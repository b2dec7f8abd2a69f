"""What needs a GPU, in one command and one table:

    python -m tests.gpu                        # one GPU with 80 GB, no vLLM, nothing downloaded
    python -m tests.gpu --device cpu --tiny    # the same code on a laptop; its figures mean nothing

Against one forward and backward per completion: log-probs and gradients in bf16 with each attention kernel, then
time, memory and model FLOPs utilisation of a random model in the shape of Qwen2.5-VL-3B at prompts of 2k, 8k and 16k.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, __version__

from grpo.packing import PackedRow
from grpo.policy.attention import implementation
from grpo.policy.attention_backends import why_no_flash_attn
from grpo.policy.model import Policy
from tests.benchmarks.bench_learner import bench_group, bench_policy, rows_of
from tests.support.shapes import family_3b

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}
"""Dense bf16, as the makers state it; an H100 on PCIe has 756."""

HEADER = ("what", "tokens", "time, s", "peak, GiB", "MFU", "log-probs off by", "gradient off by")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a model of 6 small layers and short prompts")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: try --device cpu --tiny")
    device = torch.device(arguments.device)
    sizes = ((200, 4, 16),) if arguments.tiny else ((2048, 8, 128), (8192, 8, 128), (16384, 8, 128))
    policy = bench_policy() if arguments.tiny else policy_3b(device)
    policy.to(device).train()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: figures are to be taken on a GPU"
    print(f"{name}; torch {torch.__version__}, transformers {__version__}\n")
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    for row in [*agreement(policy, device, sizes[0]), *speed(policy, device, sizes)]:
        print_row(row)


def print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def policy_3b(device: torch.device) -> Policy:
    """Random weights in fp32, as they train, in the shape that Qwen2.5-VL-3B-Instruct's config states."""
    family = family_3b()
    torch.manual_seed(0)
    with device:
        model = Qwen2_5_VLForConditionalGeneration(family.config)
    return Policy(model, family, temperature=1.0, gradient_checkpointing=True)


def kernels(device: torch.device) -> list[str]:
    """Those that have a backward pass here."""
    if device.type == "cpu":
        return ["sdpa", "split"]
    return ["sdpa", "split", "flex", *(["flash_attn"] if why_no_flash_attn() is None else [])]


def agreement(policy: Policy, device: torch.device, size: tuple[int, int, int]) -> Iterator[list[str]]:
    """Each kernel in bf16 against plain rows, one per completion, in bf16 and in fp32."""
    group = bench_group(policy, *size)
    plain, shared = (rows_of(policy, group, shared=flag) for flag in (False, True))
    exact = scores(policy, plain, device, torch.float32)
    # Rounding alone: the others should be no worse.
    yield ["plain, bf16 to fp32", tokens(plain), "", "", "", *off(scores(policy, plain, device), exact)]
    for kernel in kernels(device):
        policy.model.model.language_model.config._attn_implementation = implementation(kernel)
        yield [
            f"shared, {kernel} to fp32",
            tokens(shared),
            "",
            "",
            "",
            *off(scores(policy, shared, device), exact),
        ]
    policy.model.model.language_model.config._attn_implementation = implementation("auto")


def scores(
    policy: Policy, rows: Sequence[PackedRow], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Log-probs in an order that doesn't depend on the packing, and a part of the gradient: that of the norms."""
    policy.zero_grad()
    found: list[tuple[tuple[int, ...], Tensor]] = []
    for row in rows:
        row = row.to(device)
        with autocast(device, dtype):
            logps_T = policy(row).logps_T
        (logps_T * row.advantages_T).sum().backward()
        for part in row.completion_T.unique():
            mine = row.completion_T == part
            found.append((tuple(row.target_T[mine].tolist()), logps_T.detach()[mine].cpu()))
    norms = [
        w.grad.flatten().cpu() for n, w in policy.named_parameters() if "norm" in n and w.grad is not None
    ]
    policy.zero_grad()
    return torch.cat([logps for _, logps in sorted(found, key=lambda pair: pair[0])]), torch.cat(norms)


def off(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> list[str]:
    gradient = (found[1] - exact[1]).norm() / exact[1].norm()
    return [f"{float((found[0] - exact[0]).abs().max()):.2g}", f"{float(gradient):.2g}"]


def speed(policy: Policy, device: torch.device, sizes: Sequence[tuple[int, int, int]]) -> Iterator[list[str]]:
    for prompt, group_size, completion in sizes:
        group = bench_group(policy, prompt, group_size, completion)
        label = f"{prompt} + {group_size} x {completion}"
        for shared in (False, True):
            rows = rows_of(policy, group, shared=shared)
            used_s, peak_gib = measured(policy, rows, device)
            share = "shared" if shared else "one per completion"
            yield [
                f"{label}, {share}",
                tokens(rows),
                f"{used_s:.3f}",
                peak_gib,
                mfu(policy, rows, used_s),
                "",
                "",
            ]


def measured(policy: Policy, rows: Sequence[PackedRow], device: torch.device) -> tuple[float, str]:
    """Seconds of the second pass over the rows, and the peak memory of both."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    used_s = 0.0
    for _ in range(2):
        start = perf_counter()
        for row in rows:
            with autocast(device, torch.bfloat16):
                logps_T = policy(row.to(device)).logps_T
            (logps_T * row.advantages_T.to(device)).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        used_s = perf_counter() - start
        policy.zero_grad()
    return used_s, f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "-"


def mfu(policy: Policy, rows: Sequence[PackedRow], used_s: float) -> str:
    """Share of the GPU's peak: 6 FLOPs per weight and token, and attention; recomputed passes don't count."""
    name = torch.cuda.get_device_name() if policy.device.type == "cuda" else ""
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    return "-" if peak is None else f"{num_flops(policy, rows) / used_s / peak / 1e12:.0%}"


def num_flops(policy: Policy, rows: Sequence[PackedRow]) -> float:
    """Of the forward and backward passes of some rows."""
    model = policy.model.model
    embedding = model.get_input_embeddings().weight
    per_token = sum(w.numel() for w in model.language_model.parameters()) - embedding.numel()
    per_patch = sum(w.numel() for w in model.visual.parameters())
    total = attention_flops(policy, rows)
    for row in rows:
        merge = policy.family.config.vision_config.spatial_merge_size**2
        total += 6 * per_token * len(row.input_ids_N) + 6 * per_patch * merge * len(row.vision_index_M)
        total += 6 * embedding.numel() * len(row.target_T)
    return total


def attention_flops(policy: Policy, rows: Sequence[PackedRow], *, is_padded: bool = False) -> float:
    """The language model's attention alone. is_padded: with the rectangles that PyTorch's kernels compute."""
    text: Any = policy.family.config.text_config
    pairs = sum(pair for row in rows for pair in num_pairs(row, is_padded=is_padded))
    return 12 * text.num_hidden_layers * text.hidden_size * pairs


def num_pairs(row: PackedRow, *, is_padded: bool = False) -> Iterator[float]:
    """Tokens that tokens look at, prompt by prompt and completion by completion."""
    lengths = iter(row.completion_T.bincount().tolist())
    for block in row.layout.blocks:
        num_prompts, length = block.prompt_PS.shape
        yield num_prompts * length * (length + 1) / 2
        _, group_size, longest = block.completion_PGL.shape
        for own in islice(lengths, num_prompts * group_size):
            own = longest if is_padded else own
            yield float(own * length + own * (own + 1) / 2)


def tokens(rows: Sequence[PackedRow]) -> str:
    return str(sum(len(row.input_ids_N) for row in rows))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


if __name__ == "__main__":
    main(sys.argv[1:])
