"""Files that can't be read as a clip: each is refused in one line that says why."""

from __future__ import annotations

import os
import random
from pathlib import Path

import av
import pytest

from grpo.media.clip import ClipSource, MediaError
from grpo.media.decode import probe
from tests.support import changed_videos
from tests.support.videos import numbers, read_video, refusal, write_sound, write_video


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name, target in (("a.mp4", "b.mp4"), ("b.mp4", "a.mp4")):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert refusal(tmp_path / "a.mp4").endswith("a.mp4: no such file")  # links in a circle
    assert refusal(tmp_path / "nowhere.mp4").endswith("nowhere.mp4: no such file")
    assert refusal(tmp_path).endswith("not a file")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4").endswith("not a file")


@pytest.mark.parametrize("content", [b"", b"this is a text\n" * 50, bytes(range(256)) * 40])
def test_what_is_no_video_is_refused_in_silence(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    assert "cannot be read as a video" in refusal(path)
    with pytest.raises(MediaError, match="cannot be read as a video"):
        probe(ClipSource(video=str(path)))
    assert capfd.readouterr() == ("", "")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.wav")
    assert "no video stream" in refusal(path)
    with pytest.raises(MediaError, match="no video stream"):
        probe(ClipSource(video=path))


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("empty.mp4", "faststart", "no video stream"),
        ("empty.mkv", "", "cannot be read as a video"),
        ("fragmented.mp4", "empty_moov", "holds no frames"),
    ],
)
def test_a_video_of_zero_frames_is_refused(name: str, flags: str, reason: str, tmp_path: Path) -> None:
    options = {"movflags": flags} if flags else {}
    path = write_video(tmp_path / name, num_frames=0, container_options=options)
    assert reason in refusal(path)
    with pytest.raises(MediaError, match=reason):
        probe(ClipSource(video=path))


def test_a_clip_between_two_frames_is_refused(sparse_mp4: str) -> None:
    assert "no frame is shown" in refusal(sparse_mp4, start_s=1.01, end_s=1.02)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "hls.m3u8",
            "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n",
            "playlists are not followed",
        ),
        ("hls.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n", "Invalid data"),
        ("concat.mp4", "ffconcat version 1.0\nfile {secret}\n", "playlists are not followed"),
        (
            "session.mp4",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
            "Invalid data",
        ),
    ],
)
def test_a_list_of_other_files_is_refused(name: str, content: str, reason: str, tmp_path: Path) -> None:
    """It may name files anywhere, outside of media_root too, or addresses."""
    secret = write_video(tmp_path / "secret.ts", num_frames=30)
    path = tmp_path / "media" / name
    path.parent.mkdir()
    path.write_text(content.format(secret=secret))
    assert "cannot be read as a video: " in refusal(path) and reason in refusal(path)
    with pytest.raises(MediaError, match="cannot be read as a video"):
        probe(ClipSource(video=str(path)))


def test_a_picture_turned_by_no_right_angle_is_refused(tmp_path: Path) -> None:
    one, half, root = 1 << 16, 1 << 15, 56756
    matrix = [half, root, 0, -root, half, 0, 0, 0, 1 << 30]
    assert "no right angle" in refusal(write_video(tmp_path / "turned.mp4", matrix=matrix))
    # A scale is no turn, and a matrix of zeros says nothing.
    for name, scale in (("scaled.mp4", 2 * one), ("zeros.mp4", 0)):
        path = write_video(tmp_path / name, matrix=[scale, 0, 0, 0, scale, 0, 0, 0, 1 << 30])
        assert numbers(read_video(path))[:3] == [0, 8, 16]


def test_a_video_stream_without_a_packet_is_not_replaced_by_its_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail.mkv"
    write_video(path)
    changed_videos.with_thumbnail_alone(path)
    assert "the video stream holds no frames" in refusal(path)


def test_a_start_behind_the_end_is_refused(sparse_mp4: str) -> None:
    assert "starts at 3 s, but the video ends at 3 s" in refusal(sparse_mp4, start_s=3.0)
    with pytest.raises(MediaError, match="starts at 7.5 s, but the video ends at 3 s"):
        probe(ClipSource(video=sparse_mp4, start_s=7.5))


@pytest.mark.parametrize(
    ("options", "reason"), [({"movflags": "faststart"}, "cut off or damaged after"), ({}, "no video stream")]
)
def test_a_file_cut_off_is_refused(
    options: dict[str, str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the index at the start of the file, and at its end, where the cut takes it away."""
    path = Path(write_video(tmp_path / "cut.mp4", container_options=options))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert reason in refusal(path)
    assert capfd.readouterr().err == ""


def test_damage_in_the_middle_is_refused_and_spares_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(write_video(tmp_path / "damaged.mp4", gop=24, size_px=(320, 192)))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keyframes = [packet for packet in packets if packet.is_keyframe]
        # Behind the length and header bytes of the third keyframe, at 1.6 s.
        at, size = (keyframes[2].pos or 0) + keyframes[2].size // 4, keyframes[2].size // 2
    content = bytearray(path.read_bytes())
    content[at : at + size] = random.Random(0).randbytes(size)
    path.write_bytes(content)
    refusal(path)
    assert numbers(read_video(path, end_s=1.5))[-1] == 45
    assert numbers(read_video(path, start_s=2.4))[0] == 72
    assert capfd.readouterr().err == ""


def test_damage_that_the_decoder_conceals_is_refused(sparse_mp4: str, tmp_path: Path) -> None:
    content = Path(sparse_mp4).read_bytes()
    start, end = content.find(b"mdat") + 8, content.find(b"moov") - 40
    path = tmp_path / "damaged.mp4"
    outcomes = []
    for seed in range(40):
        rng = random.Random(seed)
        at = rng.randrange(start, end)
        path.write_bytes(content[:at] + rng.randbytes(30) + content[at + 30 :])
        try:
            outcomes.append(str(read_video(path).num_frames))
        except MediaError as error:
            outcomes.append(str(error))
    assert any("damaged data at" in outcome for outcome in outcomes)
    assert sum("damaged.mp4: " in outcome for outcome in outcomes) > 20
