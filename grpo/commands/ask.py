"""A question to a model about a video: its reasoning, the moments that it cites, and its answer.

    egogrpo ask MODEL VIDEO "QUESTION" [--option TEXT ...] [--also VIDEO_OR_PICTURE ...] [key=value ...]

Of several videos a moment is cited with the number of its video, `2: 0:03.0`; `<video>` and `<image>` in the question
say where each stands, or none does. Clips are sampled and the prompt is written as in the model's training, and the
answer is the likeliest one (greedy). Without `--server` the model is loaded here: by transformers, which starts in a
fraction of vLLM's time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image

from grpo.commands.arguments import Parser
from grpo.groups import Prompt, Rollout, Sample, Task, main_index
from grpo.media.clip import Clip, ClipSource
from grpo.media.frames import check_exists
from grpo.media.images import ENDINGS
from grpo.media.places import check_places, kind_of
from grpo.media.reading import read_source
from grpo.policy.model_folder import check_weights, find_model_folder
from grpo.rollout import Sampling
from grpo.run.model_inputs import ModelInputs, read_inputs
from grpo.run.progress import under_way
from rewards.builtin.moments import videos_of
from rewards.parsing import (
    ANSWER,
    KEYFRAMES,
    THINK,
    only_block,
    read_letter,
    read_moments,
    read_videos_moments,
)

if TYPE_CHECKING:
    from grpo.policy.families import ModelFamily

SERVER_TIMEOUT_S = 600.0
Moment = tuple[int, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A completion as its tags divide it; None for a part that is missing or can't be read."""

    text: str
    reasoning: str | None
    moments: list[Moment] | None
    """The cited moments: the number of the video, from 1, and the span in seconds from its start in the clip."""
    answer: str | None
    option: str | None
    """The text of the option that the answer names."""


def main(argv: Sequence[str]) -> int:
    """Ask the question and print the answer; the exit status."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        if loose := [each for each in arguments.settings if "=" not in each]:
            raise ValueError(f"{loose[0]!r} is no key=value: put the question in quotes")
        sample = sample_of(arguments)
        for path in (arguments.video, *arguments.also):
            check_exists(path)
        inputs = read_inputs(str(find_model_folder(arguments.model)), arguments.settings)
        # Late, since torch and transformers take seconds: what is mistyped is reported before them.
        with under_way("importing torch and transformers"):
            from grpo.learner.launching import compute_dtype, quiet_libraries
            from grpo.policy.families import load_family

        quiet_libraries()
        family = load_family(arguments.model, seconds_dtype=compute_dtype())
        prompt = prompt_of(sample, family, inputs)
        with under_way("answering"):
            rollout = complete(prompt, family, inputs, server=arguments.server, regex=arguments.regex)
        answer = read_answer(rollout)
        frames = save_frames(prompt, answer, arguments.frames) if arguments.frames else []
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(as_record(prompt, answer, frames), ensure_ascii=False))
    else:
        print(*lines_of(prompt, answer, frames), sep="\n")
    return 0


def sample_of(arguments: argparse.Namespace) -> Sample:
    """Return the question of a command line."""
    if arguments.end is not None and arguments.end <= arguments.start:
        raise ValueError(f"--end {arguments.end:g} must be above --start {arguments.start:g}")
    clip_source = _source(arguments.video, start_s=arguments.start, end_s=arguments.end)
    media = (clip_source, *map(_source, arguments.also))
    if arguments.also:
        check_places("\n".join((arguments.question, *arguments.option)), [*map(kind_of, media)])
    return Sample(
        id="question",
        question=arguments.question,
        answer="",
        task=arguments.task or ("choice" if arguments.option else "open"),
        source="the command line",
        options=tuple(arguments.option),
        clip_source=media[main_index(media)],
        media=media if arguments.also else (),
    )


def _source(path: str, start_s: float = 0.0, end_s: float | None = None) -> ClipSource:
    if path.lower().endswith(ENDINGS):
        return ClipSource(frames=(path,))
    return ClipSource(video=path, start_s=start_s, end_s=end_s)


def prompt_of(sample: Sample, family: ModelFamily, inputs: ModelInputs) -> Prompt:
    """Return the question as the model was asked in training; raise ValueError if it is too long or has no clip."""
    clips = [read_source(source, settings=inputs.media, patches=family.patches) for source in sample.sources]
    prompt = family.render(sample, clips, **inputs.wording)
    if len(prompt.token_ids) > inputs.max_prompt_tokens:
        raise ValueError(
            f"{sample.sources[0].path}: the prompt has {len(prompt.token_ids)} tokens, and "
            f"rollout.max_model_tokens={inputs.rollout.max_model_tokens} leaves room for {inputs.max_prompt_tokens}; "
            "media.max_tokens=... takes fewer or smaller frames, --end less of the video"
        )
    return prompt


def complete(
    prompt: Prompt, family: ModelFamily, inputs: ModelInputs, *, server: str | None, regex: str
) -> Rollout:
    """Return the model's likeliest completion, from a server or computed here; if so asked, of those that match."""
    greedy = Sampling(
        group_size=1,
        max_new_tokens=inputs.rollout.max_new_tokens,
        temperature=0.0,
        stop=tuple(inputs.rollout.stop),
        regex=regex,
    )
    if server is not None:
        from grpo.rollout.server_check import check_same_weights
        from grpo.rollout.server_client import ServerClient

        client = ServerClient(server, family, timeout_s=SERVER_TIMEOUT_S)
        check_same_weights(client)
        return client.generate(prompt, greedy, seed=0).rollouts[0]
    check_weights(find_model_folder(family.path))
    if family.has_sliding_windows or regex:
        return _complete_by_vllm(prompt, family, inputs, greedy)
    from grpo.learner.launching import compute_dtype, on_gpu
    from grpo.policy.model import Policy
    from grpo.rollout.transformers_engine import TransformersEngine

    policy = Policy(family.load_model(compute_dtype()), family, temperature=1.0)
    policy = policy.to("cuda" if on_gpu() else "cpu").eval()
    engine = TransformersEngine(policy, dtype=compute_dtype())
    return engine.generate([prompt], greedy, [0])[0].rollouts[0]


def _complete_by_vllm(prompt: Prompt, family: ModelFamily, inputs: ModelInputs, greedy: Sampling) -> Rollout:
    """Return a completion that the transformers engine can't make: of a model with sliding windows, or by a regex."""
    import torch

    from grpo.learner.launching import compute_dtype
    from grpo.policy.model import Policy
    from grpo.rollout.vllm_arguments import EngineSize
    from grpo.rollout.vllm_engine import VLLMEngine

    with torch.device("meta"):
        outline = Policy(family.outline(), family, temperature=1.0)
    length = inputs.rollout.max_model_tokens
    size = EngineSize(max_model_tokens=length, gpu_memory_frac=0.9, max_clip_tokens=length)
    engine = VLLMEngine(outline, seed=0, size=size, dtype=compute_dtype())
    try:
        return engine.generate([prompt], greedy, [0])[0].rollouts[0]
    finally:
        engine.close()


def read_answer(rollout: Rollout) -> Answer:
    """Return a completion divided by its tags."""
    blocks = {tag: only_block(rollout.text, tag) for tag in (THINK, KEYFRAMES, ANSWER)}
    answer, cited, options = blocks[ANSWER], blocks[KEYFRAMES], rollout.sample.options
    letter = read_letter(answer, options) if options and answer is not None else None
    return Answer(
        text=rollout.text,
        reasoning=_stripped(blocks[THINK]),
        moments=_moments(cited, rollout.sample.num_videos) if cited is not None else None,
        answer=letter or _stripped(answer),
        option=options[ord(letter) - ord("A")] if letter else None,
    )


def _moments(cited: str, num_videos: int) -> list[Moment] | None:
    if num_videos > 1:
        return read_videos_moments(cited, num_videos)
    spans = read_moments(cited)
    return None if spans is None else [(1, span) for span in spans]


def save_frames(prompt: Prompt, answer: Answer, folder: Path) -> list[Path]:
    """Write the frames that the model saw at the cited moments, each named by its second in the file.

    Of several videos the number of the video comes first: `2_00003.50s.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, clip in enumerate(videos_of(prompt.clips), start=1):
        spans = [span for video, span in answer.moments or [] if video == number]
        of_video = f"{number}_" if prompt.sample.num_videos > 1 else ""
        for index in cited_frames(clip, spans):
            second = _file_second(prompt, number, clip.times_s[index])
            paths.append(folder / f"{of_video}{second:08.2f}s.png")
            Image.fromarray(clip.frames_FHWC[index]).save(paths[-1])
    return paths


def cited_frames(clip: Clip, moments_s: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the frames within the cited spans; of one without a frame, the frame that is nearest.

    A moment outside the clip has none.
    """
    times = np.array(clip.times_s)
    found: set[int] = set()
    for start_s, end_s in moments_s:
        if end_s < 0 or start_s > clip.duration_s:
            continue
        inside = np.flatnonzero((times >= start_s) & (times <= end_s)).tolist()
        found |= {*(inside or [int(np.abs(times - (start_s + end_s) / 2).argmin())])}
    return sorted(found)


def lines_of(prompt: Prompt, answer: Answer, frames: Sequence[Path]) -> Iterator[str]:
    """Yield what is printed: each part that the prompt asks for, then files; all text where a part can't be read."""
    answered = f"{answer.answer} ({answer.option})" if answer.option else answer.answer
    parts = {THINK: ("reasoning", answer.reasoning), KEYFRAMES: ("moments", _times(prompt, answer))}
    parts[ANSWER] = ("answer", answered)
    asked = [parts[tag] for tag in prompt.tags if tag in parts]
    for name, content in asked:
        yield f"{name + ':':<11}{'(none that can be read)' if content is None else content}"
    if any(content is None for _, content in asked):
        yield f"the text:  {answer.text}"
    yield from (f"frame:     {path}" for path in frames)


def as_record(prompt: Prompt, answer: Answer, frames: Sequence[Path]) -> dict[str, Any]:
    """Return what `--json` prints, with times on the file's clock."""
    moments = answer.moments
    several = prompt.sample.num_videos > 1
    return {
        "answer": answer.answer,
        "option": answer.option,
        "moments_s": moments
        and [[_file_second(prompt, number, time_s) for time_s in span] for number, span in moments],
        **({"moments_videos": moments and [number for number, _ in moments]} if several else {}),
        "reasoning": answer.reasoning,
        "text": answer.text,
        "frames": [str(path) for path in frames],
    }


def _times(prompt: Prompt, answer: Answer) -> str | None:
    """Return the cited moments as minutes and seconds of the file, which a player shows."""
    if answer.moments is None:
        return None
    several = prompt.sample.num_videos > 1
    spans = [
        (
            f"{number}: " if several else "",
            dict.fromkeys(_clock(_file_second(prompt, number, time_s)) for time_s in span),
        )
        for number, span in answer.moments
    ]
    return ", ".join(of_video + "-".join(span) for of_video, span in spans)


def _file_second(prompt: Prompt, number: int, time_s: float) -> float:
    """A second of the video with a number, from 1, as a second of its file."""
    videos = [source for source in prompt.sample.sources if not source.is_picture]
    return round(time_s + (videos[number - 1].start_s if videos else 0.0), 3)


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(abs(time_s), 60)
    return f"{'-' if time_s < 0 else ''}{int(minutes)}:{seconds:04.1f}"


def _stripped(text: str | None) -> str | None:
    return text.strip() if text is not None else None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="egogrpo ask", description="Ask a model about a video.")
    parser.add_argument("model", metavar="MODEL", help="a run's final/, a model folder, or a cached hub name")
    parser.add_argument("video", metavar="VIDEO", help="a video file, or a picture")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument(
        "settings",
        metavar="key=value",
        nargs="*",
        default=[],
        help="as media.max_frames=64 prompt.tags=[answer]",
    )
    parser.add_argument(
        "--option", metavar="TEXT", action="append", default=[], help="a choice; once for each"
    )
    parser.add_argument(
        "--also",
        metavar="FILE",
        action="append",
        default=[],
        help="a further video or picture; once for each",
    )
    parser.add_argument("--start", metavar="S", type=float, default=0.0, help="the second the clip starts at")
    parser.add_argument("--end", metavar="S", type=float, help="the second it ends at; else the video's end")
    parser.add_argument("--task", choices=get_args(Task), help="the kind of answer; else a choice or open")
    parser.add_argument("--frames", metavar="DIR", type=Path, help="write the cited frames there, as PNG")
    parser.add_argument("--server", metavar="URL", help="ask a server that egogrpo serve has started")
    parser.add_argument(
        "--regex", default="", help="what the whole completion has to match (vLLM's structured output)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
