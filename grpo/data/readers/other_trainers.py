"""Data sets as other trainers take them: ms-swift, EasyR1, verl and TRL.

A record is a question (a text, or the turns of a conversation), its media, and a column with the answer:

    ms-swift  {"messages": [...], "videos": ["a.mp4"], "solution": "<answer>B</answer>"}, or "query" and "response"
    EasyR1    {"problem": "<video>...", "videos": ["a.mp4"], "answer": "B"}, and "options" as EasyVideoR1 adds them
    verl      {"prompt": [...], "videos": [{"video": "a.mp4"}], "reward_model": {"ground_truth": "B"}}
    TRL       {"prompt": [...] or "...", "image": "a.png", "solution": "B"}, or "completion"

Options that a question lists are taken out of it, and an answer that names one of them is a choice. An answer that is a
number is one for `accuracy` too; any other is open. Several images are pictures, or the frames of a clip, as in
`sharegpt.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from grpo.data.fields import Has, Record, has
from grpo.data.readers.conversations import Layout, samples_of
from grpo.data.records import Place, Reader
from grpo.groups import Sample

SOLUTIONS = ("solution", "answer", "ground_truth")
SWIFT = Layout(turns=("messages", "query"), answers=(*SOLUTIONS, "response"))
EASYR1 = Layout(turns=("problem",), answers=("answer", "solution"))
VERL = Layout(turns=("prompt",), answers=("reward_model.ground_truth",))
TRL = Layout(turns=("prompt",), answers=(*SOLUTIONS, "completion"))


def translate(record: Record, place: Place, *, layout: Layout) -> Iterator[Sample]:
    if record.get("history"):
        raise ValueError("'history' is not supported: a record is one question")
    yield from samples_of(record, place, layout)


IS_SWIFT = Has((*(("messages", key) for key in SOLUTIONS), ("query", "response"), ("query", "solution")))
IS_EASYR1 = Has((("problem", "answer"), ("problem", "solution")))
IS_TRL = Has(tuple(("prompt", key) for key in TRL.answers))

read_swift = Reader(translate=partial(translate, layout=SWIFT), is_like=IS_SWIFT)
read_easyr1 = Reader(translate=partial(translate, layout=EASYR1), is_like=IS_EASYR1)
read_verl = Reader(translate=partial(translate, layout=VERL), is_like=has("prompt", "reward_model"))
read_trl = Reader(translate=partial(translate, layout=TRL), is_like=IS_TRL)
