"""Errors of disks: which are named, which are none, and who removes what was half written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from grpo.run.disk import disk_errors, put_in_place, write_text


def test_mounts_that_refuse_modes_and_flushed_folders_take_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CIFS and FUSE do."""

    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "weights").write_text("w")
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(errno.EINVAL))
    monkeypatch.setattr(Path, "chmod", lambda path, mode: refuse(errno.EPERM))
    put_in_place(tmp_path / "partial", tmp_path / "whole")
    assert (tmp_path / "whole" / "weights").read_text() == "w"
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_text(tmp_path / "note", "n")
    assert not (tmp_path / "note").exists()


def test_one_of_several_processes_removes_what_they_wrote(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    for removes in (False, True):
        with pytest.raises(RuntimeError, match="mine"), disk_errors(shared, removes=removes):
            raise RuntimeError("mine")
        assert shared.exists() != removes


def test_a_folder_that_is_gone_does_not_hide_the_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), disk_errors(tmp_path / "gone"):
        raise RuntimeError("mine")
