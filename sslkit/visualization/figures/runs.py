"""Runs side by side: losses, probes, spectra, and what each makes of the same images."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from sslkit.frequency.measures import ring_centres, ring_power
from sslkit.visualization.figures.curves import PANELS, running_mean
from sslkit.visualization.figures.style import (
    CELL,
    DASHED,
    GAP,
    LINE,
    MARGIN,
    MUTED,
    SMALL,
    TEXT,
    Sheet,
    colour_of,
    legend,
    logarithmic,
    shortened,
)

PLOT, WIDE = 2.3, 3.7
_TOP = 0.85
_LETTERS = 30
_ACROSS = 4  # entries of a legend's row
STYLES: tuple[Literal["-", ":"], ...] = ("-", ":")
"""Lines of a run's last two pictures' spectra, the last one first."""
_SMOOTH_FROM = 60


@dataclass(frozen=True)
class Compared:
    """One run."""

    name: str
    # With its settings: only equal ones have losses of one unit (of MFM, low_share 0 and 0.3 differ 7-fold).
    method: Hashable
    metrics: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    probe: Mapping[str, Any] | None  # of probe.json
    images: Tensor  # [N, 3, H, W] in [0, 1], as it takes them
    pictures: Mapping[str, Tensor]  # what it makes of them, [N, 3, H, W] in [0, 1]; may be empty


def compare_figure(runs: Sequence[Compared]) -> Figure:
    """Loss and spectra of all runs in one plot each, their probes in a table, pictures of the same images.

    Where all runs have losses of MFM's two tasks, these: their mean hides that one is not learned.
    Losses of different methods, or of one with other settings, have different units: then each is shown
    relative to its first value.
    """
    rows = table_rows(runs)
    blocks = [max(1, len(run.pictures)) for run in runs]
    grid = MARGIN + CELL + 0.2 + sum(count * (CELL + GAP) + 0.2 for count in blocks)
    entries = _entries(runs)
    table = _TOP + PLOT + 1.05 + 0.2 * math.ceil(len(entries) / _ACROSS)
    pictures = table + (0.3 + 0.24 * len(rows) + 0.05 if rows else 0)
    height = pictures + 0.7 + len(runs[0].images) * (CELL + GAP) + 0.15
    kinds = _kinds(runs)
    wide = WIDE if len(kinds) == 1 else 0.75 * WIDE
    *lefts, last = (MARGIN + 0.5 + place * (wide + 0.85) for place in range(len(kinds) + 1))
    sheet = Sheet(max(grid, last + wide + 0.3) + 0.1, height, "Runs side by side", _about(runs))
    for left, (name, title) in zip(lefts, kinds.items(), strict=True):
        _losses(sheet, left, wide, runs, name, title)
    _spectra(sheet, last + 0.2, wide, runs)
    below = MARGIN / sheet.width, 1 - (_TOP + PLOT + 0.75) / sheet.height  # where no curve is
    legend(
        sheet.figure, handles=entries, ncols=_ACROSS, loc="upper left", bbox_to_anchor=below, borderaxespad=0
    )
    if rows:
        _table(sheet, table, rows)
    _pictures(sheet, pictures, runs, blocks)
    return sheet.figure


def _about(runs: Sequence[Compared]) -> str:
    text = f"the same {len(runs[0].images)} images" if len(runs[0].images) > 1 else "the same image"
    return text + ("" if _alike(runs) else "; losses have different units, so each is relative to its first")


def _alike(runs: Sequence[Compared]) -> bool:
    return len({run.method for run in runs}) == 1


def _kinds(runs: Sequence[Compared]) -> dict[str, str]:
    """Keys of metrics.jsonl that are drawn → title."""
    both = {name: PANELS[name][0] for name in ("loss_low", "loss_high")}
    apart = all(any(line.get(name) is not None for line in run.metrics for name in both) for run in runs)
    return both if apart else {"loss": "Loss"}


def _losses(sheet: Sheet, left: float, wide: float, runs: Sequence[Compared], name: str, title: str) -> None:
    alike = _alike(runs)
    axes = sheet.plot(left, _TOP + 0.25, wide, PLOT, "epoch", "loss" if alike else "loss / first loss", title)
    for order, run in enumerate(runs):
        points = [
            (line["epoch"], line[name])
            for line in run.metrics
            if "epoch" in line and isinstance(line.get(name), int | float)
        ]
        if points:
            epoch, loss = np.array(points, dtype=float).T
            if not alike:
                loss = loss / (loss[0] or 1.0)
            if len(loss) > _SMOOTH_FROM:
                loss = running_mean(loss, len(loss) // 40)
            marker = "o" if len(loss) == 1 else None
            axes.plot(epoch, loss, color=colour_of(order), linewidth=1.6, marker=marker)


def _spectra(sheet: Sheet, left: float, wide: float, runs: Sequence[Compared]) -> None:
    """Radial power of each run's last pictures over that of the images: 1 is as in the images."""
    axes = sheet.plot(
        left, _TOP + 0.25, wide, PLOT, "frequency, cycles per pixel", "power / images' power",
        "Spectra of what they make",
    )  # fmt: skip
    for order, run in enumerate(runs):
        for (_, made), style in zip(_styled(run), STYLES, strict=False):
            ratio = ring_power(made).mean(0) / ring_power(run.images).mean(0).clamp_min(1e-20)
            frequency = ring_centres(len(ratio)) / run.images.shape[-1]
            axes.plot(frequency[1:], ratio[1:].cpu().numpy(), color=colour_of(order), linestyle=style)
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=DASHED)
    logarithmic(axes)
    axes.set_yscale("log")


def _styled(run: Compared) -> list[tuple[str, Tensor]]:
    """Name and pictures, one for each of `STYLES`, the last made first."""
    return list(run.pictures.items())[::-1][: len(STYLES)]


def _entries(runs: Sequence[Compared]) -> list[Line2D]:
    """A colour for every run, then a line style for each kind of picture."""
    names = [shortened(run.name, _LETTERS) for run in runs]
    entries = [Line2D([], [], color=colour_of(order), label=name) for order, name in enumerate(names)]
    for place, style in enumerate(STYLES):
        kinds = dict.fromkeys(_styled(run)[place][0] for run in runs if len(run.pictures) > place)
        if kinds:
            entries.append(Line2D([], [], color=MUTED, linestyle=style, label=" or ".join(kinds)))
    return entries


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
            shown = shortened(cell, most)
            sheet.write(
                left, top + 0.24 * line, shown, size=SMALL + (line == 0) * (TEXT - SMALL),
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
        name = shortened(run.name, limit)
        sheet.write(left, top + 0.22, name, size=TEXT, weight="bold", colour=colour_of(order))
        for place, (title, made) in enumerate(run.pictures.items()):
            for row, picture in enumerate(made):
                x = left + place * (CELL + GAP)
                sheet.picture(x, first + row * (CELL + GAP), picture, title if row == 0 else "")
        if not run.pictures:
            sheet.write(left, first + LINE, "makes no pictures", size=SMALL, colour=MUTED)
        left += count * (CELL + GAP) + 0.2
