"""Runs side by side: losses, probes, spectra, and what each makes of the same images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.visualization.curves import running_mean
from sslkit.visualization.measure import ring_centres, ring_power
from sslkit.visualization.style import (
    CELL,
    COLOURS,
    GAP,
    LINE,
    MARGIN,
    MUTED,
    SMALL,
    TEXT,
    Sheet,
    legend,
    plain_ticks,
)

PLOT, WIDE = 2.3, 3.7
TOP = 0.85
LETTERS = 30
SMOOTH_FROM = 60


@dataclass(frozen=True)
class Compared:
    """One run."""

    name: str
    method: Hashable  # with its settings: runs of equal ones have losses of one unit
    metrics: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    probe: Mapping[str, Any] | None  # of probe.json
    images: Tensor  # [N, 3, H, W] in [0, 1], as it takes them
    pictures: Mapping[str, Tensor]  # what it makes of them, [N, 3, H, W] in [0, 1]; may be empty


def compare(runs: Sequence[Compared]) -> Figure:
    """Loss and spectra of all runs in one plot each, their probes in a table, pictures of the same images.

    Losses of different methods, or of one with other settings, have different units: then each is shown
    relative to its first value.
    """
    rows = table_rows(runs)
    blocks = [max(1, len(run.pictures)) for run in runs]
    grid = MARGIN + CELL + 0.2 + sum(count * (CELL + GAP) + 0.2 for count in blocks)
    table = TOP + PLOT + 1.05
    pictures = table + (0.3 + 0.24 * len(rows) + 0.05 if rows else 0)
    height = pictures + 0.7 + len(runs[0].images) * (CELL + GAP) + 0.15
    sheet = Sheet(max(grid + 0.1, 2 * (WIDE + 1.0) + 0.3), height, "Runs side by side", _about(runs))
    _losses(sheet, runs)
    _spectra(sheet, runs)
    if rows:
        _table(sheet, table, rows)
    _pictures(sheet, pictures, runs, blocks)
    return sheet.figure


def _about(runs: Sequence[Compared]) -> str:
    told = f"the same {len(runs[0].images)} images" if len(runs[0].images) > 1 else "the same image"
    return told + ("" if _alike(runs) else "; losses have different units, so each is relative to its first")


def _alike(runs: Sequence[Compared]) -> bool:
    return len({run.method for run in runs}) == 1


def _label(run: Compared) -> str:
    short = run.name if len(run.name) <= LETTERS else "…" + run.name[-LETTERS + 1 :]
    return short.replace("$", r"\$")


def _losses(sheet: Sheet, runs: Sequence[Compared]) -> None:
    alike = _alike(runs)
    axes = sheet.plot(
        MARGIN + 0.5, TOP + 0.25, WIDE, PLOT, "epoch", "loss" if alike else "loss / first loss", "Loss"
    )
    for order, run in enumerate(runs):
        points = [
            (line["epoch"], line["loss"])
            for line in run.metrics
            if "epoch" in line and isinstance(line.get("loss"), int | float)
        ]
        if points:
            epoch, loss = np.array(points, dtype=float).T
            if not alike:
                loss = loss / (loss[0] or 1.0)
            if len(loss) > SMOOTH_FROM:
                loss = running_mean(loss, len(loss) // 40)
            marker = "o" if len(loss) == 1 else None
            axes.plot(epoch, loss, color=_colour(order), linewidth=1.6, marker=marker, label=_label(run))
    _legend(axes)


def _spectra(sheet: Sheet, runs: Sequence[Compared]) -> None:
    """Radial power of each run's last picture over that of the images: 1 is as in the images."""
    axes = sheet.plot(
        MARGIN + WIDE + 1.5, TOP + 0.25, WIDE, PLOT, "frequency, cycles per pixel", "power / images' power",
        "Spectra of what they make",
    )  # fmt: skip
    for order, run in enumerate(runs):
        for (name, made), style in zip(reversed(list(run.pictures.items())), ("-", (0, (2, 2)))):  # noqa: B905
            ratio = ring_power(made).mean(0) / ring_power(run.images).mean(0).clamp_min(1e-20)
            frequency = ring_centres(len(ratio)) / run.images.shape[-1]
            label = f"{_label(run)}: {name}"
            axes.plot(
                frequency[1:], ratio[1:].cpu().numpy(), color=_colour(order), linestyle=style, label=label
            )
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        legend(axes)


def table_rows(runs: Sequence[Compared]) -> list[tuple[str, str, str, str]]:
    """Name, kNN, linear and data of every run, and of baselines beside them; [] where none was probed."""
    found: dict[tuple[str, ...], tuple[str, str, str, str]] = {}
    for run in runs:
        document = run.probe or {}
        data = str(document.get("data", ""))
        own = [row for row in document.get("rows", []) if row.get("kind", "source") != "source"]
        source = _own_row(run, document)
        if not source and any(other.probe for other in runs):
            found[run.name, ""] = (run.name, "–", "–", "not probed")
        for name, row in [*([(run.name, source)] if source else []), *((row["name"], row) for row in own)]:
            cells = (str(name), _margin(row, "knn"), _margin(row, "linear"), data)
            found.setdefault((cells[0], data), cells)
    baselines = [row for row in found.values() if row[0] not in {run.name for run in runs}]
    return [row for row in found.values() if row not in baselines] + baselines


def _own_row(run: Compared, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The run's row of its probe: of several sources the one that ends in its folder's name."""
    rows = [row for row in document.get("rows", []) if row.get("kind", "source") == "source"]
    named = [row for row in rows if str(row.get("name", "")).rstrip("/").endswith(run.name)]
    return next(iter(named or rows), None)


def _margin(row: Mapping[str, Any], measure: str) -> str:
    value, margin = row.get(measure), row.get(f"{measure}_interval")
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.1f}" + (f" ± {margin:.1f}" if isinstance(margin, int | float) else "")


def _table(sheet: Sheet, top: float, rows: Sequence[tuple[str, str, str, str]]) -> None:
    lefts = (MARGIN, MARGIN + 4.1, MARGIN + 5.5, MARGIN + 6.2)
    head = ("Frozen features, top-1 in %", "kNN", "linear", "on")
    for line, cells in enumerate([head, *rows]):
        for place, (left, cell) in enumerate(zip(lefts, cells, strict=True)):
            most = 44 if place == 0 else 34
            short = cell if len(cell) <= most else "…" + cell[-most + 1 :]
            sheet.write(
                left, top + 0.24 * line, short.replace("$", r"\$"), size=SMALL + (line == 0) * (TEXT - SMALL),
                colour=MUTED if place == 3 and line else "#1a1a1a", weight="normal" if line else "bold",
                align="right" if place in (1, 2) else "left",
            )  # fmt: skip


def _pictures(sheet: Sheet, top: float, runs: Sequence[Compared], blocks: Sequence[int]) -> None:
    """The images once, as the first run takes them, then every run's pictures of them."""
    first = top + 0.5
    for row, image in enumerate(runs[0].images):
        sheet.picture(MARGIN, first + row * (CELL + GAP), image, "image" if row == 0 else "")
    left = MARGIN + CELL + 0.2
    for order, (run, count) in enumerate(zip(runs, blocks, strict=True)):
        limit = max(8, int(count * 15))
        name = run.name if len(run.name) <= limit else "…" + run.name[-limit + 1 :]
        sheet.write(
            left, top + 0.22, name.replace("$", r"\$"), size=TEXT, weight="bold", colour=_colour(order)
        )
        for place, (title, made) in enumerate(run.pictures.items()):
            for row, picture in enumerate(made):
                x = left + place * (CELL + GAP)
                sheet.picture(x, first + row * (CELL + GAP), picture, title if row == 0 else "")
        if not run.pictures:
            sheet.write(left, first + LINE, "makes no pictures", size=SMALL, colour=MUTED)
        left += count * (CELL + GAP) + 0.2


def _colour(order: int) -> str:
    return COLOURS[order % len(COLOURS)]
