"""The check of media before a model is loaded: every file is there, and a spread of them opens."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np

from grpo.data.errors import NoSuchFile
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError


def check_media(samples: Sequence[Sample], *, num_probes: int) -> None:
    """Raise unless all video files exist and the headers of up to num_probes clips, spread evenly, open.

    A file in a folder that can't be looked into is left to the probes.

    Raises FileNotFoundError that names the first missing file and counts the others, or MediaError.
    """
    clips = {
        (source.video, source.frames, source.start_s): (sample, source)
        for sample in reversed(samples)
        for source in reversed(sample.sources)
    }
    distinct = list(reversed(clips.values()))
    # In the order of the samples, each of which is named once.
    if problems := missing_media({id(sample): sample for sample, _ in distinct}.values()):
        lack = "more clip lacks" if len(problems) == 2 else "more clips lack"
        more = f" ({len(problems) - 1} {lack} files; egogrpo doctor names all)"
        raise NoSuchFile(problems[0].source, problems[0].reason + (more if len(problems) > 1 else ""))
    if not distinct or num_probes < 1:
        return
    # Imported late: without PyAV, text-only data can still be read.
    from grpo.media.reading import probe_source

    spread = np.linspace(0, len(distinct) - 1, min(num_probes, len(distinct))).round().astype(int)
    for sample, source in (distinct[index] for index in spread):
        try:
            probe_source(source)
        except MediaError as error:
            raise MediaError(f"{sample.source}: {error}") from None


def missing_media(samples: Iterable[Sample]) -> list[NoSuchFile]:
    """The errors for samples whose video, or one of whose images, is not there.

    The first says where a file of its name is, if a path could start from another folder.
    """
    problems: list[NoSuchFile] = []
    for sample in samples:
        lacking = [(source, missing) for source in sample.sources if (missing := missing_files(source))]
        if lacking:
            (source, missing), *more = lacking
            what = "image" if source.video is None else "video file"
            others = f" (and {len(missing) - 1} more of its images)" if len(missing) > 1 else ""
            others += f" (and {len(more)} more of its media)" if more else ""
            hint = "" if problems else _elsewhere(missing[0])
            reason = f"sample {sample.id}: no such {what}: {missing[0]}{others}{hint}"
            problems.append(NoSuchFile(sample.source, reason))
    return problems


def _elsewhere(path: str) -> str:
    """A hint at the file in another folder that its path may start from; empty if there is none."""
    parts = Path(os.path.abspath(path)).parts
    tails = [parts[number:] for number in range(1, len(parts))]
    heads = [Path(*parts[:number]) for number in range(len(parts) - 1, 0, -1)] + [Path.cwd()]
    found = next((f for tail in tails for h in heads if (f := h.joinpath(*tail)).is_file()), None)
    return f"; there is {found}: set media_root to the folder that the paths start from" if found else ""


def missing_files(source: ClipSource) -> list[str]:
    """The paths of a clip's video or images that are not there, or of the folder that its images are in."""
    may_be_folder = source.video is None and len(source.frames) == 1
    paths = source.frames if source.video is None else (source.video,)
    return [path for path in paths if not _is_there(path, may_be_folder=may_be_folder)]


def _is_there(path: str, *, may_be_folder: bool) -> bool:
    """Whether a file is there; one in a folder that can't be looked into may be."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return S_ISREG(mode) or (S_ISDIR(mode) and may_be_folder)
