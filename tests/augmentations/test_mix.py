"""BSIM: mixtures of two images, and what a loss is told of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from around import At, made
from torch import Tensor

from sslkit.augmentations.batch.mix import cut_box, pasted, two_hot

NOISE = torch.rand(6, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def mixed(step: int, count: int = 6, **values: object) -> dict[str, Tensor]:
    images = NOISE[:count]
    return made("mix", **values)({"first": images, "second": images}, torch.arange(count), At(step=step))


def test_a_rectangle_of_the_partner_is_pasted() -> None:
    """Inside all pixels are the partner's, outside all are the image's own; its share is that outside,
    exactly.
    """
    shares = []
    for step in range(60):
        after = mixed(step)
        partner, own = after["mix_partner"], float(after["mix_weight"][0])
        assert torch.equal(after["second"], NOISE)
        is_own, is_other = (after["first"] == NOISE).all(1), (after["first"] == NOISE[partner]).all(1)
        assert (is_own | is_other).all()
        box = (~is_own[0]).nonzero()
        assert (is_own == is_own[0]).all()
        assert own == pytest.approx(1 - len(box) / 480, abs=1e-6)
        assert (after["mix_weight"] == own).all()
        if len(box):
            sides = box.amax(0) - box.amin(0) + 1
            assert sides.prod() == len(box)  # a rectangle
        shares.append(own)
    assert min(shares) < 0.2
    assert max(shares) > 0.95


def test_boxes_are_as_large_as_they_should_be_and_cut_off_at_borders() -> None:
    random = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        top, left, bottom, right = cut_box(0.7, 224, 224, random)
        assert 0 <= top <= bottom <= 224
        assert 0 <= left <= right <= 224
        areas.append((bottom - top) * (right - left))
    assert max(areas) == 122**2
    assert 1 - max(areas) / 224**2 == pytest.approx(
        0.70336, abs=5e-6
    )  # inside the image; more at its borders
    assert min(areas) < 122**2 / 2
    images, other = torch.zeros(1, 3, 224, 224), torch.ones(1, 3, 224, 224)
    result, own = pasted(images, other, (10, 20, 132, 142))
    assert own == pytest.approx(1 - result.double().mean().item(), abs=1e-12)
    assert torch.equal(pasted(images, other, (5, 5, 5, 5))[0], images)


def test_mixup_is_a_mean() -> None:
    for step in range(10):
        after = mixed(step, kind="mixup")
        own = after["mix_weight"][:, None, None, None]
        assert (after["first"] - own * NOISE - (1 - own) * NOISE[after["mix_partner"]]).abs().max() < 1e-6


@pytest.mark.parametrize("count", [2, 3, 6])
def test_nobody_is_his_own_partner_and_everybody_is_one(count: int) -> None:
    seen = set()
    for step in range(60):
        partner = mixed(step, count)["mix_partner"]
        assert (partner != torch.arange(count)).all()
        assert sorted(partner.tolist()) == list(range(count))
        seen.add(int(partner[0]))
    assert seen == set(range(1, count))


def test_shares_follow_the_beta_distribution() -> None:
    def shares(**values: object) -> list[float]:
        return [float(mixed(step, 2, kind="mixup", **values)["mix_weight"][0]) for step in range(250)]

    for alpha in (0.3, 1.0, 4.0):
        found = torch.tensor(shares(alpha=alpha))
        assert found.mean().item() == pytest.approx(0.5, abs=0.06)
        assert found.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)
    assert min(shares(mostly_own=True)) >= 0.5


def test_no_share_of_the_batches_is_none_bit_for_bit() -> None:
    after = mixed(0, share=0)
    assert torch.equal(after["first"], NOISE)
    assert torch.equal(after["mix_partner"], torch.arange(6))
    assert (after["mix_weight"] == 1).all()
    half = [bool((mixed(step, share=0.5)["mix_weight"] == 1).all()) for step in range(200)]
    assert 70 < sum(half) < 130


# ---------------------------------------------------------------------------------- losses of mixtures


def test_two_hot_targets() -> None:
    own, partner = torch.tensor([0.7, 0.2, 1.0]), torch.tensor([1, 2, 0])
    expected = torch.tensor([[0.7, 0.3, 0, 0], [0, 0.2, 0.8, 0], [0, 0, 1, 0]])
    assert (two_hot(partner, own, 4) - expected).abs().max() < 1e-7
    assert torch.equal(two_hot(torch.arange(3), own, 3), torch.eye(3))  # not mixed at all


def test_a_loss_of_two_hot_targets_is_the_mean_of_two() -> None:
    logits, partner = torch.randn(5, 65), torch.tensor([3, 0, 4, 2, 1])
    own = torch.rand(5)
    both = own * F.cross_entropy(logits, torch.arange(5), reduction="none")
    both += (1 - own) * F.cross_entropy(logits, partner, reduction="none")
    loss = F.cross_entropy(logits, two_hot(partner, own, 65))
    assert loss.item() == pytest.approx(both.mean().item(), abs=1e-6)
    # It does not matter which of the two is called the image's own.
    logits = logits[:1]
    swapped = torch.zeros(1, 65)
    swapped[0, 3], swapped[0, 0] = own[0], 1 - own[0]
    turned = logits.clone()
    turned[0, [0, 3]] = logits[0, [3, 0]]
    one = F.cross_entropy(logits, two_hot(partner[:1], own[:1], 65))
    assert one.item() == pytest.approx(F.cross_entropy(turned, swapped).item(), abs=1e-6)


def test_published_values_of_the_loss() -> None:
    """log 65 = 4.174387 for equal logits, whatever the share; at best H(.3) = .610864, without gradient."""
    own = torch.tensor([0.1, 0.5, 0.9])
    uniform = F.cross_entropy(torch.zeros(3, 65), two_hot(torch.tensor([1, 2, 0]), own, 65), reduction="none")
    assert (uniform - 4.174387).abs().max() < 1e-6
    target = two_hot(torch.tensor([1]), torch.tensor([0.3]), 2)
    logits = torch.tensor([[0.3, 0.7]]).log().requires_grad_()
    loss = F.cross_entropy(logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.610864, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7
    average = torch.linspace(0.5 / 1000, 1 - 0.5 / 1000, 1000).double()
    assert torch.special.entr(torch.stack([average, 1 - average])).sum(0).mean().item() == pytest.approx(
        0.5, abs=1e-4
    )


def test_a_distance_to_both_parents() -> None:
    """BYOL's form: 2 for a prediction orthogonal to both, 2 (1 - λ)(1 - cos) for the image's own target."""
    unit = F.normalize(torch.randn(4, 8), dim=1)
    own, partner = torch.tensor([0.1, 0.4, 0.8, 1.0]), torch.tensor([1, 2, 3, 0])

    def loss(prediction: Tensor) -> Tensor:
        distances = 2 - 2 * prediction @ unit.T
        return (two_hot(partner, own, 4) * distances).sum(1)

    expected = 2 * (1 - own) * (1 - (unit * unit[partner]).sum(1))
    assert (loss(unit) - expected).abs().max() < 1e-5
    orthogonal = torch.linalg.qr(unit.T, mode="complete")[0][:, 4:].T  # [4, 8]
    assert (loss(orthogonal) - 2).abs().max() < 1e-5
    assert math.isclose(float(two_hot(partner, own, 4).sum()), 4.0, abs_tol=1e-6)
