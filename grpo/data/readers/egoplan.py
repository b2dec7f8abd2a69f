"""EgoPlan-Bench, EgoPlan-IT and EgoPlan-Bench2: what should I do next?

(https://github.com/ChenYi99/EgoPlan, https://github.com/qiulu66/EgoPlan-Bench2.) The clip runs from the task's
start to the current observation, which is thus its last frame; what was done in it (`task_progress_metadata`)
becomes its key moments. With nothing done before it, the clip is the last second. EgoPlan-IT has
`negative_answers` in place of choices: three of these and the answer, in an order that the id decides.

Under the media root, as the data sets' READMEs lay them out: `Ego4D/v1_288p/<video>.mp4`, and EPIC-KITCHENS' videos
(in place of its frames) as `EPIC-KITCHENS/P01/videos/P01_13.MP4`.

SEED-Bench-R1 (https://github.com/TencentARC/SEED-Bench-R1), whose records name a `video_basename`, brings files that
hold the progress alone, `videos/<video_source>/<video_basename>`, and pictures of the observations, `images/...`. Such
a clip is the whole file, without the picture and without key moments, which are on the clock of the video that it was
cut from. With nothing done before it, the clip is the picture.

`egoplan_frame` shows the current observation as a picture of its own behind the clip: the clip's last frame, or
SEED-Bench-R1's picture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace

from grpo.data.fields import (
    LETTERS,
    Record,
    Span,
    as_options,
    check_bounds,
    check_letter,
    get_name,
    get_number,
    get_objects,
    get_text,
    get_texts,
    has,
    on_clips_clock,
    shown,
    without,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

EGO4D_FPS = 30
EGO4D_VIDEO = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
EPIC_VIDEO = re.compile(r"(P\d\d)_(\d\d\d?)")
NUM_NEGATIVES = 3
LAST_S = 1.0
QUESTION = (
    "Considering the progress shown in the video and my current observation in the last frame, "
    "what action should I take next in order to {goal}?"
)
"""The question of EgoPlan's records, and of EgoPlan-Bench2's README; its records have none."""
CHOICE_KEYS = ("choice_a", "choice_b", "choice_c", "choice_d")
OWN_KEYS = ("question", *CHOICE_KEYS, "golden_choice_idx", "answer", "negative_answers")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    own_id = get_name(record, "sample_id")
    choices, answer = _choices(record, own_id)
    is_cut = record.get("video_basename") is not None
    clip_source, progress_s = (_cut(record, place), []) if is_cut else _clip(record, own_id, place)
    asked = "task_goal" if record.get("question") is None else "question"
    question = get_text(record, asked)
    yield Sample(
        id=place.id(own_id),
        question=question if asked == "question" else QUESTION.format(goal=question),
        answer=answer,
        task="choice",
        source=place.source,
        options=choices,
        clip_source=clip_source,
        keyframes_s=on_clips_clock(progress_s, clip_source, key="task_progress_metadata"),
        columns=without(record, *OWN_KEYS),
    )


def translate_with_frame(record: Record, place: Place) -> Iterator[Sample]:
    """The samples with the current observation as a picture behind the clip; a clip that is it already stays alone."""
    for sample in translate(record, place):
        clip_source = sample.clip_source
        assert clip_source is not None
        if clip_source.is_picture:
            yield sample
        elif record.get("video_basename") is not None:
            yield replace(sample, media=(clip_source, _observation(record, place)))
        else:
            yield replace(sample, media=(clip_source, replace(clip_source, start_s=clip_source.end_s)))


read_egoplan = Reader(translate=translate, is_like=has("sample_id", "current_observation_frame"))
read_egoplan_frame = Reader(translate=translate_with_frame, is_like=read_egoplan.is_like)


def _choices(record: Record, own_id: str) -> tuple[tuple[str, ...], str]:
    """The options and the right one's letter."""
    if record.get("negative_answers") is None:
        choices = as_options([record.get(key) for key in CHOICE_KEYS], "choice_a to choice_d")
        return choices, check_letter(get_text(record, "golden_choice_idx"), len(choices))
    right = get_text(record, "answer")
    wrong = [other for other in dict.fromkeys(get_texts(record, "negative_answers")) if other != right]
    if not wrong:
        raise ValueError(f"'negative_answers' has none that differs from the answer {right!r}")
    # The id as a seed: the order depends neither on other records nor, as a hash would, on the process.
    shuffled = random.Random(own_id)
    choices = [right, *shuffled.sample(wrong, min(NUM_NEGATIVES, len(wrong)))]
    shuffled.shuffle(choices)
    return tuple(choices), LETTERS[choices.index(right)]


def _video(record: Record, own_id: str) -> tuple[str, float]:
    """The path of the record's video, and its frames per second as the annotations count them."""
    video = get_text(record, "video_id") if record.get("video_id") is not None else own_id.rpartition("_")[0]
    source = record.get("video_source") or ("Ego4D" if EGO4D_VIDEO.fullmatch(video) else None)
    if source is None:
        raise ValueError(
            f"'video_source' is missing: does {shown(video)} belong to 'Ego4D' or to 'EpicKitchens'?"
        )
    if source == "Ego4D":
        return f"Ego4D/v1_288p/{video}.mp4", EGO4D_FPS
    match = EPIC_VIDEO.fullmatch(video)
    if source != "EpicKitchens" or match is None:
        raise ValueError(f"no video {shown(video)} of the 'video_source' {shown(source)} is known")
    # EPIC-KITCHENS-55's (two digits) frames were taken at 60 per second, the extension's at 50:
    # https://github.com/epic-kitchens/epic-kitchens-100-annotations.
    return f"EPIC-KITCHENS/{match[1]}/videos/{video}.MP4", 60 if len(match[2]) == 2 else 50


def _cut(record: Record, place: Place) -> ClipSource:
    """SEED-Bench-R1's video of the progress, or picture of the observation where there is none."""
    source = get_text(record, "video_source")
    if get_objects(record, "task_progress_metadata"):
        return ClipSource(video=place.media(f"videos/{source}/{get_text(record, 'video_basename')}"))
    return _observation(record, place)


def _observation(record: Record, place: Place) -> ClipSource:
    """SEED-Bench-R1's picture of the current observation."""
    source, name = get_text(record, "video_source"), get_text(record, "current_observation_basename")
    return ClipSource(frames=(place.media(f"images/{source}/{name}"),))


def _clip(record: Record, own_id: str, place: Place) -> tuple[ClipSource, list[Span]]:
    """The clip and what was done up to its end, on the file's clock."""
    video, fps = _video(record, own_id)
    end_s = get_number(record, "current_observation_frame") / fps
    done = [
        (get_number(step, "start_frame") / fps, get_number(step, "stop_frame") / fps)
        for step in get_objects(record, "task_progress_metadata")
    ]
    # The published lists may go on behind the observation: that is the future.
    done = [(first_s, min(last_s, end_s)) for first_s, last_s in done if first_s < end_s]
    starts_s = [first_s for first_s, _ in done]
    if record.get("task_start_frame") is not None:
        starts_s.append(get_number(record, "task_start_frame") / fps)
    start_s = min(starts_s) if done else max(end_s - LAST_S, 0.0)
    check_bounds(start_s, end_s, keys=("task's start", "current_observation_frame"))
    return ClipSource(video=place.media(video), start_s=start_s, end_s=end_s), done
