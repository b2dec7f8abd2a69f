"""Streams in texts: `<sensor>` in a sample's question or target stands for the codes of its stream `sensor`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from grpo.codec.codec import SPEC_FILE, Codec, load_codec
from grpo.codec.spec import check_stream
from grpo.codec.streams import Stream, read_stream
from grpo.codec.texts import code_text
from grpo.groups import Sample
from grpo.media.reading import shown_end_s

CLOCK_TOLERANCE_S = 0.25
"""The most that a stream may start or end before or after its clip: files end with a frame, and clocks are rounded."""


@dataclass(frozen=True)
class StreamCodes:
    """The codes of streams, by the codecs in a model's folder."""

    folder: Path
    """The folder with a codec's folder for each name."""
    _texts: dict[tuple[str, str], str] = field(default_factory=dict)

    def in_text(self, text: str, sample: Sample) -> str:
        """The text with the codes of the sample's streams in their places; ValueError names a stream that has none."""
        if not sample.streams:
            return text
        places = re.compile(f"<({'|'.join(map(re.escape, sample.streams))})>")
        return places.sub(lambda place: self._codes(place[1], sample.streams[place[1]]), text)

    def check(self, sample: Sample) -> None:
        """Raise ValueError that names the stream which no codec of the model can read, or which is not of the clip.

        MediaError for a clip that can't be read, of which it is not known where it ends.
        """
        streams = {name: self._checked(name, path) for name, path in sample.streams.items()}
        spans = {name: (each.start_s, each.start_s + each.duration_s) for name, each in streams.items()}
        if spans and sample.clip_source is not None:
            source = sample.clip_source
            spans = {"clip": (source.start_s, shown_end_s(source)), **spans}
        first, *others = spans or [""]
        for name in others:
            if abs(spans[first][1] - spans[name][0]) <= CLOCK_TOLERANCE_S:
                # Actions: what is done after all that is seen.
                continue
            for what, own_s, its_s in zip(("starts", "ends"), spans[first], spans[name], strict=True):
                if abs(own_s - its_s) > CLOCK_TOLERANCE_S:
                    raise ValueError(
                        f"the stream {name!r} {what} at {its_s:g} s, and the "
                        f"{first if first == 'clip' else f'stream {first!r}'} at {own_s:g} s: {sample.streams[name]}"
                    )

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        return {file.parent.name: load_codec(file.parent) for file in self.folder.glob(f"*/{SPEC_FILE}")}

    def _checked(self, name: str, path: str) -> Stream:
        stream = read_stream(Path(path))
        if name in self.codecs:
            try:
                check_stream(self.codecs[name].spec, stream)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return stream

    def _codes(self, name: str, path: str) -> str:
        if (name, path) not in self._texts:
            if name not in self.codecs:
                known = ", ".join(sorted(self.codecs)) or "none"
                raise ValueError(
                    f"<{name}> stands for a stream, and the model has no codec {name!r}, but {known}"
                )
            codec = self.codecs[name]
            self._texts[name, path] = code_text(codec.spec, codec.encode(self._checked(name, path)))
        return self._texts[name, path]
