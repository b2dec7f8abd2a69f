"""Clips: decoding a few frames of a long video, and what cached clips cost in time and memory.

    python -m tests.benchmarks.bench_media [--rounds 5] [--minutes 3]

Prints JSON. The video is 640x360 at 30 fps, H.264 with B-frames and a keyframe every second; 16 frames of it are
sampled and resized to 100,352 pixels at most; torch has one thread. `ours` lists the file's packets too, as for the
first clip of a file. `decode_only` gets the same frames of a known file, without converting and resizing any; it is
compared with 1.3 times `half_gops`, their share of `decode_all`. `ours` may take as much and `rest`: what any reader
does, which is to open the file, seek to 16 keyframes, turn them into RGB and resize them. qwen-vl-utils runs with the
backend that it chooses itself (torchcodec, decord or torchvision), if that works here. `ahead` plays two epochs in
each of two runs that share a disk cache, with a pause in place of each step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import av
import numpy as np
import psutil
import torch
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from grpo.groups import Group
from grpo.media import decode
from grpo.media.clip import Clip, ClipSource
from grpo.media.container import open_video, upright_rgb
from grpo.media.decode_pool import DecodePool
from grpo.media.disk_cache import DiskCache, entry_name
from grpo.media.frame_table import _listed_table, frame_table
from grpo.media.frames import resize_all
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader, Read
from grpo.media.sampling import QWEN2_5_VL, MediaSettings
from tests.support import tiny
from tests.support.clips import clip_of
from tests.support.videos import read_video

FPS = 30
SIZE_PX = (640, 360)
NUM_SAMPLED = 16
SETTINGS = MediaSettings(fps=2.0, max_frames=NUM_SAMPLED, min_pixels=100_352, max_pixels=100_352)
NUM_PARTS, NUM_STEPS, STEP_S = 32, 4, 1.0
CACHED = {"clips": 64, "frames": 32, "height_px": 252, "width_px": 448}
COMPLETION_TOKENS = 128


def write_moving_texture(path: str, num_frames: int) -> None:
    """A camera that pans over a texture with noise: costs about what real video does to decode."""
    width, height = SIZE_PX
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (height // 8, 400, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(-12, 12, texture.shape, dtype=np.int16)
    texture = (texture.astype(np.int16) + noise).clip(0, 255).astype(np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = FPS
        stream.options = {"preset": "veryfast", "crf": "26", "sc_threshold": "0"}
        for number in range(num_frames):
            left = number * 2 % (texture.shape[1] - width)
            picture = np.ascontiguousarray(texture[:, left : left + width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def read_once(path: str) -> Clip:
    """As the first clip of a file is read: nothing of it is known yet."""
    _listed_table.cache_clear()
    return read_video(path, settings=SETTINGS)


def decode_all(path: str) -> None:
    with open_video(path) as (container, stream):
        for _ in container.decode(stream):
            pass


def decode_only(path: str) -> None:
    """The frames of `read_once`, as the decoder gives them."""
    table = frame_table(path)
    indices = decode._choose_frames(table, ClipSource(video=path), SETTINGS, QWEN2_5_VL).indices
    with open_video(path) as (container, stream):
        for _ in decode._decode(path, container, stream, table, indices):
            pass


def handle_keyframes(path: str) -> None:
    """Open, seek to as many keyframes as frames are sampled, and make of each what is made of a frame."""
    table = frame_table(path)
    spread = np.linspace(0, len(table.keyframes) - 1, NUM_SAMPLED).round().astype(int)
    with open_video(path) as (container, stream):
        to_rgb, indices = VideoReformatter(), table.keyframes[spread].tolist()
        decoded = decode._decode(path, container, stream, table, indices)
        upright = (upright_rgb(path, frame, to_rgb) for frame in decoded)
        resize_all(path, upright, NUM_SAMPLED, SETTINGS, QWEN2_5_VL)


def reference_reader(path: str) -> tuple[str, Callable[[], object] | None]:
    from qwen_vl_utils import vision_process as reference

    rule = {
        "video": path,
        **{key: getattr(SETTINGS, key) for key in ("fps", "max_frames", "min_pixels", "max_pixels")},
    }
    name = reference.get_video_reader_backend()
    try:
        reference.fetch_video(rule)
    except Exception as error:  # whichever of its backends is chosen may lack anything
        return f"{name} does not work here: {type(error).__name__}", None
    return name, lambda: reference.fetch_video(rule)


def bench_decoding(path: str, rounds: int) -> dict[str, Any]:
    """Medians; every round runs all of them in turn, so that other load falls on all."""
    backend, reference = reference_reader(path)
    works: dict[str, Callable[[], object]] = {
        "ours_s": lambda: read_once(path),
        "decode_all_s": lambda: decode_all(path),
        "decode_only_s": lambda: decode_only(path),
        "rest_s": lambda: handle_keyframes(path),
    } | ({"qwen_vl_utils_s": reference} if reference else {})
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    result: dict[str, Any] = {name: round(median(each), 4) for name, each in times.items()}
    num_frames = len(frame_table(path).pts)
    half_gops_s = result["decode_all_s"] * NUM_SAMPLED * FPS / 2 / num_frames
    result |= {
        "all_over_ours": round(result["decode_all_s"] / result["ours_s"], 2),
        "half_gops_s": round(half_gops_s, 4),
        "decode_only_over_allowed": round(result["decode_only_s"] / (1.3 * half_gops_s), 2),
        "ours_over_allowed": round(result["ours_s"] / (1.3 * (half_gops_s + result["rest_s"])), 2),
        "qwen_vl_utils_backend": backend,
    }
    if reference:
        result["qwen_vl_utils_over_ours"] = round(result["qwen_vl_utils_s"] / result["ours_s"], 2)
    return result


def bench_cache(path: str, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds to have the clip again: from the disk cache, and from memory."""
    disk = DiskCache(folder / "cache", max_gib=1)
    name = entry_name(ClipSource(video=path), SETTINGS, QWEN2_5_VL)
    clip = read_video(path, settings=SETTINGS)
    store_s = seconds(lambda: disk.store(name, clip))
    load_s = median(
        seconds(lambda: disk.load(entry_name(ClipSource(video=path), SETTINGS, QWEN2_5_VL), path))
        for _ in range(rounds)
    )
    return {
        "clip_mib": round(clip.frames_FHWC.nbytes / 2**20, 2),
        "store_ms": round(1000 * store_s, 2),
        "load_ms": round(1000 * load_s, 2),
    }


def bench_ahead(path: str, folder: Path) -> dict[str, Any]:
    """Steps whose clips are decoded ahead: what is decoded, and how long a step waits, in each epoch and run."""
    epochs: dict[str, Any] = {}
    for run in ("first_run", "second_run"):
        reader = ClipReader(settings=SETTINGS, disk=DiskCache(folder / "ahead", max_gib=4))
        with closing(ClipLoader(reader, cache_gib=4, num_workers=2, timeout_s=120)) as loader:
            loader.get(replace(parts_of(path)[0], end_s=1.0))  # the processes have started now
            for epoch in ("first_epoch", "second_epoch"):
                before, waited_s = loader.counters(), epoch_of_steps(loader, parts_of(path))
                after = loader.counters()
                epochs[f"{run}_{epoch}"] = {
                    "decoded": after.decoded - before.decoded,
                    "from_disk": after.disk_hits - before.disk_hits,
                    "waited_over_step": round(waited_s / (NUM_STEPS * STEP_S), 4),
                }
    return {"clips_per_step": NUM_PARTS // NUM_STEPS, "step_s": STEP_S, **epochs}


def epoch_of_steps(loader: ClipLoader, sources: list[ClipSource]) -> float:
    """Seconds that its steps wait for their clips, the next step's being read ahead; a step is a pause."""
    per_step, waited_s = len(sources) // NUM_STEPS, 0.0
    for start in range(0, len(sources), per_step):
        loader.prefetch(sources[start : start + 2 * per_step])
        waited_s += seconds(
            lambda start=start: [loader.get(each) for each in sources[start : start + per_step]]
        )
        sleep(STEP_S)
    return waited_s


def bench_workers(path: str, rounds: int) -> dict[str, float]:
    """Clips per second of two processes, frames handed over, and of two threads, as an earlier version had."""
    reader = ClipReader(settings=SETTINGS)
    sources = parts_of(path)
    started_s = perf_counter()
    pool, threads = DecodePool(reader, num_workers=2, timeout_s=120), ThreadPoolExecutor(2)
    with closing(pool), threads:
        pool.submit(sources[0]).result()
        started_s = perf_counter() - started_s

        def in_threads() -> list[Future[Read]]:
            return [threads.submit(reader.read, source) for source in sources]

        def in_processes() -> list[Future[Read]]:
            return [pool.submit(source) for source in sources]

        works: dict[str, Callable[[], object]] = {
            "processes": lambda: wait(in_processes()),
            "threads": lambda: wait(in_threads()),
            "busy_processes": lambda: (asked := in_processes(), python_work(), wait(asked)),
            "busy_threads": lambda: (asked := in_threads(), python_work(), wait(asked)),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                times[name].append(seconds(work))
        memory = [psutil.Process(pid).memory_full_info().uss for pid in pool.pids]
    per_s = {name: len(sources) / median(each) for name, each in times.items()}
    return {
        "processes_clips_per_s": round(per_s["processes"], 1),
        "threads_clips_per_s": round(per_s["threads"], 1),
        "processes_over_threads": round(per_s["processes"] / per_s["threads"], 2),
        "processes_over_threads_beside_python_work": round(
            per_s["busy_processes"] / per_s["busy_threads"], 2
        ),
        "start_s": round(started_s, 2),
        "own_memory_mib_per_process": round(max(memory) / 2**20, 1),
    }


def python_work() -> int:
    """What a trainer does in Python while clips are decoded: about half a second of it."""
    return sum(number % 7 for number in range(10_000_000))


def parts_of(path: str) -> list[ClipSource]:
    """Parts of the video, three seconds each."""
    starts_s = np.linspace(0, len(frame_table(path).pts) / FPS - 4, NUM_PARTS).round(1).tolist()
    return [ClipSource(video=path, start_s=start_s, end_s=start_s + 3) for start_s in starts_s]


def fill(folder: str) -> None:
    """As many entries as are to be cached, each of random frames, under the names of clips of one file."""
    disk, rng = DiskCache(folder, max_gib=4), np.random.default_rng(0)
    shape = (CACHED["frames"], CACHED["height_px"], CACHED["width_px"], 3)
    for source in sources_of(folder):
        clip = clip_of(rng.integers(0, 256, shape, dtype=np.uint8), path=source.path)
        disk.store(entry_name(source, SETTINGS, QWEN2_5_VL), clip)


def sources_of(folder: str) -> list[ClipSource]:
    return [ClipSource(video=f"{folder}/v", start_s=float(start_s)) for start_s in range(CACHED["clips"])]


def memory_of_cached_clips(folder: str, group_size: int) -> dict[str, float]:
    """What the process grows by when a loader holds them all, and a group about each, over the frames' own bytes."""
    reader = ClipReader(settings=SETTINGS, disk=DiskCache(folder, max_gib=4))
    loader = ClipLoader(reader, cache_gib=4, num_workers=2, timeout_s=120)
    sources = sources_of(folder)
    group_about(sources[0], loader.get(sources[0]), group_size)
    before = psutil.Process().memory_info().rss
    groups: list[Group] = []
    for start in range(1, len(sources), 8):
        loader.prefetch(sources[start : start + 8])
        groups += [group_about(each, loader.get(each), group_size) for each in sources[start : start + 8]]
    grown = psutil.Process().memory_info().rss - before
    clips = [rollout.clip for group in groups for rollout in group.rollouts if rollout.clip is not None]
    assert loader.counters().disk_hits == len(sources) and clips[0].num_frames == CACHED["frames"]
    assert len(clips) == (len(sources) - 1) * group_size
    own = (len(sources) - 1) * clips[0].frames_FHWC.nbytes
    loader.close()
    return {
        "frames_mib": round(own / 2**20, 1),
        "grown_mib": round(grown / 2**20, 1),
        "ratio": round(grown / own, 3),
    }


def group_about(source: ClipSource, clip: Clip, group_size: int) -> Group:
    """As a step has it: the rendered prompt, and completions with their log-probs."""
    sample = tiny.sample(f"{source.path}@{source.start_s}", clip_source=source)
    prompt, token_ids = tiny.prompt(sample, clip), range(1000, 1000 + COMPLETION_TOKENS)
    rollouts = tuple(tiny.rollout(prompt, [*token_ids]) for _ in range(group_size))
    return Group(prompt=prompt, rollouts=rollouts)


def bench_memory(folder: Path) -> dict[str, dict[str, float]]:
    """For groups of 1 and of 8, each in a process of its own; random frames have to be written first."""
    folder.mkdir()
    (folder / "v").write_text("in place of a video")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(fill, (str(folder),))
    result = {}
    for group_size in (1, 8):
        with context.Pool(1) as pool:
            result[f"groups_of_{group_size}"] = pool.apply(memory_of_cached_clips, (str(folder), group_size))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        video = f"{name}/long.mp4"
        write_moving_texture(video, round(args.minutes * 60 * FPS))
        result = {
            "video_mib": round(Path(video).stat().st_size / 2**20, 1),
            "decoding": bench_decoding(video, args.rounds),
            "cache": bench_cache(video, Path(name), args.rounds),
            "workers": bench_workers(video, args.rounds),
            "ahead": bench_ahead(video, Path(name)),
            "memory": {**CACHED, **bench_memory(Path(name, "many"))},
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
