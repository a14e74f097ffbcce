"""Few labels: keyed draws of equally many images per class."""

from __future__ import annotations

import torch

from sslkit.evaluation.probe.shots import draw_shots, parse_shots


def test_every_class_gives_as_many_and_larger_draws_hold_smaller_ones() -> None:
    labels = torch.tensor([0] * 20 + [1] * 7 + [2] * 9)
    small, large = draw_shots(labels, 2, seed=0), draw_shots(labels, 5, seed=0)
    assert torch.bincount(labels[small]).tolist() == [2, 2, 2]
    assert torch.bincount(labels[large]).tolist() == [5, 5, 5]
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(small, draw_shots(labels, 2, seed=0))
    assert not torch.equal(small, draw_shots(labels, 2, seed=1))


def test_a_class_does_not_depend_on_the_others() -> None:
    labels = torch.tensor([0] * 20 + [1] * 7)
    assert torch.equal(draw_shots(labels, 3, seed=0)[:3], draw_shots(labels[:20], 3, seed=0))


def test_what_people_write() -> None:
    assert parse_shots("10, 1,5,all,5") == (1, 5, 10)
    assert parse_shots([5, "all"]) == (5,)
    assert parse_shots("all") == ()
