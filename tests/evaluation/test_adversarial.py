"""FGSM and PGD: the ball, closed forms on a linear classifier, and the order of their losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.evaluation.robustness.adversarial import Logits, fgsm, gradient, pgd


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Curved, so that one step is not the best."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GELU(), nn.Conv2d(16, 16, 3), nn.GELU(), nn.Flatten())
    return nn.Sequential(layers, nn.Linear(16 * 4 * 4, 4)).eval().requires_grad_(False)


LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
INDEX = torch.arange(8)


def losses(logits: Logits, images: Tensor) -> Tensor:
    return F.cross_entropy(logits(images), LABELS[: len(images)], reduction="none")


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_attacks_stay_in_the_ball_and_in_the_range(
    network: nn.Module, images: Tensor, epsilon: float
) -> None:
    for attacked in (
        fgsm(network, images, LABELS, epsilon),
        pgd(network, images, LABELS, INDEX, epsilon),
    ):
        assert float((attacked - images).abs().max()) <= epsilon / 255 + 1e-6
        assert float((attacked - images).abs().max()) >= 0.99 * epsilon / 255
        assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1


def test_losses_rise_and_pgd_finds_no_less_than_fgsm(network: nn.Module, images: Tensor) -> None:
    def sharp(x: Tensor) -> Tensor:
        return 30 * network(x)

    clean = losses(sharp, images)
    single = losses(sharp, fgsm(sharp, images, LABELS, 16))
    repeated = losses(sharp, pgd(sharp, images, LABELS, INDEX, 16))
    assert bool((single > clean).all())
    assert bool((repeated >= single - 1e-4).all())
    assert float(repeated.mean()) > float(single.mean())


def test_on_a_linear_classifier_both_end_in_the_same_corner() -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))

    def logits(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight.T

    labels = torch.tensor([0, 1])
    # The loss of class 0 grows against weight 0 and along weight 1.
    away = (weight[1] - weight[0]).sign().view(1, 3, 4, 4)
    corner = images + 4 / 255 * torch.cat([away, -away])
    assert torch.allclose(fgsm(logits, images, labels, 4), corner, atol=1e-6)
    assert torch.allclose(pgd(logits, images, labels, INDEX[:2], 4), corner, atol=1e-6)


def test_an_image_is_attacked_alike_in_any_batch(network: nn.Module, images: Tensor) -> None:
    together = pgd(network, images, LABELS, INDEX, 4, steps=3)
    alone = pgd(network, images[5:6], LABELS[5:6], INDEX[5:6], 4, steps=3)
    assert torch.allclose(together[5:6], alone, atol=1e-6)
    assert torch.equal(together, pgd(network, images, LABELS, INDEX, 4, steps=3))
    assert not torch.equal(together, pgd(network, images, LABELS, INDEX + 1, 4, steps=3))
    assert not torch.equal(together, pgd(network, images, LABELS, INDEX, 4, steps=3, seed=1))


def test_without_steps_pgd_is_its_random_start(network: nn.Module) -> None:
    grey = torch.full((8, 3, 8, 8), 0.5)
    start = (pgd(network, grey, LABELS, INDEX, 4, steps=0) - 0.5) * 255 / 4
    assert float(start.abs().max()) <= 1 + 1e-4
    assert float(start.var()) == pytest.approx(1 / 3, rel=0.1)  # uniform in [-1, 1]


def test_the_gradient_is_that_of_finite_differences(network: nn.Module, images: Tensor) -> None:
    exact = network.double()
    one, label = images[:1].double(), LABELS[:1]
    found = gradient(exact, images.double(), LABELS)  # of eight images, and the first one's is its own
    for place in ((0, 0, 0), (1, 4, 3), (2, 7, 7)):
        moved = torch.zeros_like(one)
        moved[0, *place] = 1e-3
        slope = [F.cross_entropy(exact(one + sign * moved).double(), label) for sign in (1, -1)]
        assert float(found[0, *place]) == pytest.approx(float(slope[0] - slope[1]) / 2e-3, rel=1e-2, abs=1e-6)
    network.float()


def test_gradients_are_found_where_none_are_kept(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        assert float(gradient(network, images, LABELS).abs().max()) > 0
    assert not images.requires_grad
