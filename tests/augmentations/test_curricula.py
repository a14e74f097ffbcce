"""Curricula: the papers' stages and costs, the plan of a run, views at a stage's size."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sslkit.augmentations import curricula
from sslkit.augmentations.curricula.curriculum import (
    Curriculum,
    by_compute,
    by_steps,
    plan,
    stages_of,
    steps_per_full_step,
)
from sslkit.augmentations.curricula.shrink import fitted_side, shrunk
from sslkit.core.config.build import build
from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder


def made(name: str, **values: object) -> Curriculum:
    """By its settings, as the command line gives them."""
    kind = curricula.load(name)
    config = build(kind.Config, name, {f"{name}.{key}": value for key, value in values.items()})
    found: Curriculum = kind(config)
    return found


def seen(curriculum: Curriculum, progress: float) -> tuple[int, int]:
    """Side of 224 px and magnitude of 9."""
    stage = curriculum.at(progress)
    return round(stage.size * 224), round(stage.strength * 9)


def test_stages_of_efficienttrain_pp_are_the_published_ones() -> None:
    curriculum = made("efficienttrain_pp")
    expected = {
        0.0: (96, 0), 0.19: (96, 1), 0.2: (160, 2), 0.3: (160, 3), 0.59: (160, 5),
        0.6: (224, 6), 0.7: (224, 7), 0.999: (224, 9), 1.0: (224, 9),
    }  # fmt: skip
    assert {progress: seen(curriculum, progress) for progress in expected} == expected


def test_the_cost_table_of_efficienttrain_pp() -> None:
    """200 epochs at full size pay for 108.9 at 96 px a stage, 39.2 at 160 and 20 at 224: 454.58."""
    curriculum = made("efficienttrain_pp")
    assert 200 * steps_per_full_step(curriculum) == pytest.approx(454.58, abs=0.005)
    planned = plan(curriculum, 45458)  # a hundred steps an epoch
    assert planned.full_steps / 100 == pytest.approx(200.0, abs=0.01)
    lengths = [end - first for first, end in zip(planned.firsts, [*planned.firsts[1:], 45458], strict=True)]
    assert [round(length / 100, 1) for length in lengths] == [108.9] * 2 + [39.2] * 4 + [20.0] * 4


def test_the_cost_table_of_efficienttrain() -> None:
    """Five stages of equal length; 1 / (.6 (160 / 224)² + .2 (192 / 224)² + .2) = 1.531 times quicker."""
    curriculum = made("efficienttrain")
    assert steps_per_full_step(curriculum) == pytest.approx(1.531, abs=5e-4)
    planned = plan(curriculum, 300)
    assert planned.firsts == (0, 60, 120, 180, 240)
    assert 300 / planned.full_steps == pytest.approx(1.531, abs=5e-4)
    shown = [(round(stage.size * 224), round(stage.strength * 9)) for stage in planned.stages]
    assert shown == [(160, 1), (160, 3), (160, 5), (192, 7), (224, 9)]


def test_small_images_by_settings() -> None:
    """16, 24, 24, 32, 32 of 32 px for a fifth of the epochs each cost .675."""
    planned = plan(made("efficienttrain", sizes=[0.5, 0.75, 0.75, 1, 1]), 1000)
    assert planned.full_steps / 1000 == pytest.approx(0.675)


def test_fastdinov2_has_three_quarters_of_its_epochs_at_half_size() -> None:
    planned = plan(made("lowpass"), 200)
    assert planned.firsts == (0, 150)
    assert [stage.size for stage in planned.stages] == [0.5, 1.0]
    assert planned.full_steps == pytest.approx(200 * 7 / 16)
    assert plan(made("lowpass", share=0, size=0.25), 8).stages == plan(made("lowpass", share=0.0), 8).stages
    assert [stage.size for stage in plan(made("lowpass", share=1.0), 8).stages] == [0.5]


@pytest.mark.parametrize("name", curricula.names())
def test_a_plan_follows_the_curriculum(name: str) -> None:
    """Every step's stage is that of its share of the compute, but for a boundary's one step of rounding."""
    curriculum, steps = made(name), 997
    planned = plan(curriculum, steps)
    used = [planned.progress(step) for step in range(steps + 1)]
    assert (used[0], used[-1]) == (0.0, 1.0)
    slow = [planned.stage(step).cost / planned.full_steps for step in range(steps)]
    for step in range(steps):
        assert used[step + 1] - used[step] == pytest.approx(slow[step])  # continuous, however stages change
        near = {curriculum.at(min(1.0, max(0.0, used[step] + shift / steps))) for shift in (-2, 0, 2)}
        assert planned.stage(step) in near


def test_rates_by_progress_do_not_jump_where_a_stage_ends() -> None:
    planned = plan(made("efficienttrain_pp"), 1000)
    rates = [0.5 + 0.5 * math.cos(math.pi * planned.progress(step)) for step in range(1001)]
    steepest = math.pi / 2 / planned.full_steps  # of a schedule over steps at full size
    assert max(before - after for before, after in pairwise(rates)) < 2 * steepest
    other = plan(made("efficienttrain_pp", sizes=[0.5, 1]), 1000)
    at = [next(step for step in range(1001) if one.progress(step) >= 0.5) for one in (planned, other)]
    assert planned.progress(at[0]) == pytest.approx(other.progress(at[1]), abs=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_leave_stages_out_and_end_at_full_size(steps: int) -> None:
    planned = plan(made("efficienttrain_pp"), steps)
    assert planned.firsts[0] == 0
    assert len(planned.stages) <= steps
    assert planned.progress(steps) == 1.0


def test_parts_by_steps_and_by_compute_are_the_same_for_equal_costs() -> None:
    stages = stages_of([1.0, 1.0], [0.0, 1.0])
    assert by_steps(stages) == by_compute(stages)
    assert by_steps(stages, [0.25, 0.75])[1].share == 0.75


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="no stages"):
        made("efficienttrain", sizes=[])
    with pytest.raises(UserError, match=r"efficienttrain_pp\.sizes: 1\.2 is not <= 1"):
        made("efficienttrain_pp", sizes=[1.2])
    with pytest.raises(UserError, match=r"lowpass\.size: 0\.0 is not > 0"):
        made("lowpass", size=0)
    with pytest.raises(ValueError, match="0 steps"):
        plan(made("lowpass"), 0)


def test_sides_are_whole_strides_and_at_least_two() -> None:
    assert [fitted_side(224, side / 224, 16) for side in (96, 160, 192, 224)] == [96, 160, 192, 224]
    assert fitted_side(32, 160 / 224, 4) == 24
    assert fitted_side(96, 0.5, 16) == 48
    assert fitted_side(64, 0.1, 16) == 32
    assert fitted_side(32, 0.5, 32) == 32  # one stride: no smaller side
    assert fitted_side(98, 1.0, 16) == 98


def test_views_shrink_and_all_else_stays() -> None:
    views = {
        "first": torch.rand(3, 3, 32, 32),
        "local1": torch.rand(3, 3, 16, 16),
        "local1_box": torch.rand(3, 5),
    }
    small = shrunk({**views, "index": torch.arange(3)}, 0.5, 4)
    assert {name: tuple(value.shape) for name, value in small.items()} == {
        "first": (3, 3, 16, 16), "local1": (3, 3, 8, 8), "local1_box": (3, 5), "index": (3,),
    }  # fmt: skip
    assert (small["first"].mean((2, 3)) - views["first"].mean((2, 3))).abs().max() < 1e-6
    turned = shrunk({"first": views["first"].flip(-1)}, 0.5, 4)["first"]
    assert (turned - small["first"].flip(-1)).abs().max() < 1e-5
    assert shrunk(views, 1.0, 4)["first"] is views["first"]
    assert shrunk({"first": torch.rand(0, 3, 32, 32)}, 0.5, 4)["first"].shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("cut", "low", "high"), [(96, -0.074, 1.074), (160, -0.045, 1.045), (192, -0.025, 1.025)]
)
def test_an_edge_rings_as_much_as_it_should(cut: int, low: float, high: float) -> None:
    """A step from 0 to 1, by Gibbs: published to three digits."""
    edge = (torch.arange(224) >= 112).double().expand(1, 3, 224, 224)
    small = shrunk({"image": edge}, cut / 224, 16)["image"]
    corner = (
        torch.fft.ifft(torch.fft.fft(edge[0, 0, 0])[[*range(cut // 2), *range(-cut // 2, 0)]]).real
        * cut
        / 224
    )
    for line in (small[0, 0, 0], corner):
        assert low - 0.06 < line.min() < 0
        assert 1 < line.max() < high + 0.06
    assert (corner.min().item(), corner.max().item()) == (
        pytest.approx(low, abs=6e-4),
        pytest.approx(high, abs=6e-4),
    )


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_a_change_of_size_keeps_every_parameter_and_the_optimizers_state(backbone: str) -> None:
    encoder = Encoder(backbone, 96)
    head = nn.Linear(encoder.width, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
    views, before = {"image": torch.rand(2, 3, 96, 96)}, [id(one) for one in encoder.parameters()]
    planned = plan(made("efficienttrain_pp"), 20)
    for stage in dict.fromkeys(planned.stages):
        image = shrunk(views, stage.size, encoder.stride)["image"]
        optimizer.zero_grad()
        head(encoder.vector(image)).square().mean().backward()
        assert all(one.grad.isfinite().all() for one in encoder.parameters() if one.grad is not None)
        optimizer.step()
        states = len(optimizer.state)
    assert [id(one) for one in encoder.parameters()] == before
    assert len(optimizer.state) == states
