"""Reading a large data set, on one core.

    python -m tests.benchmarks.bench_reader [--records 100000]

Writes the records first: choice questions with options, clip bounds and key moments as JSON Lines, the same as one
JSON list in Video-R1's form. Prints JSON: seconds until every record is a validated sample, ids compared, and the
process's peak memory. At most 10 s are wanted for 100,000 JSON Lines.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from grpo.data import READERS
from grpo.data.fields import LETTERS

OPTIONS = ("a red cup", "a knife", "the white plate", "a box of salt")


def native(number: int) -> dict[str, Any]:
    return {
        "id": f"q-{number:06d}",
        "video": f"clips/{number % 5000:04d}.mp4",
        "start_s": 12.0,
        "end_s": 42.5,
        "question": f"What did I pick up before I opened the door, number {number}?",
        "options": OPTIONS,
        "answer": LETTERS[number % len(OPTIONS)],
        "task": "choice",
        "keyframes_s": [[18.0, 19.5], 30.25],
        "split": "train",
    }


def video_r1(number: int) -> dict[str, Any]:
    record = native(number)
    return {
        "problem_id": number,
        "problem": record["question"],
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{letter}. {option}" for letter, option in zip(LETTERS, OPTIONS, strict=False)],
        "solution": f"<answer>{record['answer']}</answer>",
        "path": f"./{record['video']}",
        "data_source": "made-up",
    }


def seconds_to_read(reader: str, path: Path, count: int) -> float:
    start = time.perf_counter()
    samples = READERS[reader](str(path), None)
    elapsed_s = time.perf_counter() - start
    assert len(samples) == count
    return round(elapsed_s, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        lines, listed = Path(folder, "train.jsonl"), Path(folder, "Video-R1.json")
        with open(lines, "w") as file:
            file.writelines(json.dumps(native(number)) + "\n" for number in range(count))
        with open(listed, "w") as file:
            json.dump([video_r1(number) for number in range(count)], file)
        result = {
            "benchmark": "reader",
            "records": count,
            "jsonl_s": seconds_to_read("jsonl", lines, count),
            "video_r1_s": seconds_to_read("video_r1", listed, count),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
