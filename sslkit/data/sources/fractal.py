"""Images from nothing: iterated function systems, so that the tool works without any data.

After Anderson and Farrell, Improving Fractal Pre-training, WACV 2022 (arXiv 2110.03091). A class is a
system of affine maps; its images differ by a jitter of one map, the window, mirroring, colours, the
background and blur. Everything is a function of (system, variant), the two numbers in an image's name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sslkit.core import rng
from sslkit.core.errors import UserError

SIDE = 128
"""Pixels a side of the images that `fractal:N` stands for."""
PER_CLASS = 100
"""Images per class that `fractal:N` aims at; there are 2 to 1,000 classes."""
LABELLED_MINIMUM = 20
"""Images below which the two classes would be too small to hold any out."""

_PREFIX = "fractal:"
_CHAINS = 1000
_STEPS = 100
_BURN_IN = 20

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class System:
    """n affine maps x → A x + b of the plane: `matrices` [n, 2, 2] and `offsets` [n, 2]."""

    matrices: Floats
    offsets: Floats


def is_name(text: str) -> bool:
    """Whether `text` is `fractal:N` or the name of one generated image."""
    return text.startswith(_PREFIX)


def count(source: str) -> int:
    """N of `fractal:N`. Raises UserError when it is not a whole number above 0."""
    text = source.removeprefix(_PREFIX)
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UserError(
            f"{source}: {text!r} is not a number of images above 0", hint="for example fractal:1000"
        )
    return int(text)


def names(count: int) -> list[str]:
    """Sorted names of `count` images, dealt to the classes in turn."""
    classes = max(2, min(1000, count // PER_CLASS))
    return sorted(f"{_PREFIX}{i % classes:04}/{i // classes:05}" for i in range(count))


def parse(name: str) -> tuple[int, int]:
    """(system, variant) of an image's name."""
    system, variant = name.removeprefix(_PREFIX).split("/")
    return int(system), int(variant)


def draw(name: str) -> Image.Image:
    """The generated image of that name, RGB, SIDE x SIDE."""
    return Image.fromarray(render(*parse(name)))


def render(system: int, variant: int, size: int = SIDE) -> Bytes:
    """One image of one class, uint8 [size, size, 3]; the same arguments give the same bytes.

    As the paper's single-fractal generator, at SIDE pixels instead of 256. One difference: the hue turns
    within its full circle (there it is a byte modulo 256 read as a hue of 180 levels).
    """
    maps = sample_system(rng.generator(0, 0, system, "fractal system"))
    random = rng.generator(0, variant, system, "fractal image")
    points = chaos_game(jitter(maps, random), random)
    grey = _mirrored(rasterize(points, size, random), random)
    texture = diamond_square(size, random.uniform(0.4, 0.8), random)
    image = compose(_random_palette(random)[texture], _random_palette(random)[grey], grey)
    if random.random() < 0.5:
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0)))
        return np.asarray(blurred)
    return image


def sample_system(random: np.random.Generator) -> System:
    """A system that converges and looks rich (§3.2): A = U diag(s) V, with the sigma-factor in a range.

    U and V are rotations with random reflections, offsets are uniform in [-1, 1]².
    """
    number = int(random.integers(2, 5))
    target = random.uniform((5 + number) / 2, (6 + number) / 2)
    singular = sample_singular_values(number, target, random)  # [n, 2]
    left, right = _rotations(number, random), _rotations(number, random)
    signs = random.choice([-1.0, 1.0], size=(number, 2))
    matrices = (left * (singular * signs)[:, None, :]) @ right
    return System(matrices, random.uniform(-1.0, 1.0, size=(number, 2)))


def sample_singular_values(number: int, target: float, random: np.random.Generator) -> Floats:
    """Pairs 0 <= s2 <= s1 <= 1 with sum(s1 + 2 s2) = `target`, the sigma-factor.

    Args:
        number: pairs, n.
        target: within [0, 3n].

    Returns:
        float64 [n, 2]. Each value is uniform between the bounds the ones before it leave; `left` is what
        is still to be given, `least` what this pair must take because the later ones hold at most 3 each.
    """
    values, left = np.empty((number, 2)), target
    for position in range(number - 1):
        least = left - 3 * (number - position) + 3
        first = random.uniform(max(0.0, least / 3), min(1.0, left))
        left, least = left - first, least - first
        second = random.uniform(max(0.0, least / 2), min(first, left / 2))
        left -= 2 * second
        values[position] = first, second
    second = random.uniform(max(0.0, (left - 1) / 2), left / 3)
    values[-1] = left - 2 * second, second
    return values


def jitter(system: System, random: np.random.Generator, tries: int = 4) -> System:
    """One of the maps scaled by U(0.8, 1.1); the same system if no draw of `tries` would contract."""
    for _ in range(tries):
        chosen, factor = random.integers(len(system.matrices)), random.uniform(0.8, 1.1)
        matrices, offsets = system.matrices.copy(), system.offsets.copy()
        matrices[chosen] *= factor
        offsets[chosen] *= factor
        if np.linalg.norm(matrices[chosen], ord=2) <= 1.0:
            return System(matrices, offsets)
    return system


def chaos_game(system: System, random: np.random.Generator, steps: int = _STEPS) -> NDArray[np.float32]:
    """Points of the attractor, float32 [2, steps * 1000]: a thousand short chains instead of a long one.

    A map is chosen with probability |det A| / sum. All chains start at a fixed point, which lies on the
    attractor; the burn-in makes them independent.
    """
    choices = _choices(system, (_BURN_IN + steps, _CHAINS), random)
    xx, xy, yx, yy = (c[choices] for c in system.matrices.reshape(-1, 4).T.astype(np.float32))
    x_offset, y_offset = (c[choices] for c in system.offsets.T.astype(np.float32))
    points = np.empty((2, _BURN_IN + steps, _CHAINS), dtype=np.float32)
    x, y = np.broadcast_to(_fixed_point(system).astype(np.float32)[:, None], (2, _CHAINS))
    for t in range(_BURN_IN + steps):
        x, y = xx[t] * x + xy[t] * y + x_offset[t], yx[t] * x + yy[t] * y + y_offset[t]
        points[0, t], points[1, t] = x, y
    return points[:, _BURN_IN:].reshape(2, -1)


def rasterize(points: NDArray[np.float32], size: int, random: np.random.Generator) -> Bytes:
    """Points [2, N] as grey levels, uint8 [size, size]; 0 is empty.

    The window is the bounding box scaled by U(0.5, 2) and moved by up to a fifth of it; with probability
    one half every point becomes the same random 3x3 pattern.
    """
    low, high = points.min(axis=1), points.max(axis=1)
    span = np.maximum(high - low, 1e-6) * random.uniform(0.5, 2.0)  # all points equal: any window will do
    centre = (low + high) / 2 + span * random.uniform(-0.2, 0.2, size=2)
    counts = histogram(points, centre - span / 2, span, size)
    if random.random() < 0.5:
        counts = stamp(counts, random.random((3, 3)) < 0.5)
    grey: Bytes = np.ceil(counts * (255.0 / max(int(counts.max()), 1))).astype(np.uint8)
    return grey


def histogram(points: NDArray[np.float32], corner: Floats, span: Floats, size: int) -> NDArray[np.int64]:
    """How many of the points [2, N] fall into each cell of a window, int64 [size, size]; the rest is lost."""
    scale = (size * (1 - 1e-6)) / span  # a point on the far edge still belongs to the last cell
    column, row = (points - corner[:, None].astype(np.float32)) * scale[:, None].astype(np.float32)
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    cells = row[inside].astype(np.int64) * size + column[inside].astype(np.int64)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def stamp(counts: NDArray[np.int64], pattern: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Every point replaced by a 3x3 pattern: the sum of shifted histograms. An empty pattern is the point."""
    padded, size = np.pad(counts, 1), counts.shape[0]
    shifts = [padded[r : r + size, c : c + size] for r, c in zip(*np.nonzero(pattern), strict=True)]
    return np.sum(shifts, axis=0) if shifts else counts


def diamond_square(size: int, decay: float, random: np.random.Generator) -> Bytes:
    """A cloud texture, uint8 [size, size]: midpoint displacement whose noise shrinks by `decay` a level."""
    texture, scale = random.uniform(-1.0, 1.0, (2, 2)), 1.0
    while texture.shape[0] < size:
        scale *= decay
        texture = _refined(texture, scale, random)
    texture = texture[:size, :size]
    grey: Bytes = ((texture - texture.min()) * (255.0 / max(float(np.ptp(texture)), 1e-9))).astype(np.uint8)
    return grey


def compose(background: Bytes, foreground: Bytes, grey: Bytes) -> Bytes:
    """The foreground [H, W, 3] where `grey` [H, W] is not 0, else the background, each exactly."""
    return np.where((grey > 0)[..., None], foreground, background)


def palette(offset: float, saturation: float, value: float) -> Bytes:
    """RGB of 256 grey levels, uint8 [256, 3]: the level, plus `offset`, is the hue on a full circle (HSV)."""
    hue = (np.arange(256) / 256 + offset) % 1.0
    phase = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6  # [256, 3]
    share = np.clip(np.minimum(phase, 4 - phase), 0.0, 1.0)
    return np.round(255 * value * (1 - saturation * share)).astype(np.uint8)


def _random_palette(random: np.random.Generator) -> Bytes:
    return palette(random.random(), random.uniform(0.3, 1.0), random.uniform(0.5, 1.0))


def _rotations(number: int, random: np.random.Generator) -> Floats:
    """float64 [n, 2, 2], by angles uniform on the circle."""
    angle = random.uniform(-np.pi, np.pi, number)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(number, 2, 2)


def _choices(system: System, shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.intp]:
    """Indices of maps, drawn by area: |det A|."""
    areas = np.abs(np.linalg.det(system.matrices))
    edges = np.cumsum(areas / areas.sum())[:-1]
    return np.searchsorted(edges, random.random(shape, dtype=np.float32), side="right")


def _fixed_point(system: System) -> Floats:
    """x = A x + b for the map that contracts most, where the equation is best conditioned."""
    chosen = np.argmin(np.linalg.norm(system.matrices, ord=2, axis=(1, 2)))
    return np.linalg.solve(np.eye(2) - system.matrices[chosen], system.offsets[chosen])


def _mirrored(grey: Bytes, random: np.random.Generator) -> Bytes:
    """One of the eight symmetries of the square."""
    transpose, vertical, horizontal = random.random(3) < 0.5
    grey = grey.T if transpose else grey
    return grey[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _refined(texture: Floats, scale: float, random: np.random.Generator) -> Floats:
    """[m, m] → [2m - 1, 2m - 1]: squares' centres from their corners, then the points between."""
    side = 2 * texture.shape[0] - 1
    noise = random.uniform(-scale, scale, (side, side))
    finer = np.zeros((side, side))
    finer[::2, ::2] = texture
    corners = texture[:-1, :-1] + texture[1:, :-1] + texture[:-1, 1:] + texture[1:, 1:]
    finer[1::2, 1::2] = corners / 4 + noise[1::2, 1::2]
    for edges in (np.s_[::2, 1::2], np.s_[1::2, ::2]):
        finer[edges] = _neighbour_mean(finer)[edges] + noise[edges]
    return finer


def _neighbour_mean(grid: Floats) -> Floats:
    """Mean of the up, down, left and right neighbours that exist."""
    padded, exists = np.pad(grid, 1), np.pad(np.ones_like(grid), 1)
    total, number = (a[:-2, 1:-1] + a[2:, 1:-1] + a[1:-1, :-2] + a[1:-1, 2:] for a in (padded, exists))
    return total / number
