"""What is left of the accuracy: corruptions, filters, single waves, attacks; sources side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslkit.augmentations.corruptions import CORRUPTIONS, GROUPS
from sslkit.core.console import counted
from sslkit.evaluation.metrics.significance import LEAST
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.visualization.figures.style import (
    CELL,
    DASHED,
    INK,
    MARGIN,
    MUTED,
    SMALL,
    Sheet,
    colour_of,
    column,
    format_number,
    legend,
    legend_below,
    logarithmic,
    note,
    shortened,
)

_PLOT = 2.6  # height of a plot, inches
LEGEND = 0.2  # height of a row of names, inches
NAME = 32  # letters of a name in a legend
CURVE = 22  # where more than the name stands there, or above a map


def corruption_bars(result: RobustnessResult) -> Figure:
    """Mean accuracy over the severities for each corruption, a bar per source, and its clean accuracy.

    The ticks within a bar are the accuracies at the single severities.
    """
    shown = ", ".join(str(severity) for severity in result.plan.severities)
    sheet = Sheet(11.0, _PLOT + 2.2, "Common corruptions", _subtitle(result, f"severities {shown}"))
    axes = sheet.plot(MARGIN + 0.5, 0.9, 10.0, _PLOT, "", "accuracy, %")
    width = 0.8 / len(result.rows)
    places = np.arange(len(CORRUPTIONS)) + np.repeat(np.arange(len(GROUPS)) * 0.5, [3, 4, 4, 4])
    for order, row in enumerate(result.rows):
        colour = colour_of(order)
        lefts = places - 0.4 + (order + 0.5) * width
        accuracies = np.array([row.corruptions[name] for name in CORRUPTIONS])  # [15, severities]
        axes.bar(lefts, accuracies.mean(1), width * 0.92, color=colour, label=shortened(row.name, NAME))
        for single in accuracies.T:
            axes.hlines(single, lefts - width / 4, lefts + width / 4, color=INK, linewidth=0.6)
        axes.axhline(row.clean, color=colour, linewidth=1.2, linestyle=DASHED)
    names = [
        name.replace("_", "\n").replace("\ntransform", "").replace("\ncompression", "")
        for name in CORRUPTIONS
    ]
    axes.set_xticks(places, names)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axes.set_ylim(0, _top(row.clean for row in result.rows))
    for group, start, end in zip(GROUPS, (0, 3, 7, 11), (2, 6, 10, 14), strict=True):
        middle = (places[start] + places[end]) / 2
        note(axes, middle, -0.24, group, axes.get_xaxis_transform(), ha="center")
    legend(axes, 1.2, ncols=min(len(result.rows), 4), loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return sheet.figure


def radius_curves(result: RobustnessResult) -> Figure:
    """Accuracy on low-pass and on high-pass images over the radius."""
    height = _PLOT + 1.75 + LEGEND * math.ceil(len(result.rows) / 3)
    sheet = Sheet(8.2, height, "Filtered images", _subtitle(result, "dashed: clean"))
    for place, (title, attribute) in enumerate(
        (("Frequencies below the radius", "low_pass"), ("Frequencies from the radius on", "high_pass"))
    ):
        label = "accuracy, %" if place == 0 else ""
        axes = sheet.plot(
            MARGIN + 0.5 + place * 3.85, 1.1, 3.3, _PLOT, "radius, cycles per image", label, title
        )
        for order, row in enumerate(result.rows):
            _curve(axes, order, result.plan.radii, getattr(row, attribute), shortened(row.name, NAME))
            axes.axhline(row.clean, color=colour_of(order), linewidth=1, linestyle=DASHED)
        logarithmic(axes)
        axes.set_ylim(0, _top(row.clean for row in result.rows))
    legend_below(sheet, 3)
    return sheet.figure


def heat_maps(result: RobustnessResult) -> Figure:
    """Error under noise of one frequency, a map per source, all with the same colours.

    Yin et al., NeurIPS 2019, figure 3; zero frequency in the middle. Below each source with a baseline
    what lies between its map and the baseline's: blue is less error.
    """
    axis = result.plan.frequencies
    maps = {row.name: torch.tensor(row.heat_map) for row in result.rows}
    baselines = {row.name: row.baseline for row in result.rows if row.baseline is not None}
    spacing = 0.45
    height = 0.85 + (2 if baselines else 1) * (CELL + spacing) + (0.2 if baselines else 0)
    wide = column(len(maps)) + 0.25 * len(maps) + 1.0
    norm = format_number(result.plan.wave_norm)
    parts = [f"norm {norm} a channel, ±{axis[-1]} cycles", _images(result)]
    sheet = Sheet(max(wide, 6.2), height, "Error under single-frequency noise", " · ".join(parts))
    low = min(float(found.min()) for found in maps.values())
    high = max(float(found.max()) for found in maps.values())
    lefts = {name: column(order) + 0.25 * order for order, name in enumerate(maps)}
    for name, found in maps.items():
        drawn = sheet.picture(
            lefts[name], 1.05, found, shortened(name, CURVE), cmap="viridis", limits=(low, max(high, low + 1))
        )
    right = column(len(maps)) + 0.25 * (len(maps) - 1) + 0.05
    sheet.colour_bar(drawn, right, 1.05, CELL, "error, %")
    if baselines:
        gaps = {name: maps[name] - maps[other] for name, other in baselines.items()}
        reach = max(1.0, *(float(gap.abs().max()) for gap in gaps.values()))
        top = 1.05 + CELL + spacing
        for name, gap in gaps.items():
            drawn = sheet.picture(
                lefts[name], top, gap, "minus its baseline", cmap="RdBu_r", limits=(-reach, reach)
            )
        sheet.colour_bar(drawn, right, top, CELL, "points")
        below = "baseline: " + ", ".join(shortened(name, 40) for name in dict.fromkeys(baselines.values()))
        sheet.write(MARGIN, top + CELL + 0.25, below, size=SMALL, colour=MUTED)
    return sheet.figure


def attack_curves(result: RobustnessResult) -> Figure:
    """Accuracy under FGSM and PGD over epsilon."""
    subtitle = _subtitle(result, f"PGD of {counted(result.plan.steps, 'step')}")
    height = _PLOT + 1.55 + LEGEND * len(result.rows)
    sheet = Sheet(6.2, height, "Attacks that know the classifier", subtitle)
    axes = sheet.plot(MARGIN + 0.5, 0.95, 5.1, _PLOT, "largest change of a value, 1/255", "accuracy, %")
    strengths = (0.0, *result.plan.epsilons)
    for order, row in enumerate(result.rows):
        _curve(axes, order, strengths, (row.clean, *row.pgd), f"{shortened(row.name, CURVE)}, PGD")
    for order, row in enumerate(result.rows):  # after all of PGD: a legend fills column by column
        label = f"{shortened(row.name, CURVE)}, FGSM"
        _curve(axes, order, strengths, (row.clean, *row.fgsm), label, dashed=True)
    axes.set_xticks(strengths, [format_number(strength) for strength in strengths])
    axes.set_ylim(0, _top(row.clean for row in result.rows))
    legend_below(sheet, 2)
    return sheet.figure


def _curve(
    axes: Axes, order: int, x: Sequence[float], y: Sequence[float], label: str, *, dashed: bool = False
) -> None:
    """One source; dashed, it is open and larger, so that it can be seen on a full one in the same place."""
    marker, colour = "osD^v"[order % 5], colour_of(order)
    if dashed:
        style = {"linestyle": (0, (2, 2)), "markersize": 7, "markerfacecolor": "none", "linewidth": 1.0}
    else:
        style = {"linestyle": "-", "markersize": 3.5}
    axes.plot(x, y, color=colour, marker=marker, label=label, **style)  # type: ignore[arg-type]


def _subtitle(result: RobustnessResult, more: str) -> str:
    return f"{_images(result)}, {result.side} px · {more}"


def _images(result: RobustnessResult) -> str:
    """How many there are, and what their choice alone is worth.

    Half a 95 % interval of one accuracy p is 1.96 √(p (1 - p) / n), widest at p = ½: how far p falls is not
    known before it is drawn.
    """
    margin = 98 / math.sqrt(max(result.count, 1))
    few = ", too few for claims" if result.count < LEAST else ""
    return f"{counted(result.count, 'image')}{few}: ± {margin:.0f} points at most"


def _top(accuracies: Iterable[float]) -> float:
    """A round upper limit with room above the best."""
    return min(100.0, 10 * (max(accuracies) // 10 + 1) + 5)
