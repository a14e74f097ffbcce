"""Generated images: the sampler's constraints, a fractal of known dimension, seeded bytes."""

from __future__ import annotations

import colorsys
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from sslkit.core import rng
from sslkit.core.errors import UserError
from sslkit.data.sources import fractal


def systems(count: int) -> list[fractal.System]:
    return [fractal.sample_system(rng.generator(0, 0, i, "test")) for i in range(count)]


def test_sigma_factor_holds_and_values_are_ordered() -> None:
    random = np.random.default_rng(0)
    for _ in range(6000):
        number = int(random.integers(2, 5))
        target = random.uniform((5 + number) / 2, (6 + number) / 2)
        first, second = fractal.sample_singular_values(number, target, random).T
        assert abs((first + 2 * second).sum() - target) < 1e-12
        assert (second >= 0).all()
        assert (second <= first + 1e-12).all()
        assert (first <= 1 + 1e-12).all()


def test_matrices_have_the_sampled_singular_values() -> None:
    """The generator's first draws are the values themselves; LAPACK finds them again in A."""
    for i in range(200):
        system = fractal.sample_system(rng.generator(0, 0, i, "test"))
        random = rng.generator(0, 0, i, "test")
        number = int(random.integers(2, 5))
        values = fractal.sample_singular_values(
            number, random.uniform((5 + number) / 2, (6 + number) / 2), random
        )
        found = np.linalg.svd(system.matrices, compute_uv=False)
        assert np.allclose(found, values, atol=1e-12)


def test_systems_use_two_to_four_maps_and_both_orientations() -> None:
    drawn = systems(200)
    assert {len(system.matrices) for system in drawn} == {2, 3, 4}
    turned = np.concatenate([np.linalg.det(system.matrices) < 0 for system in drawn])
    assert 0.4 < turned.mean() < 0.6
    offsets = np.concatenate([system.offsets for system in drawn])
    assert np.abs(offsets).max() <= 1
    assert abs(offsets.mean()) < 0.1


def sierpinski() -> fractal.System:
    matrices = np.broadcast_to(0.5 * np.eye(2), (3, 2, 2)).copy()
    return fractal.System(matrices, np.array([[0.0, 0.0], [0.5, 0.0], [0.25, 0.5]]))


def test_chaos_game_draws_sierpinskis_triangle() -> None:
    """Box counting over 1 … 32 pixels: log 3 / log 2 = 1.585 for the exact set."""
    points = fractal.chaos_game(sierpinski(), np.random.default_rng(0))
    filled = fractal.histogram(points, np.zeros(2), np.ones(2), 256) > 0
    sides = np.array([1, 2, 4, 8, 16, 32])
    counts = [filled.reshape(256 // s, s, 256 // s, s).any(axis=(1, 3)).sum() for s in sides]
    slope = -np.polyfit(np.log(sides), np.log(counts), 1)[0]
    assert slope == pytest.approx(1.585, abs=0.05)


def test_chaos_game_stays_on_the_attractor() -> None:
    """No point of the triangle falls into its central hole, not even a chain's first one."""
    x, y = fractal.chaos_game(sierpinski(), np.random.default_rng(0))
    # Corners (0, 0), (1, 0), (.5, 1); the hole is the triangle (.25, .5), (.75, .5), (.5, 0).
    inside = (y < 0.5 - 1e-4) & (np.abs(x - 0.5) < y / 2 - 1e-4)
    assert len(x) == 100_000
    assert not inside.any()


def test_maps_are_chosen_by_area() -> None:
    """Two maps onto separate discs with areas 4 : 1 get 80 % and 20 % of the points."""
    matrices = np.stack([0.4 * np.eye(2), 0.2 * np.eye(2)])
    system = fractal.System(matrices, np.array([[0.0, 0.0], [5.0, 5.0]]))
    x, _ = fractal.chaos_game(system, np.random.default_rng(0))
    assert (x > 4).mean() == pytest.approx(0.2, abs=0.01)


def test_histogram_counts_like_numpy_and_loses_what_is_outside() -> None:
    points = np.random.default_rng(0).uniform(-0.2, 1.2, (2, 5000)).astype(np.float32)
    counts = fractal.histogram(points, np.zeros(2), np.ones(2), 16)
    expected, _, _ = np.histogram2d(points[1], points[0], bins=16, range=[[0, 1], [0, 1]])
    assert np.abs(counts - expected).sum() <= 2  # a point exactly on a bin's edge
    assert counts.sum() < 5000


def test_stamp_is_a_slow_loop_over_points() -> None:
    random = np.random.default_rng(0)
    counts = np.zeros((8, 8), dtype=np.int64)
    counts[random.integers(0, 8, 5), random.integers(0, 8, 5)] += 2
    pattern = random.random((3, 3)) < 0.5
    expected = np.zeros((8, 8), dtype=np.int64)
    for row in range(8):
        for column in range(8):
            for i in range(3):
                for j in range(3):
                    source = row + i - 1, column + j - 1
                    if pattern[i, j] and min(source) >= 0 and max(source) < 8:
                        expected[row, column] += counts[source]
    assert np.array_equal(fractal.stamp(counts, pattern), expected)
    assert np.array_equal(fractal.stamp(counts, np.zeros((3, 3), dtype=bool)), counts)


def test_a_single_point_does_not_break_the_window() -> None:
    points = np.full((2, 100), 0.3, dtype=np.float32)
    assert fractal.rasterize(points, 32, np.random.default_rng(0)).max() == 255


def test_palette_is_hsv() -> None:
    table = fractal.palette(0.3, 0.7, 0.9)
    expected = [colorsys.hsv_to_rgb((level / 256 + 0.3) % 1, 0.7, 0.9) for level in range(256)]
    assert np.abs(table - 255 * np.array(expected)).max() <= 0.5 + 1e-9


def slow_refinement(texture: np.ndarray, noise: np.ndarray) -> np.ndarray:
    side = len(noise)
    finer = np.full((side, side), np.nan)
    finer[::2, ::2] = texture
    for steps, parity in (([(-1, -1), (-1, 1), (1, -1), (1, 1)], 0), ([(-1, 0), (1, 0), (0, -1), (0, 1)], 1)):
        for row in range(side):
            for column in range(side):
                if (row % 2, column % 2) == (0, 0) or (row + column) % 2 != parity:
                    continue
                near = [(row + i, column + j) for i, j in steps]
                values = [finer[r, c] for r, c in near if 0 <= r < side and 0 <= c < side]
                finer[row, column] = np.mean(values) + noise[row, column]
    return finer


def test_diamond_square_is_the_slow_loop() -> None:
    random = np.random.default_rng(3)
    texture, scale = random.uniform(-1.0, 1.0, (2, 2)), 1.0
    for side in (3, 5, 9):
        scale *= 0.6
        texture = slow_refinement(texture, random.uniform(-scale, scale, (side, side)))
    texture = texture[:8, :8]
    expected = np.floor(255 * (texture - texture.min()) / np.ptp(texture))
    found = fractal.diamond_square(8, 0.6, np.random.default_rng(3))
    assert np.abs(found - expected).max() <= 1


def test_rougher_textures_have_more_fine_detail() -> None:
    detail = [
        np.abs(np.diff(fractal.diamond_square(128, decay, np.random.default_rng(1)).astype(float))).mean()
        for decay in (0.4, 0.6, 0.8)
    ]
    assert detail[0] < detail[1] < detail[2]


def test_jitter_never_expands() -> None:
    random, changed = np.random.default_rng(0), 0
    for system in systems(1000):
        moved = fractal.jitter(system, random)
        changed += moved is not system
        assert np.linalg.norm(moved.matrices, ord=2, axis=(1, 2)).max() <= 1 + 1e-12
    assert changed > 900


def test_density_is_that_of_the_paper() -> None:
    """Card: all above 1 %, median in 10 … 30 %, over 100 systems in their own bounding box at 256."""
    filled = []
    for i, system in enumerate(systems(100)):
        points = fractal.chaos_game(system, np.random.default_rng(i))
        low, high = points.min(axis=1), points.max(axis=1)
        filled.append((fractal.histogram(points, low, high - low, 256) > 0).mean())
    assert min(filled) > 0.01
    assert 0.1 < np.median(filled) < 0.3


def test_empty_cells_keep_the_background_exactly() -> None:
    random = np.random.default_rng(0)
    background, foreground = random.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    grey = np.where(random.random((16, 16)) < 0.7, 0, random.integers(1, 256, (16, 16))).astype(np.uint8)
    image = fractal.compose(background, foreground, grey)
    for row in range(16):
        for column in range(16):
            expected = foreground if grey[row, column] else background
            assert (image[row, column] == expected[row, column]).all()


def test_render_is_deterministic_across_processes() -> None:
    digest = hashlib.sha256(fractal.render(5, 7, 96).tobytes()).hexdigest()
    code = (
        "import hashlib; from sslkit.data.sources import fractal; "
        "fractal.render(1, 1); print(hashlib.sha256(fractal.render(5, 7, 96).tobytes()).hexdigest())"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == digest


def test_systems_and_variants_differ() -> None:
    images = {fractal.render(s, v, 32).tobytes() for s in range(5) for v in range(5)}
    assert len(images) == 25


def test_render_has_colour_and_shape() -> None:
    image = fractal.render(0, 0, 96)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5
    assert fractal.draw("fractal:0000/00000").size == (fractal.SIDE, fractal.SIDE)


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (20, 2), (400, 4), (120_000, 1000)])
def test_names_are_dealt_evenly_to_classes(count: int, classes: int) -> None:
    names = fractal.names(count)
    assert len(set(names)) == count
    assert names == sorted(names)
    per_class = np.bincount([fractal.parse(name)[0] for name in names])
    assert len(per_class) == classes
    assert np.ptp(per_class) <= 1


@pytest.mark.parametrize(
    "text", ["fractal:", "fractal:0", "fractal:-3", "fractal:1e3", "fractal:²", "fractal:0/1"]
)
def test_a_wrong_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a number of images above 0"):
        fractal.count(text)
