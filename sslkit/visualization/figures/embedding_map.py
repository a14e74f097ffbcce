"""All images on a plane, alike ones close together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from torch import Tensor

from sslkit.core.console import SILENT, Console, counted
from sslkit.core.errors import first_line
from sslkit.visualization.figures.pca import principal_components
from sslkit.visualization.figures.style import (
    COLOURS,
    MARGIN,
    MUTED,
    RULE,
    SMALL,
    TEXT,
    Sheet,
    beginning,
    colour_of,
    plain,
)

_SIDE = 5.2  # of a map, inches
_FLAT = 0.45  # of its width: a frame's least height
_THUMBNAIL = 0.34  # inches
MARKERS = "os^"
CLASSES = 12
"""With a colour and a marker of their own; the rest is grey."""
_FEW = 5
"""Fewer images make no map of neighbourhoods."""
MANY = 20
"""Of fewer images none is left out as lying far away."""

Points = NDArray[np.float64]


def principal(vectors: NDArray[np.float32]) -> tuple[Points, list[float]]:
    """The first two principal components [N, 2], and their shares of the variance."""
    points, variance = principal_components(torch.from_numpy(vectors).double(), 2)
    return points.numpy(), (variance[:2] / variance.sum().clamp_min(1e-30)).tolist()


def projections(vectors: NDArray[np.float32], seed: int, console: Console = SILENT) -> dict[str, Points]:
    """Plane positions by the name of how they were made: PCA, and UMAP or else t-SNE where usable."""
    points, shares = principal(vectors)
    found = {f"PCA, {shares[0]:.0%} and {shares[1]:.0%} of the variance": points}
    if len(vectors) >= _FEW:
        for name, made in _neighbourhoods(len(vectors), seed, console):
            found[name] = np.asarray(made.fit_transform(vectors - vectors.mean(0)), dtype=np.float64)
            break
    return found


def _neighbourhoods(count: int, seed: int, console: Console) -> Iterator[tuple[str, Any]]:
    """What is installed and can be imported, the better one first."""
    for name, package, module, settings in (
        ("UMAP", "umap", "umap", {"n_neighbors": min(15, count - 1), "n_jobs": 1}),
        ("t-SNE", "sklearn", "sklearn.manifold", {"perplexity": min(30.0, (count - 1) / 3), "init": "pca"}),
    ):
        if find_spec(package):
            try:
                kind = getattr(import_module(module), name.replace("-", "").upper())
            except Exception as problem:  # whatever a package raises that lacks its own dependencies
                console.warn(f"map without {name}: {package} can't be imported, {first_line(problem)}")
            else:
                yield name, kind(metric="cosine", random_state=seed, **settings)


def image_map(
    points: dict[str, Points], thumbnails: Callable[[int], Tensor], labels: Sequence[str] | None, name: str
) -> Figure:
    """A row for every projection: thumbnails, and with labels a dot for each image in its class's colour.

    thumbnails: position → picture [3, s, s] in [0, 1]; asked for those that are shown only.
    """
    count = len(next(iter(points.values())))
    across = 2 if labels else 1
    legend_room = 1.45 if labels else 0.0
    heights = [height(*limits(places)) for places in points.values()]
    sheet = Sheet(
        MARGIN + across * (_SIDE + 0.3) + legend_room, 0.75 + sum(heights) + 0.45 * len(heights) + 0.1,
        f"{counted(count, 'image')} as {name} sees them",
        "alike images lie close together; both axes have the same scale, without a unit",
    )  # fmt: skip
    for row, (title, places) in enumerate(points.items()):
        top = 0.75 + sum(heights[:row]) + row * 0.45 + 0.3
        low, high = limits(places)
        axes = _frame(sheet, MARGIN, top, low, high)
        outside = int((~_inside(axes, places)).sum())
        _title(axes, title + (f"; {outside:,} of {count:,} lie outside" if outside else ""))
        _thumbnails(axes, places, thumbnails)
        if labels:
            axes = _frame(sheet, MARGIN + _SIDE + 0.3, top, low, high)
            _title(axes, "classes")
            _dots(axes, places, labels)
    return sheet.figure


def limits(places: Points) -> tuple[Points, Points]:
    """The corners of what is shown, low and high [2] each: all points [N, 2], but for a few far outliers.

    A single one would squeeze all others into a spot. Far is more than half a span beyond the 1st or the
    99th percentile of an axis.
    """
    if len(places) < MANY:
        return places.min(0), places.max(0)
    low = np.quantile(places, 0.01, axis=0, method="higher")
    high = np.quantile(places, 0.99, axis=0, method="lower")
    room = np.where(high > low, (high - low) / 2, np.inf)
    near = places[((places >= low - room) & (places <= high + room)).all(1)]
    return near.min(0), near.max(0)


def height(low: Points, high: Points) -> float:
    """Inches of a frame that is `_SIDE` wide: a flat cloud gets a flat one, but room for classes."""
    across, up = high - low
    shape = float(up / max(across, 1e-9))
    return 2 * _THUMBNAIL + (_SIDE - 2 * _THUMBNAIL) * min(1.0, max(_FLAT, shape))


def _frame(sheet: Sheet, left: float, top: float, low: Points, high: Points) -> Axes:
    """Axes from corner to corner, one scale for both; room for a thumbnail at the rim.

    Axes with scales of their own would show distances that are not there.
    """
    size = np.array([_SIDE, height(low, high)])
    axes = sheet.axes(left, top, *size)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=RULE)
    reach = max(*((high - low) / (size - 2 * _THUMBNAIL)), 1e-9) * size / 2
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - reach[0], middle[0] + reach[0])
    axes.set_ylim(middle[1] - reach[1], middle[1] + reach[1])
    return axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=TEXT, loc="left", pad=5)


def _inside(axes: Axes, places: Points) -> NDArray[np.bool_]:
    """Which points [N] the frame shows."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return np.asarray(((places >= (left, bottom)) & (places <= (right, top))).all(1))


def _thumbnails(axes: Axes, places: Points, thumbnails: Callable[[int], Tensor]) -> None:
    """As many as fit without covering each other; the other images are dots."""
    axes.scatter(places[:, 0], places[:, 1], s=3, color=MUTED, alpha=0.5, linewidths=0)
    left, right = axes.get_xlim()
    inches = places * _SIDE / (right - left)
    seen = np.flatnonzero(_inside(axes, places))
    for index in map(int, seen[without_overlap(inches[seen], _THUMBNAIL * 1.06)]):
        picture = thumbnails(index).clamp(0, 1).permute(1, 2, 0).numpy()
        # OffsetImage counts in points: 1/72 inch a pixel at zoom 1.
        image = OffsetImage(picture, zoom=72 * _THUMBNAIL / picture.shape[0])
        axes.add_artist(AnnotationBbox(image, tuple(places[index]), frameon=False, pad=0))


def without_overlap(places: Points, least: float) -> list[int]:
    """Positions of points, in their order, each at least `least` away from all before, in x or in y."""
    chosen: list[int] = []
    for index, place in enumerate(places):
        if all(np.abs(place - places[other]).max() >= least for other in chosen):
            chosen.append(index)
    return chosen


def _dots(axes: Axes, places: Points, labels: Sequence[str]) -> None:
    counted = Counter(filter(None, labels))
    own = sorted(name for name, _ in counted.most_common(CLASSES))
    named = np.array(labels)
    rest = ~np.isin(named, own)
    if rest.any():
        axes.scatter(places[rest, 0], places[rest, 1], s=9, color=RULE, label="other")
    for order, name in enumerate(own):
        colour, marker = colour_of(order), MARKERS[order // len(COLOURS) % len(MARKERS)]
        text = plain(beginning(name, 14)).removeprefix("_")  # matplotlib hides names that begin with _
        x, y = places[named == name].T
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.8, linewidths=0, label=text)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
