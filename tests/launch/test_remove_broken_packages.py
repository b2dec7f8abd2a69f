"""Packages that an interrupted installation left incomplete are found, and no others."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from launch.remove_broken_packages import is_complete, remove_broken_packages


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A complete package `egg` in the site-packages `tmp_path`; its metadata folder."""
    (tmp_path / "egg").mkdir()
    (tmp_path / "egg" / "__init__.py").write_text("yolk = 1\n")
    metadata = tmp_path / "egg-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: egg\n")
    (metadata / "RECORD").write_text(
        "egg/__init__.py,sha256=x,9\n"
        "egg/__pycache__/__init__.cpython-311.pyc,,\n"
        "egg-1.0.dist-info/METADATA,sha256=x,10\n"
        "egg-1.0.dist-info/RECORD,,\n"
    )
    return metadata


def test_a_complete_package_stays(tmp_path, package):
    assert remove_broken_packages(tmp_path) == []
    assert package.is_dir()


@pytest.mark.parametrize(
    "lost", ["egg/__init__.py", "egg-1.0.dist-info/RECORD", "egg-1.0.dist-info/METADATA"]
)
def test_a_package_that_lacks_a_file_is_forgotten(tmp_path, package, lost):
    (tmp_path / lost).unlink()
    assert remove_broken_packages(tmp_path) == ["egg-1.0.dist-info"]
    assert not package.exists()


def test_a_file_that_was_written_in_part_counts_as_lost(tmp_path, package):
    (tmp_path / "egg" / "__init__.py").write_text("yolk")
    assert remove_broken_packages(tmp_path) == ["egg-1.0.dist-info"]


def test_what_a_broken_off_upgrade_left_is_removed(tmp_path, package):
    (tmp_path / "~gg").mkdir()
    assert remove_broken_packages(tmp_path) == []
    assert not (tmp_path / "~gg").exists() and (tmp_path / "egg").exists()


def test_this_environment_is_complete():
    site_packages = Path(sysconfig.get_path("purelib"))
    assert [path.name for path in site_packages.glob("*.dist-info") if not is_complete(path)] == []
