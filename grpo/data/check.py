"""Media checked before a model is loaded: every file is there, and a spread of them opens."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from grpo.groups import Sample


def check_media(samples: Sequence[Sample], *, num_probes: int) -> None:
    """Raise unless all video files exist and the headers of up to num_probes clips, spread evenly, open.

    Raises FileNotFoundError that names the first missing file and counts the others, or MediaError.
    """
    clips = {
        (sample.video, sample.start_s): sample for sample in reversed(samples) if sample.video is not None
    }
    distinct = list(reversed(clips.values()))
    _check_files(distinct)
    if not distinct or num_probes < 1:
        return
    # Imported late: without PyAV, text-only data can still be read.
    from grpo.media.decode import MediaError, probe

    spread = np.linspace(0, len(distinct) - 1, min(num_probes, len(distinct))).round().astype(int)
    for sample in (distinct[index] for index in spread):
        assert sample.video is not None
        try:
            probe(sample.video, start_s=sample.start_s)
        except MediaError as error:
            raise MediaError(f"{sample.source}: {error}") from None


def _check_files(samples: Sequence[Sample]) -> None:
    missing: dict[str, Sample] = {}
    for sample in samples:
        if sample.video is not None and not os.path.isfile(sample.video):
            missing.setdefault(sample.video, sample)
    if missing:
        path, sample = next(iter(missing.items()))
        others = f" ({len(missing) - 1} more files are missing)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{sample.source}: no such video file: {path}{others}")
