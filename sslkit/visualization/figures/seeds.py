"""Fine-tunings with several seeds, beside others from random weights: a table of all runs, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sslkit.visualization.figures.style import COLOURS, DASHED, INK, MARGIN, MUTED, Sheet, legend, note
from sslkit.visualization.report.html import drawn, table

OURS, OTHERS = "from this encoder", "from random weights"
_ROW = 0.42  # height of a seed's row, inches
LABELS, WIDE = 0.65, 3.7  # room for the seeds' names, width of a plot
TOP, BETWEEN = 0.9, 0.9  # the first plot's upper edge, and from one to the other
TEXT = (
    "Above: top-1 of every run, joined seed by seed. Below: the paired difference of each seed, and of all "
    "together with its 95 % interval; an interval that holds 0 does not show a difference."
)


@dataclass(frozen=True)
class Arms:
    """What a comparison has found, in percent of the validation images and in points."""

    seeds: tuple[int, ...]
    source: tuple[float, ...]  # top-1, one a seed
    scratch: tuple[float, ...]  # as many, or none
    spreads: tuple[float | None, float | None]  # standard deviations over the seeds
    per_seed: tuple[float, ...]  # paired differences, as many as of scratch
    difference: float
    margin: float  # half its 95 % interval


def read_seeds(document: Mapping[str, Any]) -> Arms | None:
    """Of finetune.json; None where there is one run alone. Raises KeyError and the like: another document."""
    seeds = tuple(document.get("seeds") or ())
    if not seeds:
        return None
    top1 = tuple(float(run["top1"]) for run in document["runs"])
    found, baseline = document.get("difference") or {}, document.get("baseline") or {}
    return Arms(
        seeds,
        top1[: len(seeds)],
        top1[len(seeds) :],
        (document.get("top1_std"), baseline.get("top1_std")),
        tuple(found.get("per_seed", ())),
        float(found.get("points", 0)),
        float(found.get("margin", 0)),
    )


def arms(found: Arms) -> str:
    """The part of a page about them."""
    columns = [found.source, *([found.scratch] if found.scratch else [])]
    rows = []
    for place, seed in enumerate(found.seeds):
        difference = [f"{found.per_seed[place]:+.1f}"] if found.scratch else []
        rows.append([f"seed {seed}", *(f"{column[place]:.1f}" for column in columns), *difference])
    if len(found.seeds) > 1:
        means = [
            f"{sum(column) / len(column):.1f}" + ("" if spread is None else f" ± {spread:.1f}")
            for column, spread in zip(columns, found.spreads, strict=False)
        ]
        total = f"{found.difference:+.1f} ± {found.margin:.1f}"
        rows.append(["mean", *means, *([total] if found.scratch else [])])
    header = ["", OURS.capitalize(), *([OTHERS.capitalize(), "Difference"] if found.scratch else [])]
    caption = "Top-1 in % of fine-tunings with the same images and budget"
    if len(found.seeds) > 1:
        caption += "; mean ± deviation over the seeds" + (
            ", and difference ± half its 95 % interval" if found.scratch else ""
        )
    return table(caption, header, rows) + (drawn(seed_plot(found), TEXT) if found.scratch else "")


def seed_plot(found: Arms) -> Figure:
    """Both runs of every seed on a line, and below how far they are apart: a phone shows it whole."""
    names = [f"seed {seed}" for seed in found.seeds]
    height = _ROW * (len(names) + 1)
    second = TOP + height + BETWEEN
    sheet = Sheet(MARGIN + LABELS + WIDE + 0.25, second + height + 0.65, "Fine-tuned, seed by seed")
    above = sheet.plot(MARGIN + LABELS, TOP, WIDE, height, "top-1, %", "")
    below = sheet.plot(MARGIN + LABELS, second, WIDE, height, "difference, points", "")
    rows = range(len(names))
    for row, ours, other in zip(rows, found.source, found.scratch, strict=True):
        above.plot([ours, other], [row, row], color=MUTED, linewidth=1.2, zorder=1)
    for values, colour, marker, name in (
        (found.source, COLOURS[0], "o", OURS),
        (found.scratch, COLOURS[1], "s", OTHERS),
    ):
        above.scatter(values, rows, s=34, color=colour, marker=marker, label=name, zorder=2)
        mean = sum(values) / len(values)
        above.scatter(mean, len(names), s=60, color=colour, marker=marker, zorder=2)
    below.scatter(found.per_seed, rows, s=34, color=INK, zorder=2)
    below.errorbar(
        found.difference, len(names), xerr=found.margin, fmt="D", color=INK, capsize=3, markersize=6, zorder=2
    )
    below.axvline(0, color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)
    reach = 1.15 * max(abs(found.difference) + found.margin, *map(abs, found.per_seed), 1.0)
    below.set_xlim(-reach, reach)
    for axes in (above, below):
        axes.set_ylim(len(names) + 0.5, -0.5)
        axes.set_yticks(range(len(names) + 1), [*names, "mean"])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="y")
    above.margins(x=0.1)
    corner = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0)}
    legend(above, None, ncols=2, handletextpad=0.3, columnspacing=1.2, **corner)
    note(below, 0.0, 1.06, "left of 0: random weights are better", below.transAxes)
    return sheet.figure
