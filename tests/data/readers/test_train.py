"""Every reader's samples train: one run over the example files of all of them, with a real clip for each."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grpo.data import READERS
from tests.support import runs
from tests.support.readers import EXAMPLES, WRITERS, write_media


def written(reader: str, folder: Path) -> str:
    """The reader's example file, with its clip in place."""
    own_id = {"id": reader} if reader in ("jsonl", "huggingface") else {}  # these two share an example
    path = WRITERS[reader](folder, EXAMPLES[reader] | own_id)
    [sample] = READERS[reader](str(path), None)
    write_media(sample, num_frames=160, fps=4)
    return str(path)


@pytest.mark.slow
def test_a_run_trains_on_the_samples_of_every_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {reader: written(reader, tmp_path / reader) for reader in EXAMPLES}
    sets = ", ".join(f"{{reader: {reader}, path: {path}}}" for reader, path in paths.items())
    rows = runs.run(
        tmp_path / "run",
        tmp_path,
        f"data.train=[{sets}]",
        "data.eval=[]",
        "rollout.group_size=2",
        "rollout.max_model_tokens=512",
        f"optim.prompts_per_step={len(paths)}",  # each of them once
        "num_steps=1",
        "loss.beta=0.1",  # groups without signal are trained on, too
    )
    row = rows[-1]
    # One of them shows a video and a picture.
    assert row["groups/lost"] == 0 and row["media/decoded"] + row["media/cache_hits"] == len(paths) + 1
    assert (
        row["tokens/computed"] == row["tokens/prompt"] + row["tokens/completion"]
    )  # all went through an update
    assert 0 < row["optim/grad_norm"] < 100 and row["sampler/gap_max"] < 1e-3
    rollouts = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rollouts) == 2 * len(paths)
    asked = {reader for reader, path in paths.items() for each in rollouts if each["source"].startswith(path)}
    assert asked == READERS.keys() - {"synthetic", "auto"}
    said = capsys.readouterr().out
    assert "training: 27 questions (19 choice, 6 open, 2 span), 6 with key moments; other columns: " in said
    # Columns beside the fields that readers made of them are no misspellings.
    assert " qid," in said and "did you mean" not in said
