"""A minimal file of each data set that has a reader, hand-made in its published form, with the media it names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from grpo.groups import Sample
from tests.support.videos import write_video

Record = dict[str, Any]

CLIP_UID = "0a1b2c3d-0000-4000-8000-000000000001"

VIDEO_R1: Record = {
    "problem_id": 2,
    "problem": "What does the hand take?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. a cup", "B. a knife", "C. a plate"],
    "solution": "<answer>B</answer>",
    "path": "./STAR/one.mp4",
    "data_source": "STAR",
}
LLAVA: Record = {
    "id": 0,
    "video": "clips/one.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhere did I put the lid?"},
        {"from": "gpt", "value": "On the table."},
    ],
}
SHAREGPT: Record = {
    "messages": [
        {"role": "user", "content": "<video>What is done?\nA) cutting\nB) washing\nC) peeling"},
        {"role": "assistant", "content": "C"},
    ],
    "videos": ["clips/one.mp4"],
}
EGOSCHEMA: Record = {
    "q_uid": "q-one",
    "google_drive_id": "1x",
    "question": "What is the overall goal?",
    **{f"option {number}": f"Goal {number}." for number in range(5)},
}
EGOPLAN: Record = {
    "sample_id": 115,
    "video_source": "EpicKitchens",
    "video_id": "P01_13",
    "task_goal": "make tea",
    "question": "What action should I take next in order to make tea?",
    "choice_a": "open tap",
    "choice_b": "take cup",
    "choice_c": "close tap",
    "choice_d": "take spoon",
    "golden_choice_idx": "C",
    "answer": "close tap",
    "current_observation_frame": 900,
    "task_progress_metadata": [
        {"narration_text": "take kettle", "start_frame": 120, "stop_frame": 240},
        {"narration_text": "fill kettle", "start_frame": 300, "stop_frame": 930},
        {"narration_text": "close tap", "start_frame": 900, "stop_frame": 960},
    ],
}
EGOCROSS: Record = {
    "id": 7,
    "dataset": "EgoPet",
    "primary_category": "Identification",
    "question_type": "animal identification",
    "question_text": "What animal wears the camera?",
    "options": ["A: Cat", "B: Dog", "C: Turtle", "D: Cat"],
    "original_video_fps": 30.0,
    "video_path": [f"/egocross_testbed/EgoPet/generated/8/frames/ai_q1/frame_{i:05d}.jpg" for i in range(3)],
    "correct_option_letter": "B",
    "answer_text": "Dog",
    "detailed_answer": "A dog wears it.",
    "question_id": "EgoPet_8_ai_q1",
}
OPENEQA: Record = {
    "question": "Where is the lamp?",
    "answer": "On the desk",
    "extra_answers": ["next to the bed"],
    "category": "object localization",
    "question_id": "f2e8-one",
    "episode_history": "hm3d-v0/000-hm3d-One",
}
QAEGO4D: Record = {
    "video_id": CLIP_UID,
    "sample_id": "5e6f-one_3",
    "question": "Where did I leave my keys?",
    "answer": "on the table",
    "moment_start_frame": 45.0,
    "moment_end_frame": 60,
}
EGOTEMPO: Record = {
    "question_id": f"{CLIP_UID}_120.0_180.0_0",
    "clip_id": f"{CLIP_UID}_120.0_180.0",
    "question_type": "action sequence",
    "question": "What is done after the tap is opened?",
    "answer": "The cup is washed.",
}
NLQ_QUERY: Record = {
    "clip_start_sec": 2.5,
    "clip_end_sec": 13.6657,
    "video_start_sec": 502.5,
    "video_end_sec": 513.6657,
    "template": "Objects: Where is object X before / after event Y?",
    "query": "Where was the pan?",
}
NATIVE: Record = {
    "id": "k-1",
    "video": "clips/one.mp4",
    "question": "What did I pick up?",
    "options": ["a cup", "a knife"],
    "answer": "B",
    "task": "choice",
}

EGOLIFE: Record = {
    "ID": "1",
    "query_time": {"date": "DAY1", "time": "11210217"},
    "type": "EntityLog",
    "question": "Who used the hammer first?",
    **{f"choice_{letter}": f"Person {letter}" for letter in "abcd"},
    "answer": "B",
    "target_time": {"date": "DAY1", "time": "11152408"},
    "reason": "seen",
}
EGOTHINK: Record = {
    "source_dataset": "ego4d",
    "image_path": ["1.jpg"],
    "question": "What am I holding?",
    "answer": "A brush.",
}
NEXTQA: Record = {
    "video": 4010069381,
    "frame_count": 369,
    "question": "what does the dog do",
    "answer": 2,
    "qid": 6,
    "type": "CW",
    **{f"a{number}": f"it does {number}" for number in range(5)},
}
VSI_BENCH: Record = {
    "id": 3,
    "dataset": "scannet",
    "scene_name": "scene0011_00",
    "question_type": "object_rel_distance",
    "question": "Which of these objects is closest to the bed?",
    "ground_truth": "B",
    "options": ["A. lamp", "B. chair", "C. door"],
}
VIDEO_MME: Record = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many jars are found?",
    "options": ["A. Four.", "B. Nine.", "C. Five.", "D. Two."],
    "answer": "B",
}
HD_EPIC: Record = {
    "inputs": {
        "video 1": {
            "id": "P05-20240425-124420",
            "start_time": "00:00:01.170",
            "end_time": "00:00:03.250",
        }
    },
    "question": "What happens at <TIME 00:00:02.900 video 1>?",
    "choices": ["a jar is opened", "a jar is closed", "the tap runs", "a cup falls", "nothing"],
    "correct_idx": 3,
}
EGOTASKQA: Record = {
    "video_path": "qa_videos/one.mp4",
    "q": "What is the first action of the person?",
    "a": "D",
    "option": {letter: f"do {letter}" for letter in "ABCDE"},
}
HOURVIDEO: Record = {
    "qid": "hv_1",
    "task": "summarization/key_events_objects",
    "question": "What did the camera wearer mainly do?",
    "mcq_test": "A. ...",
    "correct_answer_label": "C",
    "relevant_timestamps": "00:00:02 - 00:00:03",
    **{f"answer_{number}": f"thing {number}" for number in range(1, 6)},
}
CHARADES: Record = {"duration": 33.7, "timestamps": [[2.5, 6.9]], "sentences": ["a person puts a book down."]}
ASKED = "<video>What is done?\nA. cutting\nB. washing"
SWIFT: Record = {
    "messages": [{"role": "user", "content": ASKED}],
    "videos": ["clips/one.mp4"],
    "solution": "<answer>B</answer>",
}
EASYR1: Record = {"problem": ASKED, "videos": ["clips/one.mp4"], "answer": "B"}
VERL: Record = {
    "data_source": "made",
    "prompt": [{"role": "user", "content": ASKED}],
    "videos": [{"video": "clips/one.mp4"}],
    "reward_model": {"style": "rule", "ground_truth": "B"},
}
TRL: Record = {
    "prompt": [
        {
            "role": "user",
            "content": [{"type": "video", "video": "clips/one.mp4"}, {"type": "text", "text": ASKED[7:]}],
        }
    ],
    "solution": "B",
}


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def nlq(*queries: Record) -> Record:
    annotation = {"language_queries": list(queries), "annotation_uid": "9f8e-one"}
    clip = {
        "clip_uid": CLIP_UID,
        "video_start_sec": 500.0,
        "video_end_sec": 980.0,
        "annotations": [annotation],
    }
    return {"version": "1", "videos": [{"video_uid": "vid", "clips": [clip], "split": "train"}]}


def write_egoschema(folder: Path, *records: Record) -> Path:
    write_json(folder / "subset_answers.json", {"q-one": 3})
    return write_json(folder / "questions.json", list(records))


def write_egocross(folder: Path, *records: Record) -> Path:
    touch(folder / "egocross_testbed/EgoPet/generated/8/frames/ai_q1.mp4")
    return write_json(folder / "egocross_testbed_answers.json", list(records))


def write_openeqa(folder: Path, *records: Record) -> Path:
    touch(folder / "hm3d-v0/000-hm3d-One.mp4")
    return write_json(folder / "open-eqa-v0.json", list(records))


def write_parquet(folder: Path, *records: Record) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), folder / "train.parquet")
    return folder / "train.parquet"


def write_egolife(folder: Path, *records: Record) -> Path:
    touch(folder / "A1_JAKE/DAY1/DAY1_A1_JAKE_11151000.mp4")
    return write_json(folder / "EgoLifeQA_A1_JAKE.json", list(records))


def write_nextqa(folder: Path, *records: Record) -> Path:
    write_json(folder / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    with open(folder / "val.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, records[0].keys())
        writer.writeheader()
        writer.writerows(records)
    return folder / "val.csv"


def write_media(sample: Sample, *, num_frames: int, fps: int) -> None:
    """The sample's videos, or a picture in the place of each of their frames."""
    for video in {source.video for source in sample.sources if source.video is not None}:
        Path(video).parent.mkdir(parents=True, exist_ok=True)
        write_video(Path(video), num_frames=num_frames, fps=fps)
    for path in {Path(path) for source in sample.sources for path in source.frames}:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (84, 56)).save(path)


def listed(name: str) -> Callable[..., Path]:
    return lambda folder, *records: write_json(folder / name, list(records))


WRITERS: dict[str, Callable[..., Path]] = {
    "jsonl": lambda folder, *records: write_json(folder / "train.jsonl", "\n".join(map(json.dumps, records))),
    "ego4d_nlq": lambda folder, *queries: write_json(folder / "nlq_train.json", nlq(*queries)),
    "egocross": write_egocross,
    "egocross_open": write_egocross,
    "egoplan": listed("EgoPlan_validation.json"),
    "egoplan_frame": listed("EgoPlan_validation.json"),
    "egoschema": write_egoschema,
    "egotempo": lambda folder, *records: write_json(
        folder / "egotempo_openQA.json", {"info": {"version": "1.0"}, "annotations": list(records)}
    ),
    "huggingface": write_parquet,
    "llava": listed("ego4d_vqa.json"),
    "openeqa": write_openeqa,
    "qaego4d": listed("annotations.train.json"),
    "sharegpt": listed("train.json"),
    "video_r1": listed("Video-R1-260k.json"),
    "charades_sta": lambda folder, *records: write_json(
        folder / "train.json", {f"AO8R{number}": record for number, record in enumerate(records)}
    ),
    "easyr1": listed("easyr1.json"),
    "egolife": write_egolife,
    "egothink": listed("Activity/annotations.json"),
    "nextqa": write_nextqa,
    "swift": listed("swift.json"),
    "trl": listed("trl.json"),
    "verl": listed("verl.json"),
    "egotaskqa": listed("test.json"),
    "hd_epic": lambda folder, *records: write_json(
        folder / "fine_grained_how_recognition.json",
        {f"fine_grained_how_recognition_{number}": record for number, record in enumerate(records)},
    ),
    "hourvideo": lambda folder, *records: write_json(
        folder / "dev_v1.0_annotations.json",
        {CLIP_UID: {"video_metadata": {}, "benchmark_dataset": list(records)}},
    ),
    "video_mme": listed("test.json"),
    "vsi_bench": listed("test.json"),
}
"""Each writes a data set's file of these records (of NLQ: queries) into a folder, under its published name."""

EXAMPLES: dict[str, Record] = {
    "jsonl": NATIVE,
    "ego4d_nlq": NLQ_QUERY,
    "egocross": EGOCROSS,
    "egocross_open": EGOCROSS,
    "egoplan": EGOPLAN,
    "egoplan_frame": EGOPLAN | {"sample_id": 116},
    "egoschema": EGOSCHEMA,
    "egotempo": EGOTEMPO,
    "huggingface": NATIVE,
    "llava": LLAVA,
    "openeqa": OPENEQA,
    "qaego4d": QAEGO4D,
    "sharegpt": SHAREGPT,
    "video_r1": VIDEO_R1,
    "charades_sta": CHARADES,
    "easyr1": EASYR1,
    "egolife": EGOLIFE,
    "egothink": EGOTHINK,
    "nextqa": NEXTQA,
    "swift": SWIFT,
    "trl": TRL,
    "verl": VERL,
    "egotaskqa": EGOTASKQA,
    "hd_epic": HD_EPIC,
    "hourvideo": HOURVIDEO,
    "video_mme": VIDEO_MME,
    "vsi_bench": VSI_BENCH,
}
