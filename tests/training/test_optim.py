"""Optimizer and schedule against the official code's numbers and against formulas written out."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sslkit.core.config.sections import Optim
from sslkit.training.loop.optim import (
    CosineSchedule,
    _clip_each_,
    build_optimizer,
    clip_gradients_,
    layer_scales,
    learning_rate,
    parameter_groups,
)


def sgd(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rate_of_update(number: int, schedule: CosineSchedule, optimizer: torch.optim.Optimizer) -> float:
    schedule.apply(number)
    return float(optimizer.param_groups[0]["lr"])


# --------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-6),
        (1, 1.09592e-6),
        (6250, 6.005e-4),
        (12499, 1.199904e-3),
        (12500, 1.186998e-3),  # the visible drop where warm-up ends
        (93750, 6.05e-4),
        (150000, 1.236349e-4),
        (187499, 1e-5),
    ],
)
def test_pre_training_on_imagenet_has_the_card_s_rates(step: int, rate: float) -> None:
    """300 epochs of 625 steps at batch 2048; the update after step s uses lr(s)."""
    scale = learning_rate(1.0, 2048, 512)
    optimizer = sgd(3e-4 * scale)
    schedule = CosineSchedule(optimizer, 187_500, 12_500, 2.5e-7 * scale, 2.5e-6 * scale)
    assert rate_of_update(step + 1, schedule, optimizer) == pytest.approx(rate, rel=1e-6)


def test_the_first_two_updates_share_a_rate() -> None:
    optimizer = sgd(1.0)
    schedule = CosineSchedule(optimizer, 100, 10, 0.1, 0.0)
    rates = [rate_of_update(number, schedule, optimizer) for number in range(4)]
    assert rates == pytest.approx([0.1, 0.1, 0.19, 0.28])


def test_fine_tuning_has_the_card_s_rates_in_every_layer() -> None:
    """ViT-B, 62,500 steps: the minimum is the same absolute number for every group."""
    optimizer = sgd(8e-3, 8e-3 * 0.8**13)
    schedule = CosineSchedule(optimizer, 62_500, 3_125, 1e-6, 1e-6)
    for step, rate in ((3124, 7.99744e-3), (3125, 7.95076e-3), (31250, 4.0005e-3)):
        assert rate_of_update(step + 1, schedule, optimizer) == pytest.approx(rate, rel=1e-6)
    schedule.apply(3126)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(4.371034e-4, rel=1e-6)


@given(
    steps=st.integers(2, 5000),
    share=st.floats(0, 0.9),
    number=st.integers(0, 4999),
    peak=st.floats(1e-5, 1.0),
)
def test_schedule_is_the_formula(steps: int, share: float, number: int, peak: float) -> None:
    warmup, number = int(steps * share), number % steps
    optimizer = sgd(peak)
    schedule = CosineSchedule(optimizer, steps, warmup, peak / 100, peak / 50)
    t = max(0, number - 1)
    cosine = peak / 50 + (peak - peak / 50) * (1 + math.cos(math.pi * t / steps)) / 2
    expected = peak / 100 + t * (peak - peak / 100) / warmup if t < warmup else cosine
    assert rate_of_update(number, schedule, optimizer) == pytest.approx(expected, rel=1e-9)


def test_the_rate_depends_on_the_step_alone() -> None:
    """What a resumed run needs: no state is carried from one step to the next."""
    one, other = sgd(1.0), sgd(1.0)
    walked = CosineSchedule(one, 50, 5, 0.0, 0.0)
    for number in range(31):
        walked.apply(number)
    jumped = CosineSchedule(other, 50, 5, 0.0, 0.0)
    assert rate_of_update(30, jumped, other) == one.param_groups[0]["lr"]


def test_a_run_of_one_step_has_a_rate() -> None:
    optimizer = sgd(1.0)
    assert rate_of_update(0, CosineSchedule(optimizer, 1, 0, 0.1, 0.0), optimizer) == 1.0


@pytest.mark.parametrize(("batch", "peak"), [(256, 1.5e-4), (512, 3e-4), (2048, 1.2e-3)])
def test_peak_rate_is_linear_in_the_batch_over_512(batch: int, peak: float) -> None:
    assert learning_rate(3e-4, batch, 512) == pytest.approx(peak)


# -------------------------------------------------------------------------------------------- optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.token = nn.Parameter(torch.ones(1, 1, 2))
        self.table = nn.Parameter(torch.ones(4, 2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.kernel = nn.Conv2d(2, 2, 1)
        self.odd = nn.Module()
        self.odd.register_parameter("bias", nn.Parameter(torch.ones(2, 2)))  # a bias of two dimensions


def named(model: nn.Module, groups: list[dict[str, object]]) -> list[tuple[dict[str, object], list[str]]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        ({key: value for key, value in group.items() if key != "params"}, [names[id(p)] for p in members])
        for group in groups
        if isinstance(members := group["params"], list)
    ]


def test_groups_are_matrices_and_the_rest() -> None:
    model = Small()
    assert named(model, parameter_groups(model, 0.05, {})) == [
        ({"weight_decay": 0.05}, ["token", "table", "layer.weight", "kernel.weight"]),
        ({"weight_decay": 0.0}, ["layer.bias", "norm.weight", "norm.bias", "kernel.bias", "odd.bias"]),
    ]


def test_overrides_have_the_last_word() -> None:
    model = Small()
    overrides = {"*token": {"weight_decay": 0.0}, "layer.*": {"lr_scale": 0.5}}
    assert named(model, parameter_groups(model, 0.05, overrides)) == [
        ({"weight_decay": 0.0}, ["token", "norm.weight", "norm.bias", "kernel.bias", "odd.bias"]),
        ({"weight_decay": 0.05}, ["table", "kernel.weight"]),
        ({"weight_decay": 0.05, "lr_scale": 0.5}, ["layer.weight"]),
        ({"weight_decay": 0.0, "lr_scale": 0.5}, ["layer.bias"]),
    ]


def test_one_update_is_adamw_s() -> None:
    """Two steps of AdamW with decoupled decay, written out in float64."""
    start, gradients = 2.0, [0.3, -0.7]
    lr, decay, (first, second), eps = 0.1, 0.05, (0.9, 0.95), 1e-8
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    groups: list[dict[str, object]] = [{"params": [parameter], "weight_decay": decay}]
    optimizer = build_optimizer(
        groups, Optim(name="adamw", betas=(first, second), eps=eps, weight_decay=0.9), lr
    )
    m = v = 0.0
    value = start
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
        value -= lr * decay * value
        value -= lr * (m / (1 - first**step)) / (math.sqrt(v / (1 - second**step)) + eps)
        assert parameter.item() == pytest.approx(value, rel=1e-12)


def test_a_layer_s_scale_becomes_its_rate_and_is_applied_once() -> None:
    groups: list[dict[str, object]] = [
        {"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0, "lr_scale": 0.25},
        {"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(groups, Optim(name="adamw", weight_decay=0.1), 0.4)
    schedule = CosineSchedule(optimizer, 10, 0, 0.0, 0.0)
    schedule.apply(0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.4])


def test_layer_scales_are_the_official_ones() -> None:
    scales = [0.054976, 0.068719, 0.085899, 0.107374, 0.134218, 0.167772, 0.209715]
    scales += [0.262144, 0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0]
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=10, global_pool="avg")
    found = layer_scales(model, 0.8)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert found[name] == pytest.approx(scales[0], abs=5e-7), name
    for block in range(12):
        assert found[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(scales[block + 1], abs=5e-7)
        assert found[f"blocks.{block}.norm2.bias"] == pytest.approx(scales[block + 1], abs=5e-7)
    for name in ("fc_norm.weight", "head.weight", "head.bias"):
        assert found[name] == 1.0, name


# ------------------------------------------------------------------------- momentum, LARS, and what moves


def two_groups(decay: float) -> list[dict[str, object]]:
    """A matrix with weight decay and a bias without, both of ones."""
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    matrix.grad, bias.grad = torch.full((2, 2), 2.0), torch.full((3,), 2.0)
    return [{"params": [matrix], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]


def test_lars_adapts_what_decays_and_nothing_else() -> None:
    """By hand: |p| = 2, g = 2 + 0.1, |g| before decay = 4, trust = 0.02 · 2 / (4 + 0.1 · 2)."""
    groups = two_groups(0.1)
    build_optimizer(groups, Optim(name="lars", weight_decay=0.1, trust=0.02, momentum=0.0), 1.0).step()
    matrix, bias = groups[0]["params"][0], groups[1]["params"][0]  # type: ignore[index]
    trust = 0.02 * 2 / (4 + 0.1 * 2)
    torch.testing.assert_close(matrix.data, torch.full((2, 2), 1 - trust * 2.1))
    torch.testing.assert_close(bias.data, torch.full((3,), 1 - 2.0))


def test_sgd_takes_parameters_that_begin_to_learn_later() -> None:
    """As DINO's last layer, which rests for an epoch; against torch's own loop over the parameters."""
    found, expected = (
        [nn.Parameter(torch.linspace(-1, 1, 5)), nn.Parameter(torch.linspace(2, 3, 4))] for _ in range(2)
    )
    fused = build_optimizer([{"params": found}], Optim(name="sgd", weight_decay=0.1, momentum=0.9), 0.1)
    plain = torch.optim.SGD(expected, 0.1, 0.9, weight_decay=0.1, foreach=False, fused=False)
    for step in range(4):
        for ours, theirs in zip(found, expected, strict=True):
            learns = ours is found[0] or step >= 2
            for parameter in (ours, theirs):
                parameter.grad = torch.full_like(parameter, step + 1.0) if learns else None
        fused.step()
        plain.step()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_sgd_has_plain_momentum() -> None:
    """v ← 0.9 v + g, p ← p - lr v, twice with the same gradient."""
    groups = two_groups(0.0)
    optimizer = build_optimizer(groups, Optim(name="sgd", weight_decay=0.0, momentum=0.9), 0.1)
    optimizer.step()
    optimizer.step()
    bias = groups[1]["params"][0]  # type: ignore[index]
    torch.testing.assert_close(bias.data, torch.full((3,), 1 - 0.1 * 2 - 0.1 * (0.9 * 2 + 2)))


def test_weight_decay_follows_its_own_cosine_where_there_is_any() -> None:
    optimizer = build_optimizer(two_groups(0.04), Optim(name="adamw", weight_decay=0.04), 0.1)
    schedule = CosineSchedule(optimizer, 100, 10, 0.0, 0.0, weight_decay_end=0.4)
    seen = []
    for step in (0, 50, 100):
        schedule.apply(step)
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
    assert seen == [[0.04, 0.0], [pytest.approx(0.22), 0.0], [pytest.approx(0.4), 0.0]]


def test_weight_decay_goes_on_from_a_restored_optimizer() -> None:
    first = build_optimizer(two_groups(0.04), Optim(name="adamw", weight_decay=0.04), 0.1)
    CosineSchedule(first, 100, 10, 0.0, 0.0, weight_decay_end=0.4).apply(50)
    second = build_optimizer(two_groups(0.04), Optim(name="adamw", weight_decay=0.04), 0.1)
    schedule = CosineSchedule(second, 100, 10, 0.0, 0.0, weight_decay_end=0.4)
    second.load_state_dict(first.state_dict())
    schedule.apply(100)
    assert second.param_groups[0]["weight_decay"] == pytest.approx(0.4)


@pytest.mark.parametrize(("by", "expected"), [("all", [0.6, 0.8]), ("tensor", [1.0, 1.0])])
def test_gradients_are_clipped_together_or_each_by_itself(by: str, expected: list[float]) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm = clip_gradients_(parameters, 1.0, by)
    assert norm.item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters[:2]] == pytest.approx(expected, abs=1e-4)  # type: ignore[union-attr]
    assert parameters[2].grad is None


@pytest.mark.parametrize("limit", [0.0, 5.1])
def test_gradients_below_the_limit_stay_as_they_are(limit: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients_([parameter], limit).item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_a_device_clips_every_gradient_as_the_loop_does() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2, 5), (), (4, 3, 2, 2), (2, 5)]
    gradients = [10 ** (number - 2) * torch.randn(s, generator=generator) for number, s in enumerate(shapes)]
    gradients.append(torch.zeros(4))
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(parameter, 0.5)
    _clip_each_(gradients, 0.5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=0)
