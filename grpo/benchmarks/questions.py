"""A benchmark's questions as they are read, and what stored answers to them depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo.benchmarks.answers import HEADER, answers_folder
from grpo.benchmarks.benchmark import Benchmark
from grpo.config.schema import DatasetConfig
from grpo.data import Questions, check_links, load_samples, timed
from grpo.data.check import missing_media
from grpo.groups import Sample
from grpo.policy.model_folder import find_model_folder, weights_identity


def read_questions(benchmark: Benchmark, given: Questions) -> list[Sample]:
    """The questions that a benchmark asks, of its own file, or of all its files in a folder."""
    samples: list[Sample] = []
    for file in _files(benchmark, given.path):
        if isinstance(benchmark.reader, str):
            entry = DatasetConfig(
                reader=benchmark.reader,
                path=file,
                media_root=given.media_root,
                follow_links=given.follow_links,
                frame_fps=given.frame_fps,
            )
            samples += load_samples([entry])
        else:
            found = benchmark.reader(file, given.media_root)
            if not given.follow_links:
                check_links(found, file, given.media_root)
            samples += [timed(sample, given.frame_fps) for sample in found]
    return benchmark.prepare(samples)


def _files(benchmark: Benchmark, path: str) -> list[str]:
    if not benchmark.files or not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).glob(benchmark.files))
    if not found:
        raise ValueError(f"data.path: {path} has no {benchmark.files}")
    return found


def without_missing(
    samples: list[Sample], *, allow_missing: bool, say: Callable[[str], object]
) -> list[Sample]:
    """The questions whose media are there. ValueError that names and counts the others, unless they may be missing."""
    missing = {sample.id: problems[0] for sample in samples if (problems := missing_media([sample]))}
    if not missing:
        return samples
    first = "; ".join(error.reason for error in [*missing.values()][:3]) + (
        "; ..." if len(missing) > 3 else ""
    )
    count = f"{len(missing)} of {len(samples)} questions have no video"
    if not allow_missing or len(missing) == len(samples):
        raise ValueError(
            f"data: {count}, so there is no score: {first}. allow_missing=true leaves them out, and prints the score "
            "with its n"
        )
    say(f"note: {count} and are left out: {first}")
    return [sample for sample in samples if sample.id not in missing]


def stored_under(parent: Path, model: str, header: Mapping[str, Any], model_path: str) -> Path:
    """The folder of a model's answers under a header, also where the model itself is not there to tell its weights.

    ValueError that names what is otherwise, if there are answers under other settings or to other questions alone.
    """
    exact = _exact(parent, model, header, model_path)
    if exact is not None and exact.exists():
        return exact
    found = {
        path.parent: json.loads(path.read_bytes()) for path in sorted(parent.glob(f"{model}-*/{HEADER}"))
    }
    alike = [folder for folder, other in found.items() if not _differing(header, other)]
    if exact is None and len(alike) == 1:
        return alike[0]
    if exact is None and alike:
        raise ValueError(
            f"out_dir: answers of several weights of {model}: {', '.join(map(str, alike))}; remove the old"
        )
    if not found:
        raise ValueError(f"out_dir: no answers of {model} in {parent}")
    nearest = min(found, key=lambda folder: len(_differing(header, found[folder])))
    differ = _differing(header, found[nearest]) or ["weights"]
    others = ", ".join(differ)
    raise ValueError(
        f"out_dir: the answers of {model} in {nearest} are not to be mixed with these: other {others}"
    )


def _exact(parent: Path, model: str, header: Mapping[str, Any], model_path: str) -> Path | None:
    try:
        return answers_folder(
            parent, model, {**header, "weights": weights_identity(find_model_folder(model_path))}
        )
    except (ValueError, OSError):
        return None


def _differing(header: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in header if json.dumps(header[key]) != json.dumps(other.get(key))]
