"""Folders of vector-quantised codecs, any length of streams, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from grpo.codec.codec import Codec, load_codec, save_codec
from grpo.codec.network import Vectors
from grpo.codec.streams import Stream
from grpo.codec.training import train_codec
from tests.support.waves import config, waves


@pytest.fixture(scope="module")
def codec() -> Codec:
    return train_codec(config(num_epochs=3), waves(8), lambda row: None)


def test_a_folder_gives_the_same_codec(codec: Codec, tmp_path: Path) -> None:
    saved = save_codec(codec, tmp_path)
    loaded = load_codec(tmp_path)
    assert loaded.spec == saved.spec and loaded.spec.digest
    codes_KQ = codec.encode(waves(1)[0])
    np.testing.assert_array_equal(loaded.encode(waves(1)[0]), codes_KQ)
    np.testing.assert_array_equal(loaded.decode(codes_KQ), codec.decode(codes_KQ))
    assert {path.name for path in tmp_path.iterdir()} == {"codec.json", "weights.safetensors"}
    described = json.loads((tmp_path / "codec.json").read_text())
    assert described["spec"]["units"] == ["m", "m", "deg/s"]
    assert described["tokens"] == [
        "<wave>", "<wave_0_0> to <wave_0_15>", "<wave_1_0> to <wave_1_15>", "</wave>",
    ]  # fmt: skip
    mean_C = np.mean([stream.values_TC.mean(axis=0) for stream in waves(8)], axis=0)
    # Statistics are in units: of the streams that it was trained on, all but one of these.
    assert described["statistics"]["mean"][2] == pytest.approx(mean_C[2], abs=5)


@pytest.mark.parametrize("num_steps", [4, 5, 6, 7, 8, 45, 200])
def test_a_stream_of_any_length_is_encoded_its_end_filled_with_its_last_values(
    codec: Codec, num_steps: int
) -> None:
    values_TC = waves(1, num_steps=num_steps)[0].values_TC
    codes_KQ = codec.encode(values_TC)
    num_codes = -(-num_steps // 4)
    assert codes_KQ.shape == (num_codes, 2) and codes_KQ.dtype == np.int64
    assert codec.decode(codes_KQ).shape == (4 * num_codes, 3)
    filled_TC = np.concatenate([values_TC, np.repeat(values_TC[-1:], 4 * num_codes - num_steps, axis=0)])
    np.testing.assert_array_equal(codes_KQ, codec.encode(filled_TC))


def test_codebooks_are_vectors_of_each_level(codec: Codec) -> None:
    assert [codebook.shape for codebook in codec.quantiser.codebooks()] == [(16, 4), (16, 4)]
    assert all(codebook.dtype == np.float32 for codebook in codec.quantiser.codebooks())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rate_hz": 30.0}, "30 Hz, the codec wave 20 Hz"),
        ({"units": ("mm", "m", "deg/s")}, "other units than the codec wave: x in mm and not m"),
        ({"channels": ("x", "z", "turn")}, "without y, with z"),
        ({"values_TC": waves(1)[0].values_TC[:3]}, "3 time steps are shorter than one code of wave, 4"),
    ],
)
def test_a_stream_that_is_not_the_codecs_is_refused_by_name(codec: Codec, changed: dict, says: str) -> None:
    stream = waves(1)[0]
    fields = {
        name: getattr(stream, name) for name in ("values_TC", "rate_hz", "start_s", "channels", "units")
    }
    with pytest.raises(ValueError, match=says):
        codec.encode(Stream(**(fields | changed)))


def test_nan_in_a_sensor_is_refused_by_channel_and_step(codec: Codec) -> None:
    values_TC = waves(1)[0].values_TC.copy()
    values_TC[5, 1] = np.nan
    with pytest.raises(ValueError, match="channel y is nan at time step 5"):
        codec.encode(values_TC)


def test_a_damaged_folder_is_refused_by_its_name(codec: Codec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path)
    spec_file, weights_file = tmp_path / "codec.json", tmp_path / "weights.safetensors"
    whole, weights = json.loads(spec_file.read_text()), weights_file.read_bytes()

    def refuses(says: str) -> None:
        with pytest.raises(ValueError, match=f"^the codec {tmp_path} is damaged: {says}"):
            load_codec(tmp_path)

    for damaged in (weights[:-1], weights[:-9] + b"\0" * 9, b""):
        weights_file.write_bytes(damaged)
        refuses("weights.safetensors is not the file that codec.json was written with")
    weights_file.write_bytes(weights)
    for part, key, value in (
        ("statistics", "scale", [1.0, 0.0, 1.0]),
        ("statistics", "mean", [1.0]),
        ("statistics", "network", {"width": 16, "depth": 2, "code_dim": 4}),
        ("statistics", "network", {"width": 0, "depth": 1, "code_dim": 4}),
        ("spec", "downsampling", 3),
        ("spec", "codebook_size", 17),
        ("spec", "kind", "bins"),
    ):
        spec_file.write_text(json.dumps(whole | {part: whole[part] | {key: value}}))
        refuses("")
    spec_file.write_text(json.dumps(whole | {"weights_sha256": None}))
    refuses("a codec of kind residual has weights")
    weights_file.unlink()
    spec_file.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=f"^{tmp_path} is no codec: it has no weights.safetensors$"):
        load_codec(tmp_path)


def test_other_weights_are_another_version_of_the_codec(codec: Codec, tmp_path: Path) -> None:
    first = save_codec(codec, tmp_path / "a").spec.digest
    moved = load(codec.quantiser.weights() or b"")
    moved["codebooks_QVD"][0, 0] += 1e-3

    second = save_codec(
        Codec(codec.spec, Vectors.load(codec.spec, codec.quantiser.statistics(), save(moved))), tmp_path / "b"
    ).spec.digest
    assert first != second == load_codec(tmp_path / "b").spec.digest
