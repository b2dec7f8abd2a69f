"""`egogrpo codec train`: settings, streams and folders from the command line, and what it leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from grpo.codec.codec import load_codec
from grpo.codec.settings import CodecConfig, contradictions
from grpo.codec.streams import write_stream
from grpo.commands.__main__ import main
from grpo.config.load import load_settings
from tests.support import tiny
from tests.support.waves import TINY, waves

CONFIGS = sorted((tiny.ROOT / "configs" / "codecs").glob("*.yaml"))


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A command's arguments: a file of settings, and the streams in a folder."""
    (tmp_path / "waves" / "deep").mkdir(parents=True)
    for number, stream in enumerate(waves(6)):
        write_stream(tmp_path / "waves" / "deep" / f"{number}.motion.npz", stream)
    (tmp_path / "codec.yaml").write_text(yaml.safe_dump(TINY | {"num_epochs": 2}))
    return [
        "codec",
        "train",
        str(tmp_path / "codec.yaml"),
        f"streams=[{tmp_path}/waves]",
        f"out={tmp_path}/codec",
    ]


def test_it_writes_a_codec_with_figures_and_their_picture(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0].startswith("epoch 1/2; loss ")
        and printed[-1] == "codec wave: 2 x 16 codes, 10 tokens a second"
    )
    rows = [json.loads(line) for line in (tmp_path / "codec" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"held_out/error/m", "held_out/error/deg/s", "held_out/lost_frac", "train/velocity"} <= rows[
        1
    ].keys()
    assert f"{rows[1]['held_out/error/deg/s']:.4g} deg/s" in printed[1]
    assert Image.open(tmp_path / "codec" / "curves.png").width > 1000
    codec = load_codec(tmp_path / "codec")
    assert codec.decode(codec.encode(waves(1)[0])).shape == (48, 3)

    assert main([*settings, "num_epochs=3"]) == 1
    assert "has a codec already" in capsys.readouterr().err


def test_bins_are_a_kind(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*settings, "kind=bins", f"streams=[{tmp_path}/waves/**/*.motion.npz]"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "codec wave: 3 x 16 codes, 60 tokens a second"
    assert load_codec(tmp_path / "codec").spec.kind == "bins"


def spoiled(path: Path, **changed) -> None:
    with np.load(path) as arrays:
        fields = dict(arrays)
    np.savez(path, **(fields | changed))


@pytest.mark.parametrize(
    ("settings_after", "changed", "says"),
    [
        (["levles=2"], {}, "no setting levles; did you mean levels"),
        (["kind=tree"], {}, "kind"),
        (["name=Motion_1"], {}, "a codec's name is lower-case letters and digits"),
        (["downsampling=3"], {}, "window_steps=16 is no multiple of downsampling=3"),
        (["codebook_size=1"], {}, "codebook_size must be at least 2"),
        (["terms.positions=1"], {}, "positions_fn is not set"),
        (["positions_fn=no_module:f"], {}, "positions_fn: no_module does not import"),
        (["device=abacus"], {}, "device=abacus"),
        (["streams=[nowhere]"], {}, "no file nowhere"),
        (["window_steps=400"], {}, "0.motion.npz: 48 time steps are fewer than a window's 400"),
        ([], {"values": np.full((48, 3), np.nan, np.float32)}, "3.motion.npz: channel x is nan at time step 0"),
        ([], {"rate_hz": 10.0}, "3.motion.npz: unlike .*0.motion.npz: the stream has 10 Hz"),
        ([], {"units": np.array(["m", "mm", "deg/s"])}, "3.motion.npz: unlike .* y in mm and not m"),
        ([], {"channels": np.array(["x", "z", "turn"])}, "3.motion.npz: unlike .* without y, with z"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_one_line_before_anything_is_trained(
    settings: list[str], settings_after: list[str], changed: dict, says: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if changed:
        spoiled(tmp_path / "waves" / "deep" / "3.motion.npz", **changed)
    assert main([*settings, *settings_after]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error

    assert re.search(says, error), error
    assert not (tmp_path / "codec" / "codec.json").exists()


def test_a_library_that_is_missing_is_named_with_its_extra(settings: list[str]) -> None:
    code = (
        "import sys; sys.modules['vector_quantize_pytorch'] = None; from grpo.commands.__main__ import main; "
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main({settings!r}))"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: egogrpo codec needs vector_quantize_pytorch: pip install egogrpo[codecs]"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_examples_are_settings(path: Path) -> None:
    config = load_settings([str(path)], CodecConfig, contradictions)
    assert config.name and config.streams


def test_there_are_examples() -> None:
    assert {"motion", "sensor", "egolm"} <= {path.stem for path in CONFIGS}
