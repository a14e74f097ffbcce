"""How a run went: losses, rate, health of the features, speed; from metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sslkit.visualization.figures.style import COLOURS, Sheet

PANELS = {
    "loss": ("Loss", ""),
    "loss_low": ("Loss, low predicted", "high-pass inputs"),
    "loss_high": ("Loss, high predicted", "low-pass inputs"),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    "rank": ("Effective rank", "features of the batch"),
    "std": ("Feature deviation", "of L2-normalised features"),
    "images_per_s": ("Speed", "images per second"),
    "wait": ("Waiting for images", "% of the time"),
    "saving": ("Saving", "% of the time"),
    "chance": ("Loss against guessing", "1 is guessing"),
}
"""Key of metrics.jsonl → title and the y axis' label, in the order of the picture."""
COUNTERS = {"step", "epoch", "skipped"}
COLUMNS, WIDTH, HEIGHT = 3, 2.6, 1.55  # plots in a row, and one plot's frame in inches
ACROSS, DOWN = WIDTH + 0.85, HEIGHT + 0.85
SHARES = ("wait", "saving")  # of the time
ZERO_BASED = ("lr", "grad_norm", "rank", "std", "images_per_s", *SHARES)
_SMOOTH_FROM = 60  # points above which a running mean is drawn over the raw line


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, if there is one; a line that a crash cut off is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def curves(metrics: Sequence[Mapping[str, Any]], title: str = "Training") -> Figure:
    """One plot per figure over the epochs.

    metrics: lines of metrics.jsonl, with "epoch" and any of the keys of `PANELS`; a method's own figures get
    plots of their own. What is 0 throughout has none, but for losses. Raises ValueError when there is nothing
    to draw.
    """
    names = _names(metrics)
    if not names:
        raise ValueError("metrics: no line with an epoch and a figure, nothing to draw")
    rows = math.ceil(len(names) / COLUMNS)
    across = min(len(names), COLUMNS)
    sheet = Sheet(0.15 + across * ACROSS, 0.7 + rows * DOWN, title)
    for place, name in enumerate(names):
        _curve(sheet, place, name, metrics)
    return sheet.figure


def _names(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    present = [
        key
        for line in metrics
        for key, value in line.items()
        if isinstance(value, int | float) and (value != 0 or key.startswith("loss"))
    ]
    found = set(present) if any("epoch" in line for line in metrics) else set()
    own = sorted(found - set(PANELS) - COUNTERS, key=lambda key: (not key.startswith("loss"), key))
    known = [key for key in PANELS if key in found]
    losses = [key for key in known if key.startswith("loss")]
    return losses + own + [key for key in known if key not in losses]


def _curve(sheet: Sheet, place: int, name: str, metrics: Sequence[Mapping[str, Any]]) -> None:
    title, label = PANELS.get(name, (name.replace("_", " ").capitalize().replace("Loss ", "Loss, "), ""))
    points = [(line["epoch"], line[name]) for line in metrics if name in line and "epoch" in line]
    epoch, value = np.array(points, dtype=float).T
    if name in SHARES:
        value = 100 * value
    left, top = 0.75 + place % COLUMNS * ACROSS, 0.85 + place // COLUMNS * DOWN
    axes = sheet.plot(left, top, WIDTH, HEIGHT, "epoch", label, title)
    colour = COLOURS[0] if name.startswith("loss") else COLOURS[2]
    smooth = len(value) > _SMOOTH_FROM and name != "lr"
    marker = "o" if len(value) == 1 else None
    alpha, width = (0.3, 0.8) if smooth else (1.0, 1.6)
    axes.plot(epoch, value, marker=marker, color=colour, alpha=alpha, linewidth=width)
    if smooth:
        axes.plot(epoch, running_mean(value, len(value) // 20), color=colour, linewidth=1.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=float(np.ptp(epoch)) >= 5))
    axes.yaxis.set_major_formatter("{x:g}")
    if name in ZERO_BASED:
        axes.set_ylim(0, 1.08 * max(float(np.nanmax(value)), 1e-12))


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over 2 · width + 1 neighbours, fewer at the ends; NaN is left out where it can be."""
    kernel = np.ones(2 * width + 1)
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), kernel)[width:-width]
    counts = np.convolve(known.astype(float), kernel)[width:-width]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
