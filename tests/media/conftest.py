"""What the tests of media share."""

from __future__ import annotations

import pytest

from tests.support.videos import write_video


@pytest.fixture(scope="session")
def sparse_mp4(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3 s at 30 fps, H.264 with B-frames, keyframes at frames 0, 24, 48 and 72."""
    return write_video(tmp_path_factory.mktemp("media") / "sparse.mp4")
