"""Streams: written and read back, and refused by name where no codec could work on them."""

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from grpo.codec.streams import Stream, read_stream, write_stream


def stream(values_TC: np.ndarray, **fields) -> Stream:
    kept = {"rate_hz": 20.0, "start_s": 1.5, "channels": ("x", "yaw"), "units": ("m", "deg")}
    return Stream(values_TC=values_TC, **(kept | fields))


VALUES_TC = np.array([[0.1, -3.0], [0.2, 1e-7], [1e8, 4.0]], dtype=np.float32)


def test_a_stream_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_stream(tmp_path / "walk.npz", stream(VALUES_TC))
    read = read_stream(tmp_path / "walk.npz")
    np.testing.assert_array_equal(read.values_TC, VALUES_TC)
    assert (read.rate_hz, read.start_s, read.channels, read.units) == (20.0, 1.5, ("x", "yaw"), ("m", "deg"))
    assert read.values_TC.dtype == np.float32 and read.duration_s == pytest.approx(3 / 20)


def test_threads_parse_headers_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "walk.npz", stream(VALUES_TC))
    parse, alone, met = ast.literal_eval, Lock(), []

    def slow_parse(header: str) -> object:
        met.append(not alone.acquire(blocking=False))
        time.sleep(0.001)
        alone.release()
        return parse(header)

    monkeypatch.setattr(ast, "literal_eval", slow_parse)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_stream, [tmp_path / "walk.npz"] * 8))
    assert met and not any(met)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_channel_and_step(bad: float) -> None:
    values_TC = VALUES_TC.copy()
    values_TC[2, 1] = bad
    with pytest.raises(ValueError, match=f"^channel yaw is {bad} at time step 2$"):
        stream(values_TC)


@pytest.mark.parametrize(
    ("values_TC", "fields", "says"),
    [
        (np.zeros((0, 2), np.float32), {}, "the stream is empty: 0 time steps"),
        (
            np.zeros((3, 0), np.float32),
            {"channels": (), "units": ()},
            "the stream is empty: 3 time steps of 0",
        ),
        (np.zeros((3, 2)), {}, "not float64"),
        (np.zeros(6, np.float32), {}, r"not float32 of \(6,\)"),
        (VALUES_TC, {"channels": ("x",)}, "2 channels have 1 names and 2 units"),
        (VALUES_TC, {"units": ("m",)}, "2 channels have 2 names and 1 units"),
        (VALUES_TC, {"channels": ("x", "x")}, "a name of its own"),
        (VALUES_TC, {"units": ("m", "")}, "a unit"),
        (VALUES_TC, {"rate_hz": 0.0}, "a rate of 0.0 Hz"),
        (VALUES_TC, {"rate_hz": float("nan")}, "a rate of nan Hz"),
        (VALUES_TC, {"start_s": float("inf")}, "from inf s"),
    ],
)
def test_what_is_no_stream_is_refused(values_TC: np.ndarray, fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stream(values_TC, **fields)


def test_a_file_that_is_no_stream_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "other.npz", values=VALUES_TC)
    np.savez(tmp_path / "pickled.npz", values=np.array([{"a": 1}], dtype=object), rate_hz=1.0)
    np.save(tmp_path / "bare.npy", VALUES_TC)
    write_stream(tmp_path / "whole.npz", stream(VALUES_TC))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-60])
    for name in ("text.npz", "other.npz", "pickled.npz", "bare.npy", "cut.npz", "missing.npz"):
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: "):
            read_stream(tmp_path / name)


def test_nan_in_a_file_is_refused_with_file_channel_and_step(tmp_path: Path) -> None:
    values_TC = VALUES_TC.copy()
    values_TC[1, 0] = np.nan
    np.savez(
        tmp_path / "s.npz",
        values=values_TC,
        rate_hz=9.0,
        start_s=0.0,
        channels=["x", "yaw"],
        units=["m", "deg"],
    )
    with pytest.raises(ValueError, match=rf"^{tmp_path / 's.npz'}: channel x is nan at time step 1$"):
        read_stream(tmp_path / "s.npz")
