"""Key moments for data that has none: `egogrpo annotate DATA.jsonl OUT.jsonl --model MODEL`.

A CLIP-like model (one on this machine that transformers' `AutoModel` loads, with text and image features: CLIP, SigLIP)
compares frames sampled from each clip with the question and with the answer. OUT gets the native records, with two
fields more: `frame_scores`, [time in seconds of the clip, score] of every sampled frame, which the reward
`keyframe_scores` reads; and `keyframes_s`, the frames with the highest scores, which `keyframe` and the others read.
Where these came from stays in `keyframes_from`. Records with key moments of their own, or without a clip, are
copied as they are.

It can be stopped and started again: what is in OUT stays. Clips that can't be read are named, left out, and tried again
the next time; exit status 1 then. These moments are a model's guess, made with the answer in view: look at some.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from grpo.commands.arguments import Parser
from grpo.config.limits import refusals
from grpo.config.rules import media_contradictions
from grpo.config.schema import DatasetConfig, MediaConfig
from grpo.data import READERS, load_samples
from grpo.data.fields import LETTERS
from grpo.data.native import file_seconds, native_record
from grpo.groups import Sample
from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.media.sampling import MediaSettings
from grpo.run.progress import under_way

if TYPE_CHECKING:
    from grpo.commands.frame_scorer import FrameScorer, Scores

ANSWERS_SHOWN = ("choice", "text", "ocr", "open")
"""Tasks whose answers say what is to be seen; numbers and spans do not."""
CLIPS_AHEAD = 4


def texts_of(sample: Sample) -> list[str]:
    """What frames are compared with: the question, and the answer in words."""
    if sample.task not in ANSWERS_SHOWN:
        return [sample.question]
    answer = sample.options[LETTERS.index(sample.answer)] if sample.options else sample.answer
    return [sample.question, answer]


def best_spans(scores: Scores, top_k: int) -> list[tuple[float, float]]:
    """The top_k frames with the highest scores, the earlier one first at a tie; neighbours are one span."""
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index][1], index))
    chosen = sorted(ranked[:top_k])
    spans: list[tuple[float, float]] = []
    for index, before in zip(chosen, [None, *chosen], strict=False):
        time_s = scores[index][0]
        if before is not None and index == before + 1:
            spans[-1] = (spans[-1][0], time_s)
        else:
            spans.append((time_s, time_s))
    return spans


def annotated(
    sample: Sample, scores: Scores, record: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    """The native record with its key moments, on the file's clock, and the scores that they come from."""
    spans = best_spans(scores, source["top_k"])
    return {
        **record,
        "keyframes_s": [[file_seconds(time_s, sample.clip_source) for time_s in span] for span in spans],
        "frame_scores": [[round(time_s, 3), round(score, 6)] for time_s, score in scores],
        "keyframes_from": source,
    }


def finished_ids(out: Path, source: dict[str, Any]) -> set[str]:
    """Ids of the records in OUT; a line that was torn by a kill is cut off.

    ValueError if they were annotated with another model or other settings.
    """
    if not out.exists():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        out.write_bytes(whole)
    records = [json.loads(line) for line in whole.splitlines()]
    for record in records:
        if record.get("keyframes_from", source) != source:
            raise ValueError(
                f"{out}: was written with {record['keyframes_from']}, not {source}; choose another file"
            )
    return {record["id"] for record in records}


def clips_of(sources: Iterable[ClipSource], loader: ClipLoader) -> Iterator[Clip | MediaError]:
    """The clips, or why they can't be read; the next ones are decoded meanwhile."""
    rest = iter(sources)
    ahead = [*islice(rest, CLIPS_AHEAD)]
    loader.prefetch(ahead)
    while ahead:
        source = ahead.pop(0)
        following = [*islice(rest, 1)]
        loader.prefetch(following)
        ahead += following
        try:
            yield loader.get(source)
        except MediaError as error:
            yield error


def annotate(
    samples: Sequence[Sample],
    out: Path,
    scorer: FrameScorer,
    root: Path,
    loader: ClipLoader,
    source: dict[str, Any],
) -> int:
    """Append a record for each sample that OUT lacks; how many could not be read."""
    done = finished_ids(out, source)
    todo = [sample for sample in samples if sample.id not in done]
    sources = {
        sample.id: sample.clip_source for sample in todo if sample.clip_source and not sample.keyframes_s
    }
    clips = clips_of(sources.values(), loader)
    num_failed = 0
    with open(out, "a", encoding="utf-8") as opened:
        for sample in tqdm(todo, unit="question", disable=None):
            record = native_record(sample, root)
            if sample.id in sources:
                clip = next(clips)
                if isinstance(clip, MediaError):
                    num_failed += 1
                    tqdm.write(f"{sample.source}: {sample.id}: {clip}")
                    continue
                record = annotated(sample, scorer.scores(clip, texts_of(sample)), record, source)
            opened.write(json.dumps(record) + "\n")
            opened.flush()
    print(
        f"{len(samples)} records: {len(done)} were there, {len(todo) - len(sources)} copied, "
        f"{len(sources) - num_failed} annotated, {num_failed} can't be read"
    )
    return num_failed


def main(argv: Sequence[str] | None = None) -> int:
    """Annotate what the command line names; the exit status."""
    options = _parser().parse_args(argv)
    root = Path(options.media_root or Path(options.path).parent)
    dataset = DatasetConfig(
        reader=options.reader,
        path=options.path,
        media_root=options.media_root,
        frame_fps=options.frame_fps,
        follow_links=options.follow_links,
    )
    source = {name: getattr(options, name) for name in ("model", "fps", "max_frames", "top_k")}
    try:
        settings = MediaSettings(
            fps=options.fps,
            min_frames=2,
            max_frames=options.max_frames,
            # CLIP-like models see 224 to 384 pixels each way.
            max_pixels=256 * 28 * 28,
        )
        for problem in chain(refusals(settings, "media"), media_contradictions(settings)):
            raise ValueError(problem)
        samples = load_samples([dataset])
        # Late, since torch and transformers take seconds: a mistyped argument is reported before them.
        with under_way("importing torch and transformers"):
            from grpo.commands.frame_scorer import FrameScorer
        with under_way(f"loading {options.model}"):
            scorer = FrameScorer(options.model)
        reader, limit_s = ClipReader(settings=settings), MediaConfig().timeout_s
        with closing(ClipLoader(reader, cache_gib=0, num_workers=2, timeout_s=limit_s)) as loader:
            num_failed = annotate(samples, Path(options.out), scorer, root, loader, source)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(f"data.train=[{{path: {options.out}, media_root: {root}}}] reads it")
    return 1 if num_failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="egogrpo annotate", description=__doc__)
    parser.add_argument("path", metavar="DATA", help="a dataset's file")
    parser.add_argument("out", metavar="OUT.jsonl", help="written, or gone on with")
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="a CLIP-like model, or its name in the local cache"
    )
    parser.add_argument("--reader", default="jsonl", choices=[*READERS], help="the data's format")
    parser.add_argument("--media-root", metavar="FOLDER", help="default: the data's folder")
    parser.add_argument("--follow-links", action="store_true", help="also to media outside of the media root")
    parser.add_argument("--frame-fps", type=float, help="of clips that are images without times")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second to score")
    parser.add_argument("--max-frames", type=int, default=64, help="per clip, spread evenly")
    parser.add_argument("--top-k", type=int, default=3, help="frames that become key moments")
    return parser
