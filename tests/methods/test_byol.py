"""BYOL against its paper: distances of known vectors, a step written out, what moves and what must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import two_views
from torch import Tensor, nn

from sslkit.core.config.sections import Optim
from sslkit.methods.base import Clock, Info
from sslkit.methods.self_distillation.byol import BYOL
from sslkit.models.encoder import Encoder
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, build_optimizer, parameter_groups

CLOCK = Clock(step=0, steps=100_000, steps_per_epoch=10)
UNCHANGED = {"jitter_share": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0), "solarize": (0.0, 0.0)}
"""Settings under which a view is the picture that the worker cut."""


def make(backbone: str = "test_vit", size: int = 32, **knobs: Any) -> Any:
    torch.manual_seed(0)
    encoder = Encoder(backbone, size, patch_size=8 if backbone == "test_vit" else None)
    config = BYOL.Config(**{"hidden": 32, "projection": 8, "blur": (1.0, 0.1), **knobs})
    return BYOL(config, encoder, Info(count=32, size=size, native=size))


# ------------------------------------------------------------------------------------------------- loss


def normed(layer: nn.Module, rows: Tensor) -> Tensor:
    """Batch norm by hand: the batch's mean and biased variance."""
    centred = rows - rows.mean(0)
    return centred / (centred.square().mean(0) + layer.eps).sqrt() * layer.weight + layer.bias


def by_hand(network: nn.Sequential, rows: Tensor) -> Tensor:
    first, norm, _, last = network
    return normed(norm, rows @ first.weight.T).clamp_min(0) @ last.weight.T + last.bias


def test_a_step_s_loss_by_hand() -> None:
    method, batch = make(**UNCHANGED), two_views(6)
    with torch.no_grad():
        for parameter in method.target_projector.parameters():
            parameter.add_(0.1)  # else it could be taken for the online one
        total = torch.zeros(6)
        for one, other in (("first", "second"), ("second", "first")):
            online = by_hand(method.projector, method.encoder.vector(batch[one]))
            prediction = by_hand(method.predictor, online)
            target = by_hand(method.target_projector, method.target_encoder.vector(batch[other]))
            total += 2 - 2 * (F.normalize(prediction) * F.normalize(target)).sum(1)
    loss = method(batch, CLOCK)["loss"]
    assert loss.item() == pytest.approx(total.mean().item(), rel=1e-4)
    assert 0 < loss < 8


def test_views_may_change_places() -> None:
    batch = two_views(6)
    swapped = {**batch, "first": batch["second"], "second": batch["first"]}
    losses = [make(**UNCHANGED)(views, CLOCK)["loss"].item() for views in (batch, swapped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_the_target_has_no_gradient_and_all_else_has(backbone: str) -> None:
    method = make(backbone, 64)
    figures = method(two_views(4, 64), CLOCK)
    figures["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad != name.startswith("target_"), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not any(value.requires_grad for name, value in figures.items() if name != "loss")


def test_the_target_s_batch_norm_learns_from_its_own_batches() -> None:
    method = make("test_resnet", 64)
    means = {name: buffer.clone() for name, buffer in method.named_buffers() if name.endswith("running_mean")}
    method(two_views(4, 64), CLOCK)
    moved = {name: buffer.clone() for name, buffer in method.named_buffers() if name in means}
    assert sum(name.startswith("target_") for name in means) > 2
    assert all((moved[name] - means[name]).abs().max() > 0 for name in means)
    method.after_step(CLOCK)
    assert all(torch.equal(dict(method.named_buffers())[name], moved[name]) for name in means)


# ----------------------------------------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("start", "expected"), [(0.996, (0.996, 0.998, 1.0)), (0.99, (0.99, 0.995, 1.0)), (1.0, (1.0, 1.0, 1.0))]
)
def test_momentum_rises_to_one(start: float, expected: tuple[float, ...]) -> None:
    method = make(momentum=start)
    steps = 10**7  # so many that a short run's bound does not matter, even for 1
    found = [method.momentum(Clock(step, steps, 1)) for step in (0, steps // 2, steps)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("steps", "start"), [(500, 0.99), (200, 0.975), (50, 0.9), (5, 0.0), (1, 0.0)])
def test_short_runs_start_with_a_lower_momentum(steps: int, start: float) -> None:
    assert make(momentum=0.99).momentum(Clock(0, steps, 1)) == pytest.approx(start, abs=1e-12)


@pytest.mark.parametrize(("step", "kept"), [(0, 0.0), (50, 0.5), (100, 1.0)])
def test_the_target_follows_by_the_momentum_of_the_step(step: int, kept: float) -> None:
    method = make(momentum=0.0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.fill_(float(not parameter.requires_grad))  # target 1, online 0
    method.after_step(Clock(step, 100, 1))
    for network in (method.target_encoder, method.target_projector):
        for parameter in network.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, kept))


def test_accumulated_steps_update_the_target_once() -> None:
    method = make(momentum=0.5)
    before = method.target_encoder.model.pos_embed.clone()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    schedule = CosineSchedule(optimizer, 1000, warmup=0, warmup_lr=0.0, min_lr=0.0)
    steps = train(
        method, [two_views(8)], optimizer, schedule, Clock(0, 1000, 1000).rest(), device=torch.device("cpu"),
        micro_batch=2,
    )  # fmt: skip
    next(steps)
    torch.testing.assert_close(
        method.target_encoder.model.pos_embed, (before + method.encoder.model.pos_embed) / 2
    )


def test_given_weights_reach_the_target() -> None:
    method = make()
    with torch.no_grad():
        method.encoder.model.pos_embed.add_(1)
        method.encoder.mean.fill_(0.25)
    method.prepare(None)
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(method.target_encoder.state_dict()[name], tensor), name


def spreads(method: Any, steps: int) -> list[float]:
    """projection_std of every step on noise, in which there is nothing to learn."""
    optimizer, found = torch.optim.AdamW(method.parameters(), lr=1e-2), []
    for step in range(steps):
        figures = method(two_views(8, seed=step), CLOCK.at(step))
        optimizer.zero_grad()
        figures["loss"].backward()
        optimizer.step()
        method.after_step(CLOCK.at(step))
        found.append(figures["projection_std"].item())
    return found


def test_without_predictor_and_momentum_it_collapses_and_says_so() -> None:
    whole, bare = make(**UNCHANGED), make(**UNCHANGED, momentum=0.0)
    bare.predictor = nn.Identity()
    healthy, collapsed = spreads(whole, 25), spreads(bare, 25)
    assert healthy[0] == pytest.approx(collapsed[0], rel=1e-5)
    assert min(healthy) > 0.6 * healthy[0]
    assert collapsed[-1] < 0.2 * collapsed[0]


# --------------------------------------------------------------------------------------------- networks


def test_heads_are_the_official_ones() -> None:
    with torch.device("meta"):
        encoder = Encoder("resnet50", 224)
        method = BYOL(BYOL.Config(blur=(1.0, 0.1)), encoder, Info(1000, 224, 224))
    # Linear and batch norm of 4096, linear to 256; the official bias sits before the norm, ours at the end.
    assert sum(p.numel() for p in method.projector.parameters()) == 2048 * 4096 + 2 * 4096 + 4096 * 256 + 256
    assert sum(p.numel() for p in method.predictor.parameters()) == 256 * 4096 + 2 * 4096 + 4096 * 256 + 256
    assert [type(layer).__name__ for layer in method.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_lars_takes_the_norms_and_biases_as_they_are() -> None:
    """They are in groups without weight decay, which LARS does not adapt."""
    method = make("test_resnet", 64)
    groups = parameter_groups(method, 1e-6, method.overrides)
    optimizer = build_optimizer(groups, Optim(name="lars", lr=1.0, weight_decay=1e-6), 1.0)
    trained = {id(p): p for p in method.parameters() if p.requires_grad}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
            del trained[id(parameter)]
    assert not trained


# ------------------------------------------------------------------------------------- choices, pictures


def test_a_cnn_gets_the_authors_lars_and_a_vit_adamw() -> None:
    def chosen(family: str, size: int = 224) -> dict[str, Any]:
        found = BYOL.resolve(BYOL.Config(), family, Info(3068, size, size))
        return {name: value for name, (value, _) in found.items()}

    assert chosen("cnn") == {
        "blur": (1.0, 0.1), "optim.name": "lars", "optim.lr": 2.0, "optim.weight_decay": 1e-6,
    }  # fmt: skip
    assert chosen("vit") == {"blur": (1.0, 0.1), "optim.name": "adamw"}
    assert chosen("swin", 64)["blur"] == (0.0, 0.0)


def test_the_two_views_are_treated_differently() -> None:
    first, second = make().views.photometry.values()
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second):
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter, view.grayscale, view.blur_sigma) == (0.8, 0.2, (0.1, 2.0))
    crops = make().transform().views
    assert {name: (crop.size, crop.scale, crop.flip) for name, crop in crops.items()} == {
        "first": (32, (0.08, 1.0), 0.5),
        "second": (32, (0.08, 1.0), 0.5),
    }


def test_panels_show_both_views_as_they_are_trained_on() -> None:
    method = make(jitter_share=0.0, grayscale=0.0, blur=(0.0, 0.0), solarize=(0.0, 1.0))
    images = two_views(8)["first"]
    panels = method.panels({"image": images, "index": torch.arange(8)})
    assert list(panels) == ["image", "first", "second"]
    assert torch.equal(panels["first"], images)
    assert torch.equal(panels["second"], torch.where(images < 0.5, images, 1 - images))
