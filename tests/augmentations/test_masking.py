"""What is hidden: how much of it, where, and pictures of it."""

from __future__ import annotations

import torch

from sslkit.augmentations.masking import hidden_count, masked_panels, random_share, repeat_mask, shuffled

INDEX = torch.tensor([5, 0, 123_456])


def test_each_image_has_an_order_of_its_own() -> None:
    orders = shuffled(1, 2, INDEX, 12, "mine")
    assert orders.sort(dim=1).values.tolist() == [list(range(12))] * 3
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert torch.equal(shuffled(1, 2, INDEX.flip(0), 12, "mine"), orders.flip(0))
    for other in (
        shuffled(2, 2, INDEX, 12, "mine"),
        shuffled(1, 3, INDEX, 12, "mine"),
        shuffled(1, 2, INDEX, 12, "x"),
    ):
        assert not torch.equal(other, orders)


def test_a_share_of_cells_is_hidden_in_every_image() -> None:
    hidden = random_share(INDEX, 1, 2, (4, 6), 0.3, "mine")
    assert hidden.shape == (3, 4, 6)
    assert hidden.sum((1, 2)).tolist() == [hidden_count(24, 0.3)] * 3 == [8] * 3
    often = random_share(torch.arange(4000), 0, 0, (2, 3), 0.5, "mine").double().mean(0)
    assert (often - 0.5).abs().max() < 0.04


def test_cells_are_repeated_cell_by_cell() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    found = repeat_mask(mask, 3)
    assert found.shape == (1, 6, 6)
    for row in range(6):
        for column in range(6):
            assert found[0, row, column] == mask[0, row // 3, column // 3]


def test_panels_join_what_is_seen_and_what_is_predicted() -> None:
    random = torch.Generator().manual_seed(0)
    images, prediction = torch.rand(2, 3, 4, 4, generator=random), torch.randn(2, 3, 4, 4, generator=random)
    hidden = torch.rand(2, 1, 4, 4, generator=random) < 0.5
    panels = masked_panels(images, hidden, prediction)
    assert list(panels) == ["image", "visible", "prediction", "composite"]
    for picture in range(2):
        for row in range(4):
            for column in range(4):
                place = (picture, slice(None), row, column)
                covered = bool(hidden[picture, 0, row, column])
                shown = prediction[place].clamp(0, 1) if covered else images[place]
                assert torch.equal(panels["composite"][place], shown)
                assert torch.equal(
                    panels["visible"][place], torch.full((3,), 0.5) if covered else images[place]
                )
    assert all(0 <= panel.min() <= panel.max() <= 1 for panel in panels.values())
