"""A codec: streams to codes and back, and its folder.

    codec = load_codec("codecs/motion")
    codes_KQ = codec.encode(read_stream("walk.motion.npz"))
    values_TC = codec.decode(codes_KQ)

A folder has `codec.json` (the spec, and the statistics of the streams that it was made from) and, unless it is one of
uniform bins, `weights.safetensors`. It is loaded without torch if its kind needs none, and without a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grpo.codec import bins
from grpo.codec.spec import CodecSpec, check_stream
from grpo.codec.streams import Stream
from grpo.codec.texts import check_codes, token_names

SPEC_FILE, WEIGHTS_FILE = "codec.json", "weights.safetensors"


class Quantiser(Protocol):
    """What a codec does by its kind."""

    def encode(self, values_TC: np.ndarray) -> np.ndarray:
        """The codes (K, Q) of values whose steps are a multiple of the downsampling."""
        ...

    def decode(self, codes_KQ: np.ndarray) -> np.ndarray:
        """The values (T, C), float32, in the streams' units."""
        ...

    def codebooks(self) -> list[np.ndarray]:
        """For each level a vector per code, float32: codes whose vectors are close mean values that are close."""
        ...

    def statistics(self) -> dict[str, Any]:
        """What the folder's `codec.json` holds of it."""
        ...

    def weights(self) -> bytes | None:
        """The content of the folder's `weights.safetensors`; None for a kind that has none."""
        ...


Loader = Callable[[CodecSpec, Mapping[str, Any], bytes | None], Quantiser]


def _load_bins(spec: CodecSpec, statistics: Mapping[str, Any], weights: bytes | None) -> Quantiser:
    return bins.Bins.load(spec, statistics)


def _load_vectors(spec: CodecSpec, statistics: Mapping[str, Any], weights: bytes | None) -> Quantiser:
    # Late: uniform bins need no torch.
    from grpo.codec.network import Vectors

    return Vectors.load(spec, statistics, weights)


KINDS: dict[str, Loader] = {
    "bins": _load_bins,
    "residual": _load_vectors,
    "product": _load_vectors,
    "plain": _load_vectors,
}


@dataclass(frozen=True, eq=False)
class Codec:
    """A codec of one kind of streams.

    On one machine's CPU the same folder and stream give the same codes. Another CPU may round a network's sums
    otherwise, so that a latent vector between two codes becomes the other one, and values differ in their last digits.
    """

    spec: CodecSpec
    quantiser: Quantiser

    def encode(self, stream: Stream | np.ndarray) -> np.ndarray:
        """The codes (K, Q) of a stream, or of its values (T, C).

        Where the last code step has fewer time steps than the others, the last values stand for the missing ones:
        K = ceil(T / downsampling). ValueError for a stream of another rate, other channels or units, or shorter than
        one code step.
        """
        spec = self.spec
        if not isinstance(stream, Stream):
            stream = Stream(
                values_TC=stream, rate_hz=spec.rate_hz, start_s=0.0, channels=spec.channels, units=spec.units
            )
        check_stream(spec, stream)
        missing = -len(stream.values_TC) % spec.downsampling
        return self.quantiser.encode(np.pad(stream.values_TC, ((0, missing), (0, 0)), mode="edge"))

    def decode(self, codes_KQ: np.ndarray) -> np.ndarray:
        """The values (T, C) of K code steps, T = K * downsampling; what `encode` added at the end is among them."""
        check_codes(self.spec, codes_KQ)
        return self.quantiser.decode(codes_KQ)


def save_codec(codec: Codec, folder: Path) -> Codec:
    """Write a codec's folder, which must not hold another one; the codec with its digest."""
    if (folder / SPEC_FILE).exists():
        raise ValueError(f"{folder} has a codec already")
    folder.mkdir(parents=True, exist_ok=True)
    weights = codec.quantiser.weights()
    described = {
        "spec": {name: value for name, value in asdict(codec.spec).items() if name != "digest"},
        "tokens": token_names(codec.spec),
        "statistics": codec.quantiser.statistics(),
        "weights_sha256": None if weights is None else hashlib.sha256(weights).hexdigest(),
    }
    if weights is not None:
        (folder / WEIGHTS_FILE).write_bytes(weights)
    # Last: a folder without it is none.
    (folder / SPEC_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return Codec(replace(codec.spec, digest=digest_of(folder)), codec.quantiser)


def load_codec(folder: str | Path) -> Codec:
    """The codec of a folder; ValueError names what of it is missing or damaged."""
    folder = Path(folder)
    try:
        described = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        weights = _weights(folder, described["weights_sha256"])
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in described["spec"].items()
        }
        spec = CodecSpec(**given, digest=digest_of(folder))
        return Codec(spec, KINDS[spec.kind](spec, described["statistics"], weights))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no codec: it has no {Path(error.filename).name}") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the codec {folder} is damaged: {error}") from error


def _weights(folder: Path, sha256: str | None) -> bytes | None:
    if sha256 is None:
        return None
    content = (folder / WEIGHTS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{WEIGHTS_FILE} is not the file that {SPEC_FILE} was written with")
    return content


def digest_of(folder: Path) -> str:
    """The hash of a whole codec: its codec.json has the weights' hash."""
    try:
        return hashlib.sha256((folder / SPEC_FILE).read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no codec: it has no {SPEC_FILE}") from error
