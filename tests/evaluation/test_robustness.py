"""Filters, single waves and the whole measurement, against NumPy and classifiers whose answers are known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sslkit.augmentations.corruptions import CORRUPTIONS, common_corruption
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.robustness.fourier_sensitivity import (
    add_wave,
    default_norm,
    default_radii,
    half_of,
    heat_map_axis,
    high_passed,
    low_passed,
    mirrored,
    wave,
)
from sslkit.evaluation.robustness.measure import Labelled, read_labelled, robustness, spread_over_classes
from sslkit.evaluation.robustness.robustness_result import (
    RobustnessResult,
    against,
    make_robustness_plan,
    show_robustness,
)
from sslkit.visualization.figures.robustness_charts import (
    attack_curves,
    corruption_bars,
    heat_maps,
    radius_curves,
)
from sslkit.visualization.report.stored import robustness_figures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data() -> Labelled:
    """Forty images, the even ones darker: class 0."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 2
    level = torch.where(labels == 0, 0.35, 0.6)[:, None, None, None]
    noisy = level + 0.1 * torch.randn(40, 3, 16, 16, generator=random)
    return Labelled((noisy.clamp(0, 1) * 255).round().byte(), labels, torch.arange(40) * 3)


def by_brightness(images: Tensor) -> Tensor:
    level = 20 * (images.mean((1, 2, 3)) - 0.475)
    return torch.stack([-level, level], 1)


def always_zero(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))[:, None] * 1e-6 + torch.tensor([1.0, 0.0])


@pytest.fixture(scope="module")
def result(data: Labelled) -> RobustnessResult:
    plan = make_robustness_plan(16, severities=(1, 5), heat_map=2, epsilons=(1.0, 64.0), steps=3)
    sources = [("brightness", by_brightness), ("zero", always_zero)]
    return robustness(sources, data, plan, device=CPU, baselines={"brightness": "zero"})


# --------------------------------------------------------------------------------------------- frequencies


def test_low_pass_beyond_the_corner_is_the_identity(images: Tensor) -> None:
    for radius in (16.0, 11.4):  # 16 / √2 = 11.3
        assert torch.allclose(low_passed(images, radius), images, atol=1e-6)
    assert not torch.allclose(low_passed(images, 8), images, atol=1e-2)


def test_high_pass_of_all_but_the_mean_is_the_identity(images: Tensor) -> None:
    assert torch.allclose(high_passed(images, 1), images, atol=1e-6)
    nothing = high_passed(images, 16)
    assert torch.allclose(nothing, images.mean((2, 3), keepdim=True).expand_as(nothing), atol=1e-6)


def test_filters_are_numpys(images: Tensor) -> None:
    quiet = 0.4 + 0.2 * images  # so that nothing is clamped
    rows, columns = np.mgrid[:16, :16] - 8
    inside = np.fft.ifftshift(rows**2 + columns**2 < 3**2)
    spectrum = np.fft.fft2(quiet.double().numpy())
    low = np.fft.ifft2(spectrum * inside).real
    assert np.allclose(low_passed(quiet, 3).numpy(), low, atol=1e-5)
    mean = quiet.double().numpy().mean((2, 3), keepdims=True)
    assert np.allclose(high_passed(quiet, 3).numpy(), quiet.numpy() - low + mean, atol=1e-5)


def test_radii_double_every_second_time_up_to_half_the_side() -> None:
    assert default_radii(32) == (1.0, 1.41, 2.0, 2.83, 4.0, 5.66, 8.0, 11.31, 16.0)
    large = default_radii(224)
    assert large[-1] == 112
    assert 1 <= large[0] < 2**0.5


@pytest.mark.parametrize("frequency", [(0, 0), (0, 3), (5, 0), (-3, 7), (8, 8), (2, 8), (-8, 1)])
@pytest.mark.parametrize("shape", [(16, 16), (16, 17)])
def test_a_wave_has_norm_one_and_its_own_two_frequencies(
    frequency: tuple[int, int], shape: tuple[int, int]
) -> None:
    noise = wave(*shape, frequency).double().numpy()
    assert np.sqrt((noise**2).sum()) == pytest.approx(1, abs=1e-6)
    power = np.abs(np.fft.fft2(noise, norm="ortho")) ** 2
    down, right = frequency
    own = {(down % shape[0], right % shape[1]), (-down % shape[0], -right % shape[1])}
    assert {(int(y), int(x)) for y, x in np.argwhere(power > 1e-6)} == own
    assert sum(power[place] for place in own) == pytest.approx(1, abs=1e-6)


def test_added_waves_have_the_norm_and_signs_of_their_own() -> None:
    grey, index = torch.full((64, 3, 16, 16), 0.5), torch.arange(64)
    noise = add_wave(grey, index, (2, -3), norm=2.0) - 0.5
    assert torch.allclose(noise.flatten(2).norm(dim=2), torch.full((64, 3), 2.0), atol=1e-4)
    signs = (noise * wave(16, 16, (2, -3))).sum((2, 3)).sign()
    assert abs(float(signs.mean())) < 0.3
    assert len({tuple(row) for row in signs.tolist()}) == 8  # channels are independent
    assert torch.equal(add_wave(grey[5:6], index[5:6], (2, -3), norm=2.0) - 0.5, noise[5:6])
    assert not torch.equal(add_wave(grey, index, (2, -3), norm=2.0, seed=1) - 0.5, noise)


def test_the_papers_norms() -> None:
    assert default_norm(32) == 4
    assert default_norm(224) == pytest.approx(15.7)
    assert default_norm(64) == 8


def test_half_of_a_heat_map_tells_the_other_half() -> None:
    axis = heat_map_axis(16, 3)
    assert axis == (-8, -5, -3, 0, 3, 5, 8)
    half = half_of(axis)
    assert len(half) == (7 * 7 + 1) // 2
    whole = np.array(mirrored({w: float(number) for number, w in enumerate(half)}, axis))
    assert np.array_equal(whole, whole[::-1, ::-1])
    assert len(np.unique(whole)) == len(half)
    assert whole[axis.index(5), axis.index(-3)] == half.index((-5, 3))
    with pytest.raises(ValueError, match="1 to 8"):
        heat_map_axis(16, 9)


# ---------------------------------------------------------------------------------------------- measurement


def test_every_figure_is_the_accuracy_of_a_loop_over_single_images(
    result: RobustnessResult, data: Labelled
) -> None:
    row = result.rows[0]

    def accuracy(name: str, severity: int) -> float:
        hits = 0
        for number in range(40):
            image, index = data.pixels[number : number + 1], data.index[number : number + 1]
            seen = common_corruption(image, index, name, severity)
            hits += int(by_brightness(seen).argmax() == data.labels[number])
        return 100 * hits / 40

    for name in ("gaussian_noise", "brightness", "fog"):
        assert row.corruptions[name] == (accuracy(name, 1), accuracy(name, 5))
    assert row.clean == 100
    assert row.corrupted == pytest.approx(np.mean([row.corruptions[name] for name in CORRUPTIONS]))


def test_what_the_classifiers_must_show(result: RobustnessResult) -> None:
    bright, zero = result.rows
    assert zero.clean == 50
    assert all(set(accuracies) == {50} for accuracies in zero.corruptions.values())
    assert bright.corruptions["pixelate"] == (100, 100)  # means survive
    assert bright.low_pass[-1] == bright.high_pass[-1] == 100
    assert bright.fgsm[1] == bright.pgd[1] == 0  # 64 / 255 moves the mean across
    assert bright.fgsm[0] == bright.pgd[0] == 100
    assert np.array(bright.heat_map)[2, 2] < 100  # the mean itself is moved
    assert bright.heat_map[0][0] == 0


def test_errors_relative_to_the_baseline(result: RobustnessResult) -> None:
    bright, zero = result.rows
    errors = {n: [sum(100 - a for a in row.corruptions[n]) for row in (bright, zero)] for n in CORRUPTIONS}
    expected = np.mean([100 * own / other for own, other in errors.values()])
    assert bright.mean_corruption_error == pytest.approx(expected)
    assert zero.mean_corruption_error == 100
    assert bright.relative_corruption_error is None  # the baseline loses nothing: no ratio
    assert zero.difference is None
    assert bright.difference is not None
    assert bright.corrupted is not None
    assert bright.difference.points == pytest.approx(bright.corrupted - 50)
    shares = (bright.share - zero.share).numpy()
    assert bright.difference.margin == pytest.approx(100 * 1.96 * shares.std(ddof=1) / 40**0.5)


def test_each_source_has_its_own_baseline(data: Labelled) -> None:
    """Two architectures: an error relative to the other one's random weights would say nothing."""
    plan = make_robustness_plan(16, severities=(5,), radii=(), heat_map=0, epsilons=())

    def always_one(images: Tensor) -> Tensor:
        return always_zero(images).flip(1)

    def dark_as_one(images: Tensor) -> Tensor:
        return by_brightness(images).flip(1)

    sources = [("a", by_brightness), ("b", dark_as_one), ("random a", always_zero), ("random b", always_one)]
    found = robustness(sources, data, plan, device=CPU, baselines={"a": "random a", "b": "random b"})
    rows = {row.name: row for row in found.rows}
    assert [row.baseline for row in found.rows] == ["random a", "random b", None, None]
    for own, other in (("a", "random a"), ("b", "random b")):
        shares = (rows[own].share - rows[other].share).numpy()
        difference = rows[own].difference
        assert difference is not None
        assert difference.points == pytest.approx(100 * shares.mean())
        errors = [
            (100 - rows[own].corruptions[n][0]) / (100 - rows[other].corruptions[n][0]) for n in CORRUPTIONS
        ]
        assert rows[own].mean_corruption_error == pytest.approx(100 * np.mean(errors))
    assert rows["a"].difference != rows["b"].difference


def test_relative_errors_take_the_clean_error_off(result: RobustnessResult) -> None:
    base = result.rows[0]
    lost = dict.fromkeys(CORRUPTIONS, (base.clean - 10, base.clean - 30))
    more = dict.fromkeys(CORRUPTIONS, (80 - 30, 80 - 50))
    baseline = dataclasses.replace(base, corruptions=lost)
    found = against(dataclasses.replace(base, clean=80.0, corruptions=more), baseline)
    assert found.relative_corruption_error == pytest.approx(200)  # (30 + 50) / (10 + 30)
    assert found.mean_corruption_error == pytest.approx(300)  # (50 + 70) / (10 + 30)


def test_the_document_is_json_without_the_shares(result: RobustnessResult) -> None:
    document = json.loads(json.dumps(result.to_document()))
    assert document["count"] == 40
    assert document["plan"]["severities"] == [1, 5]
    first = document["rows"][0]
    assert "share" not in first
    assert first["difference"]["outcome"] == "better"
    assert len(first["heat_map"]) == len(first["heat_map"][0]) == 5
    assert set(first["corruptions"]) == set(CORRUPTIONS)


def test_parts_that_are_not_asked_for_are_left_out(data: Labelled) -> None:
    plan = make_robustness_plan(16, severities=(), radii=(), heat_map=0, epsilons=())
    (row,) = robustness([("zero", always_zero)], data, plan, device=CPU).rows
    assert (row.clean, row.corrupted, row.corruptions) == (50, None, {})
    assert (row.low_pass, row.heat_map, row.pgd, row.difference) == ((), (), (), None)


def test_faults_of_the_caller(data: Labelled) -> None:
    plan = make_robustness_plan(16, severities=(), radii=(), heat_map=0, epsilons=())
    twice = [("zero", always_zero), ("zero", always_zero)]
    for sources, baselines in (([], {}), (twice, {}), (twice[:1], {"zero": "other"})):
        with pytest.raises(ValueError, match="expected"):
            robustness(sources, data, plan, device=CPU, baselines=baselines)


def test_the_table_tells_all_sources(result: RobustnessResult, capsys: pytest.CaptureFixture[str]) -> None:
    show_robustness(result, Console())
    told = capsys.readouterr().err
    assert "40 images" in told
    assert "brightness  100.0" in told
    assert "PGD 64/255" in told
    assert "brightness against zero" in told
    assert "mCE" in told


# ----------------------------------------------------------------------------------------------------- data


def test_spread_keeps_the_proportions_of_the_classes() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    chosen = spread_over_classes(labels, 20)
    assert chosen == sorted(set(chosen))
    assert [sum(labels[place] == c for place in chosen) for c in range(3)] == [12, 6, 2]
    assert spread_over_classes(labels, 1000) == list(range(100))


def test_images_are_read_once_and_bad_ones_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(6):
            level = 20 * number + (100 if name == "b" else 0)
            Image.new("RGB", (20, 20), (level, level, level)).save(tmp_path / name / f"{number}.png")
    train, validation = open_labelled(str(tmp_path))
    read = read_labelled(train, 16, limit=6)
    assert read.pixels.shape == (6, 3, 16, 16)
    assert read.index.tolist() == spread_over_classes(train.labels or (), 6) != list(range(6))
    for place, label, pixels in zip(read.index.tolist(), read.labels.tolist(), read.pixels, strict=True):
        with Image.open(train.paths[place]) as original:
            assert pixels[:, 8, 8].tolist() == list(original.getpixel((10, 10)))
        assert label == train.labels[place]
    broken = Path(train.paths[int(read.index[0])])
    broken.write_bytes(b"no picture")
    assert read_labelled(train, 16, limit=6).index.tolist() == read.index.tolist()[1:]
    for path in validation.paths:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="can be read"):
        read_labelled(validation, 16)


# -------------------------------------------------------------------------------------------------- figures


def rendered_inside(figure: Figure) -> bool:
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    return bool(page.x0 <= drawn.x0 and drawn.x1 <= page.x1 and page.y0 <= drawn.y0 and drawn.y1 <= page.y1)


@pytest.mark.parametrize("draw", [corruption_bars, radius_curves, heat_maps, attack_curves])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_figures_hold_all_that_is_drawn(result: RobustnessResult, draw: object, count: int) -> None:
    named = [dataclasses.replace(result.rows[0], name=f"runs/mfm-{'x' * 20}-{n}") for n in range(count - 1)]
    assert callable(draw)
    figure = draw(dataclasses.replace(result, rows=(*named, result.rows[1])))
    assert isinstance(figure, Figure)
    assert rendered_inside(figure)


def test_figures_show_the_figures(result: RobustnessResult) -> None:
    bars = corruption_bars(result).axes[0]
    heights = [bar.get_height() for bar in bars.patches[:15]]
    assert heights == pytest.approx([np.mean(result.rows[0].corruptions[name]) for name in CORRUPTIONS])
    maps = heat_maps(result).axes[0].images  # of every source, then of every one minus the baseline
    assert np.allclose(np.asarray(maps[0].get_array()), result.rows[0].heat_map)
    gap = np.subtract(result.rows[0].heat_map, result.rows[1].heat_map)
    assert np.allclose(np.asarray(maps[len(result.rows)].get_array()), gap, atol=1e-4)
    low, high = radius_curves(result).axes
    assert np.allclose(low.lines[0].get_ydata(), result.rows[0].low_pass)
    assert np.allclose(high.lines[0].get_ydata(), result.rows[0].high_pass)
    attacks = attack_curves(result).axes[0].lines
    assert np.allclose(attacks[0].get_ydata(), (100, *result.rows[0].pgd))


@pytest.mark.parametrize(
    ("count", "told"), [(40, "40 images: ± 15 points"), (25, "25 images, too few for claims")]
)
def test_pictures_say_what_so_few_images_are_worth(result: RobustnessResult, count: int, told: str) -> None:
    """Forty at 50 %: 1.96 times the root of a quarter over 40 is 0.155."""
    for draw in (corruption_bars, radius_curves, heat_maps, attack_curves):
        texts = [text.get_text() for text in draw(dataclasses.replace(result, count=count)).texts]
        assert any(told in text for text in texts)


@pytest.mark.parametrize("draw", [radius_curves, attack_curves])
def test_names_are_below_the_axis(result: RobustnessResult, draw: Callable[..., Figure]) -> None:
    named = [dataclasses.replace(result.rows[0], name=f"runs/mfm-{'x' * 40}-{n}") for n in range(6)]
    figure = draw(dataclasses.replace(result, rows=(*named, result.rows[1])))
    (names,) = figure.legends
    assert names.get_window_extent().y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_nothing_measured_nothing_drawn(data: Labelled) -> None:
    plan = make_robustness_plan(16, severities=(), radii=(), heat_map=0, epsilons=())
    empty = robustness([("zero", always_zero)], data, plan, device=CPU)
    assert robustness_figures(empty) == {}
