"""Keyed randomness: bijective orders, uniform draws, no dependence on state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslkit.core import rng

WORD = (1 << 64) - 1


@given(count=st.integers(1, 700), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**30))
def test_permutation_is_a_bijection(count: int, seed: int, epoch: int) -> None:
    assert sorted(rng.permutation(count, seed, epoch, 0, count)) == list(range(count))


@given(count=st.integers(1, 500), data=st.data())
def test_permutation_resumes_anywhere(count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    whole = rng.permutation(count, 3, 1, 0, count)
    assert rng.permutation(count, 3, 1, start, stop).tolist() == whole[start:stop].tolist()


def test_permutation_of_ten_billion_images_needs_no_list() -> None:
    values = rng.permutation(10**10, 0, 5, 10**10 - 64, 10**10)
    assert len(set(values.tolist())) == 64
    assert 0 <= values.min() <= values.max() < 10**10


def test_permutation_moves_images_evenly() -> None:
    """Over many epochs every image is equally often first: chi-square of 10 cells, 99.9 % bound 27.9."""
    first = [int(rng.permutation(10, 0, epoch, 0, 1)[0]) for epoch in range(2000)]
    observed = np.bincount(first, minlength=10)
    assert ((observed - 200) ** 2 / 200).sum() < 27.9


def test_permutation_changes_with_seed_and_epoch() -> None:
    orders = {tuple(rng.permutation(50, seed, epoch, 0, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_permutation_refuses_positions_outside() -> None:
    with pytest.raises(ValueError, match="<= 5 expected, got 2, 6"):
        rng.permutation(5, 0, 0, 2, 6)


def test_uniform_has_the_moments_of_the_uniform_distribution() -> None:
    draws = rng.uniform(0, 0, torch.arange(100_000), "keep_low").double()
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / (12 * 100_000) ** 0.5  # four standard errors
    assert abs(draws.var() - 1 / 12) < 0.001


def test_uniform_follows_splitmix64() -> None:
    """The same numbers from Python's unbounded integers, as in Steele, Lea and Flood, 2014."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & WORD
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
        return value ^ (value >> 31)

    key = (rng._stream_key(7, "a") + 3 * 0x9E3779B97F4A7C15) & WORD
    expected = [(mix((mix(i) + key) & WORD) >> 40) / 2**24 for i in (0, 1, 12345, 2**40)]
    assert rng.uniform(7, 3, torch.tensor([0, 1, 12345, 2**40]), "a").tolist() == expected


def test_uniform_does_not_depend_on_the_batch_or_on_global_state() -> None:
    whole = rng.uniform(1, 2, torch.arange(64), "a")
    torch.manual_seed(123)
    assert torch.equal(rng.uniform(1, 2, torch.tensor([63, 5]), "a"), whole[[63, 5]])


@pytest.mark.parametrize("other", [(1, 0, "a"), (0, 1, "a"), (0, 0, "b")])
def test_uniform_is_independent_across_seeds_epochs_and_streams(other: tuple[int, int, str]) -> None:
    index = torch.arange(20_000)
    seed, epoch, stream = other
    pair = torch.stack([rng.uniform(0, 0, index, "a"), rng.uniform(seed, epoch, index, stream)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 4 / 20_000**0.5


def test_neighbouring_images_are_independent() -> None:
    draws = rng.uniform(0, 0, torch.arange(20_001), "a")
    assert abs(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1]) < 4 / 20_000**0.5


def test_generators_differ_in_every_part_of_their_key() -> None:
    keys = [(0, 0, 0, "view"), (1, 0, 0, "view"), (0, 1, 0, "view"), (0, 0, 1, "view"), (0, 0, 0, "other")]
    draws = [tuple(rng.generator(*key).integers(0, 2**32, 4)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[3] == tuple(rng.generator(0, 0, 1).integers(0, 2**32, 4))


def test_normal_has_the_moments_of_the_normal_distribution() -> None:
    draws = rng.normal(0, 0, torch.arange(500), (3, 101), "noise").double()
    assert draws.shape == (500, 3, 101)
    count = draws.numel()
    assert abs(draws.mean()) < 4 / count**0.5  # four standard errors
    assert abs(draws.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((draws**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((draws**4).mean() - 3) < 4 * (96 / count) ** 0.5
    assert 4 < draws.abs().max() < 5.78


def test_streams_together_are_the_streams_alone() -> None:
    index = torch.arange(60).reshape(20, 3)
    together = rng.uniforms(5, 3, index, ["a", "b", "c"])
    alone = [rng.uniform(5, 3, index, stream) for stream in ("a", "b", "c")]
    assert torch.equal(together, torch.stack(alone))


def test_normal_draws_are_independent_within_and_between_images() -> None:
    draws = rng.normal(0, 0, torch.arange(2000), (40,), "noise").double()
    correlation = torch.corrcoef(draws.T) - torch.eye(40)
    assert correlation.abs().max() < 5 / 2000**0.5
    assert torch.corrcoef(draws.square().T).sub(torch.eye(40)).abs().max() < 6 / 2000**0.5


def test_normal_belongs_to_the_image_the_epoch_the_seed_and_the_stream() -> None:
    draws = rng.normal(1, 2, torch.arange(10), (7,), "noise")
    assert torch.equal(rng.normal(1, 2, torch.tensor([6]), (7,), "noise"), draws[6:7])
    others = [(2, 2, "noise"), (1, 3, "noise"), (1, 2, "other")]
    for seed, epoch, stream in others:
        assert not torch.isclose(rng.normal(seed, epoch, torch.arange(10), (7,), stream), draws).any()
    assert rng.normal(0, 0, torch.arange(0), (3, 4), "noise").shape == (0, 3, 4)
