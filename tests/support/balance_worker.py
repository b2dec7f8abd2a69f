"""Segments exchanged between the processes of torchrun: `-m tests.support.balance_worker OUT.json`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from accelerate.utils import gather_object

from grpo.groups import ScoredGroup
from grpo.learner.balance import balanced
from grpo.learner.launching import make_accelerator
from grpo.packing import pack, segments_of
from tests.support import tiny


def unequal_groups() -> list[ScoredGroup]:
    """Six groups about clips of their own, one three times as long as the others."""
    groups = []
    for index in range(6):
        clip = tiny.clip(num_frames=4, seed=index)
        lengths = [90, 80] if index == 2 else [20, 30 + index]
        scored = tiny.ragged_group(tiny.prompt(tiny.sample(f"s{index}"), clip), lengths, seed=index)
        rollouts = tuple(replace(r, counterfactuals={"blank": (r,)}) for r in scored.group.rollouts)
        groups.append(replace(scored, group=replace(scored.group, rollouts=rollouts)))
    return groups


def listening_addresses() -> list[str]:
    """The addresses, in hexadecimal as Linux prints them, that this process listens on; torch's store is left out."""
    own = {os.stat(fd).st_ino for fd in Path("/proc/self/fd").iterdir() if os.path.exists(fd)}
    tables = [Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    # The state 0A is LISTEN.
    sockets = [line[1].split(":") for line in lines if line[3] == "0A" and int(line[9]) in own]
    return [address for address, port in sockets if int(port, 16) != int(os.environ["MASTER_PORT"])]


def main(out: str) -> None:
    accelerator = make_accelerator()
    own = unequal_groups()[: 5 if dist.get_rank() == 0 else 0]
    own += unequal_groups()[5:] if dist.get_rank() == 1 else []
    segments = balanced(segments_of(own, tokens_per_row=1000, drop_flat=True, trained=True), accelerator)
    rows = pack(segments, tiny.family(), tokens_per_row=1000)
    found = {
        "ids": [prompt.sample.id for row in rows for prompt in row.prompts],
        "tokens": sum(len(row.input_ids_N) for row in rows),
        "targets": [row.target_T.tolist() for row in rows],
        "pixels": [
            int(prompt.clip.frames_FHWC.sum()) for row in rows for prompt in row.prompts if prompt.clip
        ],
    }
    found["listens"] = listening_addresses()
    processes = gather_object([found])
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(processes))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
