"""The readers of data sets: one small file for each format, and here the table of them all. Read `jsonl.py` first.

`conversations.py` is what the formats that are made of turns share; what all share is in `../records.py` and
`../fields.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from grpo.data.errors import NoSuchFile
from grpo.data.fields import Record, has
from grpo.data.readers.charades_sta import read_charades_sta
from grpo.data.readers.ego4d_nlq import read_ego4d_nlq
from grpo.data.readers.egocross import read_egocross, read_egocross_open
from grpo.data.readers.egolife import read_egolife
from grpo.data.readers.egoplan import read_egoplan, read_egoplan_frame
from grpo.data.readers.egoschema import read_egoschema
from grpo.data.readers.egotaskqa import read_egotaskqa
from grpo.data.readers.egotempo import read_egotempo
from grpo.data.readers.egothink import read_egothink
from grpo.data.readers.hd_epic import read_hd_epic
from grpo.data.readers.hourvideo import read_hourvideo
from grpo.data.readers.jsonl import read_jsonl
from grpo.data.readers.llava import read_llava
from grpo.data.readers.nextqa import read_nextqa
from grpo.data.readers.openeqa import read_openeqa
from grpo.data.readers.other_trainers import read_easyr1, read_swift, read_trl, read_verl
from grpo.data.readers.qaego4d import read_qaego4d
from grpo.data.readers.sharegpt import read_sharegpt
from grpo.data.readers.video_mme import read_video_mme
from grpo.data.readers.video_r1 import read_video_r1
from grpo.data.readers.vsi_bench import read_vsi_bench
from grpo.data.records import Reader

DEMO_FOLDER = Path("runs/demo_clips")
"""The folder that the demo's configs name, and the only one that clips are rendered into unasked."""


def _render(file: Path) -> None:
    """Render the demo's clips (512 to train on, 200 held out) on first use, if the file is one of the demo's own."""
    if file.resolve() in [(DEMO_FOLDER / name).resolve() for name in ("train.jsonl", "heldout.jsonl")]:
        # Late: only the demo renders.
        from grpo.demo.clips import write_dataset

        write_dataset(file.parent, num_train=512, num_heldout=200, seed=0)
    elif not file.exists():
        others = "python -m grpo.demo.clips FOLDER renders them elsewhere"
        raise NoSuchFile(str(file), f"no such dataset file; the demo's clips are in {DEMO_FOLDER}/, {others}")


read_synthetic = replace(read_jsonl, beside=_render)

FORMATS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "huggingface": read_jsonl,
    "synthetic": read_synthetic,
    "ego4d_nlq": read_ego4d_nlq,
    "egocross": read_egocross,
    "egocross_open": read_egocross_open,
    "egolife": read_egolife,
    "egoplan": read_egoplan,
    "egoplan_frame": read_egoplan_frame,
    "egoschema": read_egoschema,
    "egotaskqa": read_egotaskqa,
    "egotempo": read_egotempo,
    "egothink": read_egothink,
    "hd_epic": read_hd_epic,
    "hourvideo": read_hourvideo,
    "nextqa": read_nextqa,
    "openeqa": read_openeqa,
    "qaego4d": read_qaego4d,
    "charades_sta": read_charades_sta,
    "video_mme": read_video_mme,
    "video_r1": read_video_r1,
    "vsi_bench": read_vsi_bench,
    "easyr1": read_easyr1,
    "verl": read_verl,
    "trl": read_trl,
    "swift": read_swift,
    "llava": read_llava,
    "sharegpt": read_sharegpt,
}
"""The formats in the order in which they are recognised: the first that a file is like is its format."""

NOT_QUESTIONS: dict[str, Callable[[Record], bool]] = {
    "ShareGPT4Video's captions": has("captions", "keyframe"),
    "pairs of a preferred and a rejected answer": has("chosen", "rejected"),
}
"""Formats whose records have no question with a right answer."""
