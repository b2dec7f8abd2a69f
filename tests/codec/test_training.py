"""Vector-quantised codecs: what training learns, and that it is the same for a seed; losses and measures by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.collection import parted, varies
from grpo.codec.measures import code_use, held_out_errors
from grpo.codec.settings import TermWeights
from grpo.codec.streams import Stream
from grpo.codec.training import Trainer, loss_terms, schedule, statistics, train_codec
from tests.codec.compare import BASELINE, run, summary
from tests.support.waves import config, waves

KINDS = ("residual", "product", "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_error_on_streams_that_it_has_not_seen(kind: str) -> None:
    rows = []
    train_codec(config(kind=kind, num_epochs=15), waves(24), rows.append)
    lost = [row["held_out/lost_frac"] for row in rows if "held_out/lost_frac" in row]
    # A codec that gives the mean loses 1.
    assert lost[-1] < 0.5 and lost[-1] < lost[0]
    assert len(rows) == 15 and "codes/used_frac/0" not in rows[0]
    levels = 1 if kind == "plain" else 2
    assert all(rows[-1][f"codes/used_frac/{level}"] > 0.5 for level in range(levels))
    assert f"codes/used_frac/{levels}" not in rows[-1]


def test_a_seed_gives_one_codec_and_another_seed_another(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        codec = train_codec(config(seed=seed, num_epochs=2), waves(6), lambda row: None)
        digests.append(save_codec(codec, tmp_path / str(number)).spec.digest)
    assert digests[0] == digests[1] != digests[2]
    # The caller's random numbers are not drawn from.
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_updates", [1, 2, 19, 20, 21, 100])
def test_the_learning_rate_rises_over_a_twentieth_and_falls_to_0(num_updates: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    rates, found = [], schedule(optimizer, 0.5, num_updates)
    for _ in range(num_updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        found.step()
    highest = rates.index(max(rates))
    assert highest == {21: 1, 100: 4}.get(num_updates, 0) and rates[highest] > 0.49
    assert rates[0] == pytest.approx(0.02 if highest else 0.5)
    assert rates == sorted(rates[:highest]) + sorted(rates[highest:], reverse=True)
    assert num_updates < 19 or rates[-1] < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_library_that_learned_them(kind: str) -> None:
    trainer = Trainer(config(kind=kind), waves(6), None)
    trainer.start_codebooks()
    codec = trainer.codec()
    standard_BTC = trainer.standard[0][None]
    with torch.no_grad():
        quantised_BKD, codes_GBKL, _ = trainer.quantiser.eval()(trainer.network.latents(standard_BTC))
        made_BTC = trainer.network.values(quantised_BKD)
    codes_KQ = codec.encode(waves(6)[0])
    np.testing.assert_array_equal(codes_KQ, codes_GBKL.permute(1, 2, 0, 3).reshape(len(codes_KQ), -1))
    made_TC = made_BTC[0].numpy() * trainer.scale_C + trainer.mean_C
    np.testing.assert_allclose(codec.decode(codes_KQ), made_TC, rtol=1e-4, atol=1e-5)


def test_a_code_that_nothing_is_near_to_is_reset() -> None:
    trainer = Trainer(config(kind="plain"), waves(6), None)
    trainer.start_codebooks()
    codebook = trainer.quantiser.rvqs[0].layers[0]._codebook
    codebook.embed[0, 0], codebook.embed_avg[0, 0], codebook.cluster_size[0, 0] = 1e6, 0.0, 0.0
    trainer.epoch(has_codes=True)
    assert codebook.embed.abs().max() < 1e3


def test_training_that_diverges_says_so() -> None:
    def positions(values_BTC: torch.Tensor) -> torch.Tensor:
        return values_BTC / 0.0

    with pytest.raises(ValueError, match="training diverged: its loss is nan; try a lower lr than 0.01"):
        train_codec(config(terms=TermWeights(positions=1.0)), waves(6), lambda row: None, positions)


def test_the_losses_terms_are_those_worked_out_by_hand() -> None:
    given_BTC = torch.zeros(1, 3, 1)
    made_BTC = torch.tensor([[[0.0], [0.05], [3.0]]])
    terms = loss_terms(made_BTC, given_BTC, lambda values_BTC: 10 * values_BTC[:, :2])
    # Smooth L1: x^2 / 0.2 below 0.1, |x| - 0.05 above. Values 0, 0.0125 and 2.95; differences 0.05 and 2.95: 0.0125 and
    # 2.9; positions 0 and 0.5: 0 and 0.45.
    assert terms["values"].item() == pytest.approx((0 + 0.0125 + 2.95) / 3)
    assert terms["velocity"].item() == pytest.approx((0.0125 + 2.9) / 2)
    assert terms["positions"].item() == pytest.approx((0 + 0.45) / 2)
    assert set(loss_terms(made_BTC, given_BTC, None)) == {"values", "velocity"}


def test_positions_are_made_of_values_in_their_units() -> None:
    seen = []

    def positions(values_BTC: torch.Tensor) -> torch.Tensor:
        seen.append(values_BTC.detach())
        return values_BTC.cumsum(dim=1)

    rows, streams = [], waves(6)
    weighted = config(num_epochs=1, terms=TermWeights(positions=1.0))
    train_codec(weighted, streams, rows.append, positions)
    assert rows[0]["train/positions"] > 0
    assert rows[0]["train/loss"] == pytest.approx(
        rows[0]["train/values"] + 0.5 * rows[0]["train/velocity"] + 0.1 * rows[0]["train/commitment"]
        + rows[0]["train/positions"], rel=1e-5,
    )  # fmt: skip
    # The second argument is given, unstandardised: every window is a stretch of a stream.
    window_TC = seen[1][0].numpy()
    starts = range(len(streams[0].values_TC) - len(window_TC) + 1)
    assert any(
        np.allclose(stream.values_TC[start : start + len(window_TC)], window_TC, atol=1e-5)
        for stream in streams
        for start in starts
    )


def test_a_constant_channel_is_no_reason_for_a_division_by_zero() -> None:
    still = [wave_with(stream, constant=0.7) for stream in waves(6)]
    rows = []
    codec = train_codec(config(num_epochs=6), still, rows.append)
    assert np.isfinite(list(rows[-1].values())).all()
    assert np.abs(codec.decode(codec.encode(still[0]))[:, 0] - 0.7).max() < 0.35


def wave_with(stream: Stream, constant: float) -> Stream:
    values_TC = stream.values_TC.copy()
    values_TC[:, 0] = constant
    return Stream(
        values_TC=values_TC, rate_hz=stream.rate_hz, start_s=0.0, channels=stream.channels, units=stream.units
    )


def test_channels_of_a_unit_have_its_scale() -> None:
    values_TC = np.array([[0, 10, 5, 1], [2, 24, 5, 4]], dtype=np.float32)
    stream = Stream(
        values_TC=values_TC, rate_hz=1.0, start_s=0.0, channels=("x", "y", "on", "yaw"), units=("m", "m", "1", "deg"),
    )  # fmt: skip
    mean_C, scale_C = statistics([stream])
    # Variances of 1 and 49 are 25 on average; "on" is constant; half of 3.
    np.testing.assert_array_equal(mean_C, [1, 17, 5, 2.5])
    np.testing.assert_array_equal(scale_C, [5, 5, 1, 1.5])


def test_what_rounding_moves_is_constant() -> None:
    values_NC = np.zeros((100, 4))
    values_NC[:, 0] = 5.0
    values_NC[50:, 1] = 1e-9
    values_NC[:, 2] = np.linspace(0, 1e-9, 100)
    values_NC[:, 3] = np.linspace(0, 1e-3, 100)
    # 1e-9 m beside 5 m is rounding, 1e-9 s (the only channel in s) is not.
    np.testing.assert_array_equal(varies(values_NC, ["m", "m", "s", "m"]), [False, False, True, True])


def test_the_use_of_codes_is_worked_out_by_hand() -> None:
    metrics = code_use(np.array([[0, 3], [1, 3], [0, 3], [1, 3]]), codebook_size=4)
    assert metrics == pytest.approx(
        {
            "codes/used_frac/0": 0.5,
            "codes/perplexity/0": 2.0,
            "codes/used_frac/1": 0.25,
            "codes/perplexity/1": 1.0,
        }
    )


def test_errors_are_in_the_streams_units_and_as_a_share_of_the_variance() -> None:
    values_TC = np.array([[0.0, 0.0, 0.0], [1.0, 7.0, 4.0]], dtype=np.float32)
    stream = Stream(
        values_TC=values_TC, rate_hz=1.0, start_s=0.0, channels=("x", "y", "yaw"), units=("m", "m", "deg")
    )
    codec = Codec(*fit_bins("a", [stream], codebook_size=2, coverage=1.0))
    moved = replace(stream, values_TC=np.array([[0.0, 0.0, 0.0], [1.0, 7.0, 8.0]], dtype=np.float32))
    # Bins give 1/4 and 3/4 of a channel's range: x and y become 0.25, 0.75 and 1.75, 5.25, and lose 1/16 + 49/16 of
    # 1/4 + 49/4, which is a quarter; yaw becomes 1 and 3, and loses (1 + 25) / 2 of 16.
    assert held_out_errors(codec, [moved]) == pytest.approx(
        {"held_out/error/m": 1.0, "held_out/error/deg": 3.0, "held_out/lost_frac": (0.25 + 13 / 16) / 2}
    )


def test_streams_to_measure_on_are_not_trained_on() -> None:
    streams = waves(10)
    kept, held_out = parted(streams, 0.2, seed=0)
    assert (len(kept), len(held_out)) == (8, 2)
    assert {id(stream) for stream in [*kept, *held_out]} == {id(stream) for stream in streams}
    assert parted(streams, 0.01, seed=0)[1] and len(parted(streams[:2], 0.99, seed=0)[0]) == 1
    with pytest.raises(ValueError, match="one stream is too few"):
        parted(streams[:1], 0.2, seed=0)


def test_the_comparison_of_kinds_runs_and_pairs_its_seeds() -> None:
    found = run("residual, 4 frames x 2", 0, num_streams=4, num_epochs=2, codebook_size=4)
    assert (found["tokens_per_s"], found["bits_per_s"]) == (5, 10) and 0 < found["mpjpe_mm"] < 1000
    rate = {"tokens_per_s": 5.0, "bits_per_s": 10.0, "used_frac": 1.0}
    runs = [
        {"arm": BASELINE, "seed": 0, "mpjpe_mm": 30.0} | rate,
        {"arm": BASELINE, "seed": 1, "mpjpe_mm": 40.0} | rate,
        {"arm": "product, 4 frames x 2", "seed": 1, "mpjpe_mm": 34.0} | rate,
        {"arm": "product, 4 frames x 2", "seed": 0, "mpjpe_mm": 25.0} | rate,
    ]
    table = summary(runs)
    # Differences of -5 and -6: their deviation over the root of two seeds is 0.5, and t of 1 degree of freedom 12.7.
    assert table["product, 4 frames x 2"]["beyond_plain_mm"] == {"mean": -5.5, "num": 2, "half_width": 6.35}
    assert table[BASELINE]["mpjpe_mm"]["mean"] == 35.0
