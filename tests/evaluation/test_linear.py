"""The linear probe is at its optimum, and chooses its penalty on training images alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslkit.evaluation.probe.linear import STRENGTHS, LinearProbe, fit_best, solve, stratified_split


def blobs(count: int, spread: float, seed: int = 0, noise: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes in four dimensions, and `noise` dimensions that say nothing."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 4, dtype=torch.float64) * 2
    x = centres[labels] + spread * torch.randn(count, 4, generator=random, dtype=torch.float64)
    return torch.cat([x, torch.randn(count, noise, generator=random, dtype=torch.float64)], dim=1), labels


def fitted(vectors: Tensor, labels: Tensor, classes: int = 3) -> LinearProbe:
    return fit_best({"": vectors}, labels, classes=classes)[1]


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_gradient_vanishes(strength: float) -> None:
    """At the optimum Xᵀ(P - Y) / N + strength · W = 0 and Σ(P - Y) = 0: written out, without autograd."""
    x, labels = blobs(90, spread=1.0)
    weight, bias = solve(x, labels, classes=3, strength=strength)
    residual = (x @ weight + bias).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[labels]
    assert (x.T @ residual / 90 + strength * weight).abs().max() < 1e-5
    assert (residual.mean(dim=0)).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_the_gradient_vanishes_with_fewer_images_than_features(strength: float) -> None:
    x, labels = blobs(12, spread=1.0, noise=40)
    weight, bias = solve(x, labels, classes=3, strength=strength)
    residual = (x @ weight + bias).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[labels]
    assert (x.T @ residual / 12 + strength * weight).abs().max() < 1e-5
    assert weight.shape == (44, 3)


def test_the_best_read_out_is_chosen_on_training_images() -> None:
    x, labels = blobs(90, spread=0.1)
    noise = torch.randn(90, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    name, probe = fit_best({"noise": noise, "blobs": x, "again": x}, labels, classes=3)
    assert name == "blobs"  # of equal ones the first
    alone = fitted(x, labels)
    assert torch.equal(probe.weight, alone.weight)
    assert torch.equal(probe.logits(x).argmax(1), probe.predict(x))


def test_a_start_elsewhere_ends_at_the_same_point() -> None:
    x, labels = blobs(90, spread=1.0)
    weight, bias = solve(x, labels, classes=3, strength=1e-2)
    other, _ = solve(x, labels, classes=3, strength=1e-2, start=(torch.ones_like(weight), bias + 3))
    assert torch.allclose(weight, other, atol=1e-4)


def test_two_classes_have_a_closed_form_without_features() -> None:
    """Features of zeros leave the bias: the log-odds of the classes."""
    labels = torch.tensor([0] * 30 + [1] * 10)
    weight, bias = solve(torch.zeros(40, 2, dtype=torch.float64), labels, classes=2, strength=0.1)
    assert float(bias[0] - bias[1]) == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-4)
    assert not weight.any()


def test_separable_classes_are_found_whatever_the_units() -> None:
    x, labels = blobs(90, spread=0.1)
    queries, truth = blobs(60, spread=0.1, seed=1)
    units = torch.tensor([1e-4, 1.0, 1e3, 7.0], dtype=torch.float64)
    probe = fitted(x * units + 5, labels)
    assert torch.equal(probe.predict(queries * units + 5), truth)


def test_a_constant_feature_is_harmless() -> None:
    x, labels = blobs(90, spread=0.1)
    x = torch.cat([x, torch.full((90, 1), 3.0, dtype=torch.float64)], dim=1)
    probe = fitted(x, labels)
    assert torch.equal(probe.predict(x), labels)


def test_the_penalty_with_the_least_cross_entropy_is_chosen() -> None:
    """Against fits of every penalty from zero, scored on the same fifth; weak ones overfit the noise here."""
    x, labels = blobs(200, spread=1.0, noise=60)
    fit, held = stratified_split(labels, 0.2, seed=0)
    standard = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    losses = []
    for strength in STRENGTHS:
        weight, bias = solve(standard[fit], labels[fit], classes=3, strength=strength)
        shares = (standard[held] @ weight + bias).softmax(dim=1)
        losses.append(float(-shares[torch.arange(len(held)), labels[held]].log().mean()))
    assert min(losses) < losses[-1]
    assert fitted(x, labels).strength == STRENGTHS[losses.index(min(losses))]


def test_the_split_takes_a_fifth_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    rest, held = stratified_split(labels, 0.2, seed=0)
    assert sorted(rest.tolist() + held.tolist()) == list(range(63))
    assert torch.bincount(labels[held], minlength=4).tolist() == [10, 2, 1, 0]
    assert not torch.equal(held, stratified_split(labels, 0.2, seed=1)[1])
    assert torch.equal(held, stratified_split(labels, 0.2, seed=0)[1])


def test_one_image_a_class_still_fits() -> None:
    x = torch.eye(3)
    assert torch.equal(fitted(x, torch.arange(3)).predict(x), torch.arange(3))


def test_uneven_classes_do_not_end_in_a_constant_guess() -> None:
    """Two in three are of one class and features say little: by accuracy the strongest penalty won."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 8 + [1, 2, 3, 4]).repeat(150)
    vectors = torch.randn(1800, 20, generator=random)
    vectors[torch.arange(1800), labels] += 0.8
    head = fitted(vectors, labels, 5)
    assert head.strength <= 0.1
    assert len(head.predict(vectors).unique()) == 5
