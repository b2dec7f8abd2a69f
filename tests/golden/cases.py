"""What the golden trace is made of: settings alone, nothing of the product.

Read `product.py` for what is computed from them, and `compare.py` for how close it has to come.
"""

from __future__ import annotations

from itertools import product
from typing import Any

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "gspo": {},
    "bnpo": {},
    "dapo": {"epsilon_high": 0.28},
    "dr_grpo": {"delta": 1.3},
    "cispo": {"epsilon_high": 1.1},
    "sapo": {},
}
"""Every loss type, with what it can't do without or what only some of them have."""

WITH: dict[str, dict[str, Any]] = {
    "alone": {"vllm_importance_sampling_correction": False},
    "kl": {"vllm_importance_sampling_correction": False, "beta": 0.1},
    "correction": {"vllm_importance_sampling_correction": True},
    "kl, correction": {"vllm_importance_sampling_correction": True, "beta": 0.1},
}

OPTIONS: dict[str, dict[str, Any]] = {
    "dapo, k1": {"type": "dapo", "beta": 0.1, "kl_estimator": "k1"},
    "dapo, k2": {"type": "dapo", "beta": 0.1, "kl_estimator": "k2", "use_bias_correction_kl": False},
    "dapo, token_mask": {"type": "dapo", "vllm_importance_sampling_mode": "token_mask"},
    "dapo, sequence_mask": {"type": "dapo", "vllm_importance_sampling_mode": "sequence_mask"},
    "dapo, sequence_truncate": {"type": "dapo", "vllm_importance_sampling_mode": "sequence_truncate"},
    "sapo, sequence": {"type": "sapo", "importance_sampling_level": "sequence"},
    "grpo, entropy": {"type": "grpo", "entropy_coef": 0.01, "top_entropy_quantile": 0.3},
}
"""Choices within a loss, each on one type."""

CORRECTION_BOUNDS = {"vllm_importance_sampling_clip_max": 1.8, "vllm_importance_sampling_clip_min": 0.5}
"""Tight enough that some of the stored completions lie beyond them."""

UPDATES: dict[str, dict[str, Any]] = {
    f"{kind}, {name}": {"type": kind, **LOSSES[kind], **settings, **CORRECTION_BOUNDS}
    for kind, (name, settings) in product(LOSSES, WITH.items())
} | {name: {**settings, **CORRECTION_BOUNDS} for name, settings in OPTIONS.items()}
"""`loss.*` of each case."""

OPTIM: dict[str, Any] = {"lr": 3e-5, "num_iterations": 3, "weight_decay": 0.01}
"""Three updates of one batch: from the second on, the ratios are not 1, and the losses differ."""

CLIPS: list[dict[str, Any] | None] = [
    {"num_frames": 16},
    {"num_frames": 64, "height_px": 112, "width_px": 112, "fps": 1.3},
    {"num_frames": 4, "height_px": 112, "width_px": 140, "fps": 0.7},
    {"num_frames": 16, "seed": 3},
    None,
    {"num_frames": 8, "height_px": 84, "width_px": 56, "fps": 2.9},
]
"""Of the batch's prompts: `tiny.clip`'s arguments."""

LONG_PROMPT = 1
"""Which of the batch's groups is in the packed rows alone: its 539 tokens would make each update twice as slow."""

FLAT_GROUP, ROLLOUT_WITHOUT_ADVANTAGE = 3, (5, 2)
"""What the batch has of special cases: (group, rollout)."""

TOKENS_PER_ROW = 260
"""So few that the batch takes several rows, and one group is split."""

REWARDS = [
    "rewards.brevity.weight=0.25",
    "rewards.brevity.args={target_tokens: 4}",
    "rewards.brevity.only_if=accuracy",
    "rewards.brevity.schedule=[[0,0],[10,1]]",
    "rewards.number.weight=0.5",
    "rewards.number.tasks=[number]",
    "rewards.refuses.fn=tests/golden/plugin.py:refuses",
    "rewards.refuses.weight=0.1",
    "rewards.refuses.clip=[0.0,0.5]",
]
"""Beside those of the demo: one that is gated, shortened by a schedule and by the completion's length, one that
abstains on choice questions, and one that raises on some completions."""

REWARDS_STEP = 4

COMPLETIONS: list[dict[str, Any]] = [
    {
        "sample": {"id": "choice", "answer": "B", "keyframes_s": [[2.0, 2.5]]},
        "texts": [
            "<think>x</think><keyframes>2.0</keyframes><answer>B</answer>",
            "<think>x</think><keyframes>5.0</keyframes><answer>B</answer>",
            "<think>x</think><keyframes>2.25</keyframes><answer>A</answer>",
            "<answer>B</answer>",
            "refuse <answer>B</answer>",
        ],
        "lengths": [3, 5, 4, 2, 6],
    },
    {
        "sample": {"id": "number", "task": "number", "answer": "12", "options": []},
        "texts": [
            "<think>a</think><keyframes></keyframes><answer>12</answer>",
            "<think>a</think><answer>13</answer>",
            "no answer at all",
            "<think>a</think><answer>12.0</answer>",
            "<answer>twelve</answer>",
        ],
        "lengths": [4, 4, 9, 7, 1],
    },
    {
        "sample": {"id": "flat", "answer": "A", "keyframes_s": [[0.0, 1.0]]},
        "texts": ["nothing"] * 5,
        "lengths": [1, 1, 1, 1, 1],
    },
]

CUT_OFF = (0, 3)
"""A completion that hit the token limit: (group, rollout)."""

ADVANTAGES: dict[str, dict[str, Any]] = {
    f"{scale}, {baseline}": {"scale": scale, "baseline": baseline}
    for scale, baseline in product(("group_std", "batch", "none"), ("mean", "loo"))
} | {
    "normalize_then_sum": {"scale": "group_std", "normalised": True},
    "masked": {"scale": "group_std", "mask_truncated": True},
}

DEMO = [
    "seed=3",
    "num_steps=12",
    "rollout.engine=transformers",
    "rollout.group_size=4",
    "rollout.max_new_tokens=13",
    "loss.mask_truncated_completions=true",
    "optim.prompts_per_step=3",
    "optim.tokens_per_row=200",
    "eval.every_steps=6",
    "checkpoint.every_steps=0",
    "checkpoint.final_dtype=float32",
    "media.num_workers=1",
    "rewards_workers.max_workers=2",
]
"""What the stored run sets beside configs/demo.yaml."""

DEMO_CLIPS = {"num_train": 8, "num_heldout": 3, "seed": 1}
