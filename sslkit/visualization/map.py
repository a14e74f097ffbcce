"""All images on a plane, alike ones close together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from torch import Tensor

from sslkit.visualization.style import COLOURS, MARGIN, MUTED, RULE, SMALL, TEXT, Sheet

SIDE = 5.2  # of a map, inches
THUMBNAIL = 0.34  # inches
MARKERS = "os^"
CLASSES = 12
"""With a colour and a marker of their own; the rest is grey."""
FEW = 5
"""Fewer images make no map of neighbourhoods."""

Points = NDArray[np.float64]


def principal(vectors: NDArray[np.float32]) -> tuple[Points, list[float]]:
    """The first two principal components [N, 2], and their shares of the variance.

    The largest loading of each is positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    first = axes[:, ::-1][:, :2]
    largest = first[np.abs(first).argmax(0), [0, 1]]
    shares = variance[::-1][:2].clip(0) / max(variance.clip(0).sum(), 1e-30)
    return centred @ (first * np.sign(largest)), shares.tolist()


def projections(vectors: NDArray[np.float32], seed: int) -> dict[str, Points]:
    """Plane positions by the name of how they were made: PCA, and UMAP or else t-SNE where installed."""
    points, shares = principal(vectors)
    found = {f"PCA, {shares[0]:.0%} and {shares[1]:.0%} of the variance": points}
    if len(vectors) >= FEW and (method := _neighbourhood()):
        name, project = method
        found[name] = project(vectors, seed)
    return found


def _neighbourhood() -> tuple[str, Callable[[NDArray[np.float32], int], Points]] | None:
    if find_spec("umap"):
        return "UMAP", _umap
    return ("t-SNE", _tsne) if find_spec("sklearn") else None


def _umap(vectors: NDArray[np.float32], seed: int) -> Points:
    made = import_module("umap").UMAP(
        n_neighbors=min(15, len(vectors) - 1), metric="cosine", random_state=seed, n_jobs=1
    )
    return np.asarray(made.fit_transform(vectors - vectors.mean(0)), dtype=np.float64)


def _tsne(vectors: NDArray[np.float32], seed: int) -> Points:
    made = import_module("sklearn.manifold").TSNE(
        perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", metric="cosine", random_state=seed
    )
    return np.asarray(made.fit_transform(vectors - vectors.mean(0)), dtype=np.float64)


def image_map(
    points: dict[str, Points], thumbnails: Callable[[int], Tensor], labels: Sequence[str] | None, name: str
) -> Figure:
    """A row for every projection: thumbnails, and with labels a dot for each image in its class's colour.

    thumbnails: position → picture [3, s, s] in [0, 1]; asked for those that are shown only.
    """
    count = len(next(iter(points.values())))
    across = 2 if labels else 1
    legend_room = 1.45 if labels else 0.0
    sheet = Sheet(
        MARGIN + across * (SIDE + 0.3) + legend_room, 0.75 + len(points) * (SIDE + 0.45) + 0.1,
        f"{count:,} images as {name} sees them", "alike images lie close together; axes have no unit",
    )  # fmt: skip
    for row, (title, places) in enumerate(points.items()):
        top = 0.75 + row * (SIDE + 0.45) + 0.3
        axes = _frame(sheet, MARGIN, top, places, title)
        _thumbnails(axes, places, thumbnails)
        if labels:
            axes = _frame(sheet, MARGIN + SIDE + 0.3, top, places, "classes")
            _dots(axes, places, labels)
    return sheet.figure


def _frame(sheet: Sheet, left: float, top: float, places: Points, title: str) -> Axes:
    """Axes with all points inside, and room for a thumbnail at the rim."""
    axes = sheet.axes(left, top, SIDE, SIDE)
    axes.set_title(title, fontsize=TEXT, loc="left", pad=5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=RULE)
    low, high = places.min(0), places.max(0)
    reach = np.maximum(high - low, 1e-9) * (0.5 + THUMBNAIL / SIDE)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - reach[0], middle[0] + reach[0])
    axes.set_ylim(middle[1] - reach[1], middle[1] + reach[1])
    return axes


def _thumbnails(axes: Axes, places: Points, thumbnails: Callable[[int], Tensor]) -> None:
    """As many as fit without covering each other; the other images are dots."""
    axes.scatter(places[:, 0], places[:, 1], s=3, color=MUTED, alpha=0.5, linewidths=0)
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    inches = (places - low) / (high - low) * SIDE
    for index in apart(inches, THUMBNAIL * 1.06):
        picture = thumbnails(index).clamp(0, 1).permute(1, 2, 0).numpy()
        # OffsetImage counts in points: 1/72 inch a pixel at zoom 1.
        image = OffsetImage(picture, zoom=72 * THUMBNAIL / picture.shape[0])
        axes.add_artist(AnnotationBbox(image, tuple(places[index]), frameon=False, pad=0))


def apart(places: Points, least: float) -> list[int]:
    """Positions of points in the order they come, each at least so far from all before, in x or in y."""
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
        colour, marker = COLOURS[order % len(COLOURS)], MARKERS[order // len(COLOURS) % len(MARKERS)]
        short = name if len(name) <= 14 else name[:13] + "…"
        text = short.replace("$", r"\$").removeprefix("_")  # matplotlib hides names that begin with _
        x, y = places[named == name].T
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.8, linewidths=0, label=text)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
