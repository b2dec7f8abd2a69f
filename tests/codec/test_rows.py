"""The start of rows for codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.codec.rows import rows_of_codes

EXISTING = 3.0 + 0.5 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1))


def distances(rows: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows.double(), rows.double())


def test_distances_between_rows_are_those_of_the_codebook_but_for_a_factor() -> None:
    books = [np.random.default_rng(level).normal(size=(20, 8)).astype(np.float32) for level in range(2)]
    rows = rows_of_codes(books, "motion", EXISTING)
    assert rows.shape == (2 + 2 * 20, 32)
    for level, book in enumerate(books):
        own = distances(rows[2 + 20 * level :][:20])
        wanted = distances(torch.from_numpy(book))
        factor = own.sum() / wanted.sum()
        torch.testing.assert_close(own, factor * wanted, rtol=1e-4, atol=1e-4)


def test_rows_are_as_large_as_the_existing_ones_and_around_their_mean() -> None:
    book = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    rows = rows_of_codes([book], "motion", EXISTING)
    mean, size = EXISTING.mean(0), (EXISTING - EXISTING.mean(0)).square().sum(-1).mean().sqrt()
    for part in (rows[:2], rows[2:]):
        assert (part - mean).square().sum(-1).mean().sqrt().item() == pytest.approx(size.item(), rel=1e-4)
    torch.testing.assert_close(rows[2:].mean(0), mean, rtol=1e-4, atol=1e-4)


def test_a_codebook_wider_than_a_row_keeps_its_distances_about() -> None:
    book = np.random.default_rng(0).normal(size=(10, 400)).astype(np.float32)
    book[5] = book[4] + 0.01
    rows = rows_of_codes([book], "motion", EXISTING)[2:]
    assert distances(rows)[4].argsort()[:2].tolist() in ([4, 5], [5, 4])


def test_equal_codes_have_the_mean_row() -> None:
    rows = rows_of_codes([np.ones((3, 2), np.float32)], "motion", EXISTING)
    torch.testing.assert_close(rows[2:], EXISTING.mean(0).expand(3, -1))


def test_codecs_of_other_names_have_other_directions() -> None:
    book = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    one, again, other = (rows_of_codes([book], name, EXISTING) for name in ("motion", "motion", "sensor"))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.allclose(one, other)
