"""SimCLR against its paper: the loss of known vectors, a literal double loop, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import two_views
from torch import Tensor

from sslkit.methods.base import Clock, Info
from sslkit.methods.simclr import SimCLR, similarities
from sslkit.models.encoder import Encoder

CLOCK = Clock(step=0, steps=10, steps_per_epoch=5)


def make(size: int = 32, **knobs: Any) -> SimCLR:
    torch.manual_seed(0)
    given = SimCLR.Config(**knobs)
    info = Info(count=16, size=size, native=size)
    chosen = {
        name: value for name, (value, _) in SimCLR.resolve(given, "vit", info).items() if "." not in name
    }
    config = SimCLR.Config(**{**chosen, **knobs})
    return SimCLR(config, Encoder("test_vit", size, patch_size=8), info)


def loss_of(vectors: Tensor, temperature: float) -> float:
    return F.cross_entropy(*similarities(vectors, temperature)).item()


def literal_loss(vectors: Tensor, temperature: float) -> float:
    """The paper's algorithm 1: every pair by hand."""
    unit = [(row / row.norm()).tolist() for row in vectors.double()]
    count, total = len(unit), 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        terms = [
            math.exp(sum(a * b for a, b in zip(unit[i], unit[k], strict=True)) / temperature)
            for k in range(count)
            if k != i
        ]
        positive = sum(a * b for a, b in zip(unit[i], unit[partner], strict=True)) / temperature
        total += math.log(sum(terms)) - positive
    return total / count


@pytest.mark.parametrize(("batch", "expected"), [(8, 2.70805), (256, 6.23637)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equal_vectors_cost_the_logarithm_of_their_number(
    batch: int, expected: float, temperature: float
) -> None:
    assert loss_of(torch.ones(2 * batch, 3), temperature) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 6.354e-4), (0.2, 0.0901435), (0.5, 1.062879)])
def test_perfect_pairs_cost_what_the_card_says(temperature: float, expected: float) -> None:
    vectors = torch.eye(8).repeat(2, 1)
    assert loss_of(vectors, temperature) == pytest.approx(expected, rel=1e-4)
    logits, partner = similarities(vectors, temperature)
    assert (logits.argmax(1) == partner).all()


def test_sixteen_orthogonal_vectors_are_guessing() -> None:
    assert loss_of(torch.eye(16), 0.1) == pytest.approx(math.log(15), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_is_the_paper_s_double_loop(temperature: float) -> None:
    vectors = torch.randn(14, 5, generator=torch.Generator().manual_seed(0))
    expected = literal_loss(vectors, temperature)
    assert loss_of(vectors, temperature) == pytest.approx(expected, rel=1e-5)
    assert loss_of(7 * vectors, temperature) == pytest.approx(expected, rel=1e-5)  # only directions count
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    moved = torch.cat([vectors[:7][order], vectors[7:][order]])
    assert loss_of(moved, temperature) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_turns_a_vector_and_does_not_stretch_it() -> None:
    vectors = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    F.cross_entropy(*similarities(vectors, 0.2)).backward()
    assert vectors.grad is not None
    assert (vectors.grad * vectors).sum(1).abs().max() < 1e-6
    assert vectors.grad.norm(dim=1).min() > 1e-3


def test_half_precision_vectors_are_compared_in_float32() -> None:
    vectors = torch.eye(8).repeat(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = similarities(vectors.bfloat16(), 0.05)
    assert logits.dtype == torch.float32
    assert logits[0, 8].item() == pytest.approx(20)
    assert loss_of(vectors.half(), 0.5) == pytest.approx(1.062879, rel=1e-4)


def test_forward_compares_the_two_views_of_an_image() -> None:
    method, batch = make().eval(), two_views(6)
    views = [method.photometry(batch[n], batch["index"], 0, 0, f"simclr.{n}") for n in ("first", "second")]
    with torch.no_grad():
        vectors = torch.cat([method.head(method.encoder.vector(view)) for view in views])
        metrics = method(batch, CLOCK)
    assert metrics["loss"].item() == pytest.approx(literal_loss(vectors, 0.1), rel=1e-4)
    assert metrics["chance"].item() == pytest.approx(metrics["loss"].item() / math.log(11), rel=1e-5)
    assert metrics["embedding"].shape == (12, method.encoder.width)
    assert not torch.equal(views[0], batch["first"])


def test_the_head_is_the_paper_s() -> None:
    method = make()
    width = method.encoder.width
    shapes = {name: tuple(p.shape) for name, p in method.head.named_parameters() if p.requires_grad}
    assert shapes == {
        "0.0.weight": (width, width),
        "0.1.weight": (width,),
        "0.1.bias": (width,),
        "0.3.weight": (128, width),
        "0.3.bias": (128,),
        "1.weight": (128,),
    }
    assert method.head[1].bias.abs().max() == 0


def test_the_augmentation_is_the_paper_s_for_the_size() -> None:
    large, small = make(96).photometry, make(32).photometry
    assert (large.brightness, large.hue, large.jitter, large.grayscale, large.blur) == (
        0.8,
        0.2,
        0.8,
        0.2,
        0.5,
    )
    assert (small.brightness, small.hue, small.jitter, small.grayscale, small.blur) == (
        0.4,
        0.1,
        0.8,
        0.2,
        0.0,
    )
    crops = make().transform().views  # type: ignore[attr-defined]
    assert list(crops) == ["first", "second"]
    assert all((crop.scale, crop.flip) == ((0.08, 1.0), 0.5) for crop in crops.values())
