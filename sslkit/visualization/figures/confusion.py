"""How a classifier errs: which classes it confuses, and whether its confidence can be believed.

Drawn from the tables that `sslkit finetune` leaves in its folder.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.core.console import Console, counted
from sslkit.core.errors import UserError
from sslkit.evaluation.metrics.scores import Bin
from sslkit.visualization.figures.style import (
    COLOURS,
    DASHED,
    INK,
    MARGIN,
    MUTED,
    RULE,
    SMALL,
    Sheet,
    beginning,
    format_number,
    legend,
    plain,
    save_missing,
)

_SHOWN = 30
"""Classes in the picture of a confusion matrix; of more, those with the most errors."""
NUMBERED = 15
"""Classes up to which the cells hold numbers."""
_NAME = 22  # letters of a class name that are shown


def draw_confusion(folder: Path) -> list[Path]:
    """pictures/confusion.png and pictures/reliability.png of a fine-tuning's folder.

    The tables are final, so pictures that exist already show them, and stay.

    Raises:
        UserError: the folder lacks the tables.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "confusion": lambda: confusion_matrix(*read_confusion(folder / "confusion.csv")),
        "reliability": lambda: reliability_diagram(read_calibration(folder / "calibration.csv")),
    }
    files = {folder / "pictures" / f"{name}.png": figure for name, figure in figures.items()}
    return [save_missing(figure, file) for file, figure in files.items()]


def draw_runs(folders: Sequence[Path], console: Console) -> None:
    """`draw_confusion` for each folder; as the work is done, a failure is only a warning."""
    for folder in folders:
        try:
            draw_confusion(folder)
        except (UserError, OSError) as problem:
            console.warn(f"{folder / 'pictures'} were not drawn: {problem}")


def confusion_matrix(counts: Tensor, classes: tuple[str, ...]) -> Figure:
    """A row per true class, in percent of its images; counts int64 [C, C], rows are the truth.

    With more than `_SHOWN` classes those with the most errors; what else they were called is "others".
    """
    chosen = _chosen(counts)
    names = [plain(beginning(classes[i], _NAME)) for i in chosen]
    total = counts.sum(dim=1)[chosen]
    table = counts[chosen][:, chosen]
    some = f"{len(chosen)} of {len(classes):,} classes, those with the most errors"
    if len(chosen) < len(classes):
        table = torch.cat([table, (total - table.sum(dim=1))[:, None]], dim=1)
    columns = names + (["others"] if len(chosen) < len(classes) else [])
    percent = 100 * table.double() / total.clamp_min(1)[:, None]
    right, count = int(counts.diagonal().sum()), int(counts.sum())
    about = [f"top-1 {100 * right / max(count, 1):.1f} % of {counted(count, 'image')}"]
    about += [some] if len(chosen) < len(classes) else [counted(len(classes), "class", "classes")]

    cell = 0.42 if len(chosen) <= NUMBERED else 0.24
    label = 0.45 + 0.075 * max(map(len, columns))
    wide, high = max(cell * len(columns), 2.4), max(cell * len(names), 2.4)
    sheet = Sheet(
        max(label + wide + 1.5, 6.0),
        1.0 + high + label + 0.2,
        "Which classes are confused",
        " · ".join(about),
    )
    axes = sheet.axes(MARGIN + label, 0.95, wide, high)
    drawn = axes.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=SMALL, colors=INK, length=0)
    axes.set_xlabel("predicted", fontsize=SMALL, color=MUTED)
    axes.set_ylabel("label", fontsize=SMALL, color=MUTED)
    axes.spines[:].set(color=RULE, linewidth=0.6)
    if len(chosen) <= NUMBERED:
        for row, column in torch.nonzero(table).tolist():
            share = float(percent[row, column])
            colour = "white" if share > 60 else INK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
    left = MARGIN + label + wide + 0.2
    sheet.colour_bar(drawn, left, 0.95, high, "percent of the label's images", (0, 25, 50, 75, 100))
    return sheet.figure


def reliability_diagram(bins: tuple[Bin, ...]) -> Figure:
    """Accuracy over confidence, and how many images have which (Guo et al., ICML 2017, figure 1)."""
    count = max(sum(one.count for one in bins), 1)
    error = sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / count
    mean = sum(one.count * one.confidence for one in bins) / count
    accuracy = sum(one.count * one.accuracy for one in bins) / count
    told = f"expected calibration error {format_number(100 * error)} %, {counted(count, 'image')}"
    sheet = Sheet(5.6, 6.3, "Is its confidence right?", told)
    left, width = MARGIN + 0.55, 4.4
    upper = sheet.plot(left, 1.0, width, 3.2, "", "accuracy, %")
    lower = sheet.plot(left, 4.5, width, 1.15, "confidence, %", "images, %")
    used = [one for one in bins if one.count]
    size = 100 * (bins[0].high - bins[0].low)
    middles = [50 * (one.low + one.high) for one in used]
    accuracies = [100 * one.accuracy for one in used]
    upper.bar(middles, accuracies, 0.92 * size, color=COLOURS[0], label="accuracy")
    upper.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=DASHED, label="as confident as right")
    places = [100 * one.confidence for one in used]
    upper.scatter(places, accuracies, s=14, color=INK, zorder=3, label="mean of the bin")
    lower.bar(middles, [100 * one.count / count for one in used], 0.92 * size, color=COLOURS[5])
    for value, name, colour in ((mean, "mean confidence", INK), (accuracy, "accuracy", COLOURS[0])):
        lower.axvline(
            100 * value, color=colour, linewidth=1.2, linestyle=":", label=f"{name} {100 * value:.1f} %"
        )
    legend(upper, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, columnspacing=1.2)
    legend(lower)
    for axes in (upper, lower):
        axes.set_xlim(0, 100)
    upper.set_ylim(0, 100)
    return sheet.figure


def read_confusion(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """(counts int64 [C, C], classes) of a confusion.csv. Raises UserError."""
    header, *rows = _rows(path)
    try:
        counts = torch.tensor([[int(cell) for cell in row[1:]] for row in rows], dtype=torch.int64)
        if counts.shape != (len(header) - 1, len(header) - 1):
            raise ValueError("not square")
    except ValueError as problem:
        raise UserError(f"{path} is no confusion matrix: {problem}", "was it edited?") from None
    return counts, tuple(header[1:])


def read_calibration(path: Path) -> tuple[Bin, ...]:
    """The bins of a calibration.csv. Raises UserError."""
    _, *rows = _rows(path)
    try:
        return tuple(
            Bin(float(low), float(high), int(images), float(accuracy), float(confidence))
            for low, high, images, accuracy, confidence in rows
        )
    except ValueError as problem:
        raise UserError(f"{path} is no table of bins: {problem}", "was it edited?") from None


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as problem:
        raise UserError(
            f"{path} can't be read: {problem.strerror}", "give the folder of a fine-tuning"
        ) from None
    if len(rows) < 2:
        raise UserError(f"{path} holds nothing", "was it edited?")
    return rows


def _chosen(counts: Tensor) -> list[int]:
    """The classes to show, in their own order."""
    if len(counts) <= _SHOWN:
        return list(range(len(counts)))
    errors = counts.sum(dim=1) - counts.diagonal()
    found: list[int] = errors.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    return sorted(found)
