"""SimCLR against its paper: the loss of known vectors, a literal double loop, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import two_views

from sslkit.losses.contrastive import batch_logits
from sslkit.methods.base import Clock, Info
from sslkit.methods.contrastive.simclr import SimCLR
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


def test_forward_compares_the_two_views_of_an_image() -> None:
    method, batch = make().eval(), two_views(6)
    views = [
        colours(batch[name], batch["index"], 0, 0, f"simclr.{name}")
        for name, colours in method.views.photometry.items()
    ]
    with torch.no_grad():
        vectors = torch.cat([method.head(method.encoder.vector(view)) for view in views])
        metrics = method(method.coloured(batch, CLOCK), CLOCK)
    assert metrics["loss"].item() == pytest.approx(
        F.cross_entropy(*batch_logits(vectors, 0.1)).item(), rel=1e-4
    )
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
    large, small = (make(size).views.photometry["first"] for size in (96, 32))
    assert make().views.photometry["second"] == small
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
