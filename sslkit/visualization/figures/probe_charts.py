"""How good frozen features are: bars beside baselines, accuracy over labels, sizes and normalisations."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslkit.core.console import counted
from sslkit.core.errors import UserError
from sslkit.core.files import replacing
from sslkit.evaluation.probe.result import MEASURES, ProbeResult, Row
from sslkit.evaluation.probe.size_grid import Cell
from sslkit.evaluation.probe.table import to_markdown
from sslkit.visualization.figures.style import (
    COLOURS,
    INK,
    MARGIN,
    MUTED,
    SMALL,
    Sheet,
    colour_of,
    legend_below,
    logarithmic,
    shortened,
    write,
)
from sslkit.visualization.report.stored import FIGURES, robustness_figures

_PLOT = 2.6  # height of a curve's plot, inches
_ACROSS = 3.3  # its width
BAR = 0.34  # height of a bar and the gap to the next, inches
NARROW = 6.2  # width of the bars' sheet, inches
NAME, LETTER = 34, 0.072  # letters of a name beside a bar, and the width of one, inches
NORMALIZATIONS = {"own": "own normalisation", "ImageNet": "ImageNet's", "none": "no normalisation"}
_LONGEST = 44  # letters of a name
_PICTURES = ("probe", "probe-shots", "probe-grid", *FIGURES)
"""Names of all files that a probe may draw, without ending."""


def figures(result: ProbeResult) -> dict[str, Figure]:
    """File name without ending → figure: all that this result has figures for."""
    found = {"probe": bars(result)} if result.rows else {}
    if result.levels:
        found["probe-shots"] = shots_curves(result)
    if result.grid:
        found["probe-grid"] = grid_curves(result)
    stored = robustness_figures(result.robustness) if result.robustness else {}
    return found | {kind: draw() for kind, draw in stored.items()}


def write_result(result: ProbeResult, folder: Path, pictures: Path | None = None) -> None:
    """probe.json, table.md and PNG files; those of an earlier probe are replaced, each as a whole.

    Pictures that this result has no figures for would contradict it, and are removed. Those with a number,
    such as `robust-waves-2.png`, come from `visualize`, and stay.

    Args:
        pictures: folder of the PNG files, where it is another one.

    Raises:
        UserError: they can't be written.
    """
    beside = pictures or folder
    document = json.dumps(result.to_document(), indent=1, default=str) + "\n"
    try:
        for place in (folder, beside):
            place.mkdir(parents=True, exist_ok=True)
        for name, text in (("probe.json", document), ("table.md", to_markdown(result))):
            with replacing(folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        made = figures(result)
        for name in set(_PICTURES) - set(made):
            (beside / f"{name}.png").unlink(missing_ok=True)
        for name, figure in made.items():
            with replacing(beside / f"{name}.png") as unfinished:
                write(figure, unfinished)
    except OSError as problem:
        raise UserError(f"{folder}: the result can't be written: {problem.strerror}", code=1) from None


def bars(result: ProbeResult) -> Figure:
    """Accuracy of every row by kNN, below it by the linear probe, with 95 % intervals; sources are darker.

    Narrow: a phone shows it whole.
    """
    height = BAR * len(result.rows)
    names = [shortened(row.name, NAME) for row in result.rows]
    left = MARGIN + 0.15 + LETTER * max(map(len, names))
    across, step = NARROW - left - 0.25, height + 0.95
    sheet = Sheet(NARROW, 0.2 + len(MEASURES) * step + 0.65, "Frozen features", _about(result))
    best = max(max(row.knn + row.knn_interval, row.linear + row.linear_interval) for row in result.rows)
    top = 1.17 * min(best, 100.0) + 3
    for place, (title, name) in enumerate(MEASURES.items()):
        axes = sheet.plot(left, 1.05 + place * step, across, height, "top-1 accuracy, %", "", title)
        for order, row in enumerate(result.rows):
            _bar(axes, order, row, name)
        axes.set_ylim(len(result.rows) - 0.5, -0.5)
        axes.set_xlim(0, top)
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(top, 100)])
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    return sheet.figure


def _bar(axes: Axes, order: int, row: Row, name: str) -> None:
    value, margin = getattr(row, name), getattr(row, f"{name}_interval")
    colour = COLOURS[0] if row.kind == "source" else MUTED
    axes.barh(order, value, 0.68, color=colour, alpha=1.0 if row.kind == "source" else 0.55)
    low, high = max(value - margin, 0.0), min(value + margin, 100.0)  # there is nothing beyond
    axes.errorbar(value, order, xerr=[[value - low], [high - value]], color=INK, linewidth=1, capsize=2.5)
    axes.text(high, order, f"  {value:.1f}", va="center", fontsize=SMALL, color=INK)


def shots_curves(result: ProbeResult) -> Figure:
    """Accuracy over the number of labelled images per class; error bars are deviations over the draws.

    The last point is all training images, whose mean number per class it stands at.
    """
    rows = {row.name: row for row in result.rows}
    note = "bars: deviation of the draws; last: all images"
    sheet = _curve_sheet(result, "Accuracy over labels", note, len(rows))
    mean = result.counts["train"] / result.counts["classes"]
    for axes, name in _plots(sheet, "labelled images per class"):
        for order, row in enumerate(rows.values()):
            few = [one for level in result.levels for one in level.rows if one.name == row.name]
            aside = 1 + 0.04 * (order - (len(rows) - 1) / 2)  # so that error bars stand side by side
            x = [shots * aside for shots in (*(level.shots for level in result.levels), mean)]
            y = [*(getattr(one, name) for one in few), getattr(row, name)]
            spread = [*(getattr(one, f"{name}_std") or 0.0 for one in few), 0.0]  # of one draw there is none
            axes.errorbar(
                x, y, spread, color=colour_of(order), marker="o", markersize=3.5, capsize=2.5,
                label=shortened(row.name, _LONGEST),
            )  # fmt: skip
        logarithmic(axes)
    _finish(sheet)
    return sheet.figure


def grid_curves(result: ProbeResult) -> Figure:
    """Accuracy and intervals over the input size, a line per source and normalisation; the own is ringed."""
    own = {row.name: row.size for row in result.rows}
    lines: dict[tuple[str, str], list[Cell]] = {}
    for cell in result.grid:
        lines.setdefault((cell.source, cell.normalization), []).append(cell)
    sources = list(dict.fromkeys(source for source, _ in lines))
    note = "ring: the model's own; bars: 95 % intervals"
    sheet = _curve_sheet(result, "Input size and normalisation", note, len(lines))
    styles = {"own": "-", "ImageNet": (0, (6, 2)), "none": (0, (2, 2))}
    for axes, name in _plots(sheet, "side of the images, pixels"):
        for order, ((source, kind), cells) in enumerate(lines.items()):
            colour = colour_of(sources.index(source))
            label = f"{shortened(source, _LONGEST)}: " * (len(sources) > 1) + NORMALIZATIONS[kind]
            aside = 1 + 0.012 * (order - (len(lines) - 1) / 2)  # so that error bars stand side by side
            y = [getattr(cell, name) for cell in cells]
            x = [cell.size * aside for cell in cells]
            axes.errorbar(
                x, y, [getattr(cell, f"{name}_interval") for cell in cells], color=colour, label=label,
                linestyle=styles[kind], marker="o", markersize=3.5, capsize=2, elinewidth=0.8,
            )  # fmt: skip
            sizes = [cell.size for cell in cells]
            if kind == "own" and own[source] in sizes:
                at = sizes.index(own[source])
                axes.plot(x[at], y[at], "o", markersize=10, markerfacecolor="none", color=colour)
        axes.set_xticks(sorted({cell.size for cell in result.grid}))
    _finish(sheet)
    return sheet.figure


def _curve_sheet(result: ProbeResult, title: str, more: str, lines: int) -> Sheet:
    height = _PLOT + 1.95 + 0.19 * ((lines + 1) // 2)
    return Sheet(MARGIN + 0.5 + 2 * _ACROSS + 0.85, height, title, f"{_about(result)} · {more}")


def _plots(sheet: Sheet, x: str) -> list[tuple[Axes, str]]:
    """(axes, attribute) for kNN and linear, side by side."""
    found = []
    for place, (title, name) in enumerate(MEASURES.items()):
        left, label = MARGIN + 0.5 + place * (_ACROSS + 0.55), "" if place else "top-1 accuracy, %"
        found.append((sheet.plot(left, 1.15, _ACROSS, _PLOT, x, label, title), name))
    return found


def _finish(sheet: Sheet) -> None:
    """One scale for both plots, from 0 on, and their legend below."""
    top = 1.08 * max(axes.get_ylim()[1] for axes in sheet.figure.axes)
    for axes in sheet.figure.axes:
        axes.set_ylim(0, top)
    legend_below(sheet, 2, 0.02)


def _about(result: ProbeResult) -> str:
    counts = result.counts
    images = f"{counts['train']:,} training, {counted(counts['validation'], 'validation image')}"
    return f"{images}, {counted(counts['classes'], 'class', 'classes')}"
