"""A folder as a reader of the documentation has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import pages, stored_runs, tiny

LINKED = (
    "configs", "docs", "grpo", "launch", "rewards", "tests", "Makefile", "mkdocs.yml", "pyproject.toml",
)  # fmt: skip


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files, a finished run in runs/demo, and every file that a page shows under its name."""
    folder = tmp_path_factory.mktemp("reader")
    for name in LINKED:
        (folder / name).symlink_to(tiny.ROOT / name)
    (folder / "runs").mkdir()
    group = stored_runs.scored(["<think>a</think><answer>A</answer>", "B"], [1.0, 0.0])
    stored_runs.write_run(folder / "runs" / "demo", {1: [group]})
    for page in pages.PAGES:
        for block in [*pages.blocks(page, "python"), *pages.blocks(page, "yaml")]:
            if block.file_name is not None:
                (folder / block.file_name).write_text(block.text)
    return folder


@pytest.fixture
def as_reader(readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's working folder is the reader's."""
    monkeypatch.chdir(readers_folder)
    return readers_folder
