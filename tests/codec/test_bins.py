"""Codecs of uniform bins, and what is true of every codec: its folder, and the streams that it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, digest_of, load_codec, save_codec
from grpo.codec.streams import Stream


def stream(values_TC: np.ndarray, **fields) -> Stream:
    kept = {"rate_hz": 20.0, "start_s": 0.0, "channels": ("x", "yaw"), "units": ("m", "deg")}
    return Stream(values_TC=values_TC.astype(np.float32), **(kept | fields))


def ramp() -> Stream:
    return stream(np.stack([np.linspace(0, 8, 81), np.linspace(-4, 4, 81)], axis=1))


@pytest.fixture
def codec() -> Codec:
    return Codec(*fit_bins("action", [ramp()], codebook_size=8, coverage=1.0))


def test_a_value_becomes_the_centre_of_its_bin(codec: Codec) -> None:
    # 8 bins from 0 to 8 are 1 wide, as those from -4 to 4: 2.3 is in bin 2, whose centre is 2.5.
    codes_KQ = codec.encode(np.array([[2.3, -4.0], [8.0, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(codes_KQ, [[2, 0], [7, 4]])
    np.testing.assert_allclose(codec.decode(codes_KQ), [[2.5, -3.5], [7.5, 0.5]])
    assert (codec.spec.levels, codec.spec.downsampling, codec.spec.codes_per_s) == (2, 1, 40.0)


def test_a_value_outside_is_in_the_outermost_bin(codec: Codec) -> None:
    np.testing.assert_array_equal(codec.encode(np.array([[-1e9, 1e9]], dtype=np.float32)), [[0, 7]])


def test_bins_span_percentiles_so_that_a_spike_does_not_widen_them() -> None:
    values_TC = np.repeat(np.linspace(0, 1, 1001)[:, None], 2, axis=1)
    values_TC[-1] = 1000.0
    _, bins = fit_bins("action", [stream(values_TC)], codebook_size=8)
    np.testing.assert_allclose(bins.low_C, 0.01, atol=1e-6)
    np.testing.assert_allclose(bins.high_C, 0.99, atol=1e-6)


def test_a_constant_channel_is_decoded_exactly() -> None:
    constant = stream(np.full((9, 2), 0.3))
    codec = Codec(*fit_bins("action", [constant], codebook_size=8))
    np.testing.assert_array_equal(codec.decode(codec.encode(constant)), constant.values_TC)


def test_a_folder_gives_the_same_codec(codec: Codec, tmp_path: Path) -> None:
    saved = save_codec(codec, tmp_path / "action")
    loaded = load_codec(tmp_path / "action")
    assert loaded.spec == saved.spec and len(loaded.spec.digest) == 64
    codes_KQ = loaded.encode(ramp())
    np.testing.assert_array_equal(codes_KQ, codec.encode(ramp()))
    np.testing.assert_array_equal(loaded.decode(codes_KQ), codec.decode(codes_KQ))
    assert not (tmp_path / "action" / "weights.safetensors").exists()


def test_a_codec_of_other_statistics_has_another_digest(codec: Codec, tmp_path: Path) -> None:
    first = save_codec(codec, tmp_path / "a")
    assert save_codec(codec, tmp_path / "b").spec.digest == first.spec.digest
    other = Codec(*fit_bins("action", [ramp()], codebook_size=8, coverage=0.9))
    assert save_codec(other, tmp_path / "c").spec.digest != first.spec.digest


def test_a_folder_with_a_codec_is_not_written_over(codec: Codec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path)
    with pytest.raises(ValueError, match="has a codec already"):
        save_codec(codec, tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rate_hz": 30.0}, "the stream has 30 Hz, the codec action 20 Hz"),
        ({"units": ("m", "rad")}, "other units than the codec action: yaw in rad and not deg"),
        ({"channels": ("x", "z")}, "without yaw, with z"),
        ({"channels": ("yaw", "x")}, "in another order"),
    ],
)
def test_a_stream_of_another_kind_is_refused_by_name(codec: Codec, fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        codec.encode(stream(np.zeros((5, 2)), **fields))


def test_values_of_other_channels_or_nan_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="3 channels have 2 names"):
        codec.encode(np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match="channel yaw is nan at time step 1"):
        codec.encode(np.array([[0, 0], [0, np.nan]], dtype=np.float32))


def test_codes_that_it_has_not_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        codec.decode(np.array([[0, 8]]))
    with pytest.raises(ValueError, match="2 levels"):
        codec.decode(np.array([[0]]))


def test_a_damaged_folder_is_refused_by_its_name(codec: Codec, tmp_path: Path) -> None:
    for reads in (load_codec, digest_of):
        with pytest.raises(ValueError, match=f"^{tmp_path} is no codec: it has no codec.json$"):
            reads(tmp_path)
    save_codec(codec, tmp_path)
    file = tmp_path / "codec.json"
    whole = json.loads(file.read_text())
    spec = whole["spec"]
    damaged = [
        "{", "[]", "{}",
        json.dumps(whole | {"spec": spec | {"kind": "tree"}}),
        json.dumps(whole | {"spec": spec | {"levels": 3}}),
        json.dumps(whole | {"spec": spec | {"levels": "2"}}),
        json.dumps(whole | {"spec": spec | {"unknown": 1}}),
        json.dumps(whole | {"statistics": {"low": [0.0, 0.0], "high": [1.0]}}),
        json.dumps(whole | {"statistics": {"low": [0.0, float("nan")], "high": [1.0, 1.0]}}),
    ]  # fmt: skip
    for text in damaged:
        file.write_text(text)
        with pytest.raises(ValueError, match=f"^the codec {tmp_path} is damaged: "):
            load_codec(tmp_path)


def test_bins_need_no_torch(codec: Codec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "action")
    asks = f"import sys; from grpo.codec.codec import load_codec; load_codec({str(tmp_path / 'action')!r}); "
    done = subprocess.run(
        [sys.executable, "-c", asks + "print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
