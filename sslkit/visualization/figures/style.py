"""One look for all pictures: sizes in inches, a palette that colour-blind readers can tell apart, file names.

Figures are made with matplotlib's objects alone: no pyplot, no window, no setting that outlives a call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Transform
from torch import Tensor

from sslkit.core.console import readable
from sslkit.core.files import beside
from sslkit.core.paths import put

DPI = 150
INK, MUTED, RULE = "#1a1a1a", "#5c6066", "#d5d7da"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, the darker ones first."""
SMALL, TEXT, TITLE = 8.5, 10.0, 13.0  # points

CELL = 1.4  # side of a picture in a grid, inches
GAP = 0.08  # between neighbours
MARGIN = 0.3
LINE = 0.22  # room for a line of text above a picture
ROW = CELL + LINE + 0.06  # a picture with its title, and what parts it from the next
DASHED = (0, (4, 3))


class Sheet:
    """A figure laid out in inches from its top left corner, so that pictures line up exactly."""

    def __init__(self, width: float, height: float, title: str, subtitle: str = "") -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self.write(MARGIN, 0.36, title, size=TITLE, weight="bold")
        if subtitle:
            self.write(MARGIN, 0.6, subtitle, size=TEXT, colour=MUTED)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame has these bounds."""
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    @cached_property
    def wall(self) -> Axes:
        """One pair of axes, in inches, that holds all pictures: a pair for each would cost 40 ms each."""
        rim = 0.02  # on the very edge, rounding would count it as cut off
        axes = self.axes(rim, rim, self.width - 2 * rim, self.height - 2 * rim)
        axes.set_axis_off()
        axes.set(xlim=(rim, self.width - rim), ylim=(self.height - rim, rim))
        return axes

    def write(
        self,
        left: float,
        baseline: float,
        text: str,
        *,
        size: float = TEXT,
        colour: str = INK,
        weight: str = "normal",
        rotation: float = 0,
        align: str = "left",
    ) -> None:
        """Text that begins (or is centred, or ends: `align`) at `left`."""
        x, y = left / self.width, 1 - baseline / self.height
        vertical = "center" if rotation else "baseline"
        self.figure.text(
            x,
            y,
            readable(text.replace(r"\$", "$")),
            parse_math=False,
            fontsize=size,
            color=colour,
            fontweight=weight,
            rotation=rotation,
            ha=align,
            va=vertical,
        )

    def picture(
        self,
        left: float,
        top: float,
        image: Tensor,
        title: str = "",
        *,
        cmap: str | None = None,
        limits: tuple[float, float] = (0.0, 1.0),
        frame: tuple[str, float] = (RULE, 0.6),
    ) -> AxesImage:
        """A picture in a square cell: [3, H, W] in [0, 1], or [H, W] through a colour map with these limits.

        The title stands above, and is the picture's label. frame: colour, and width in points.
        """
        pixels = image.detach().float().cpu()
        if pixels.ndim == 3:
            pixels = pixels.clamp(0, 1).permute(1, 2, 0)
        high, wide = (CELL * side / max(pixels.shape[:2]) for side in pixels.shape[:2])
        x, y = left + (CELL - wide) / 2, top + (CELL - high) / 2
        made = AxesImage(self.wall, cmap=cmap, norm=Normalize(*limits), extent=(x, x + wide, y + high, y))
        made.set_data(pixels.numpy())
        self.wall.add_image(made)
        made.set_label(title)  # after `add_image`, which gives a name to what has none
        colour, line = frame
        self.wall.add_patch(Rectangle((x, y), wide, high, fill=False, edgecolor=colour, linewidth=line))
        if title:
            self.write(left + CELL / 2, top - 0.06, title, size=SMALL, align="center")
        return made

    def colour_bar(
        self,
        drawn: ScalarMappable,
        left: float,
        top: float,
        height: float,
        label: str,
        ticks: Sequence[float] = (),
    ) -> Colorbar:
        """A vertical bar for a picture's colours."""
        bar = self.figure.colorbar(drawn, cax=self.axes(left, top, 0.1, height), ticks=list(ticks) or None)
        bar.ax.tick_params(labelsize=SMALL, colors=MUTED, length=2)
        bar.set_label(label, fontsize=SMALL, color=MUTED)
        bar.outline.set(linewidth=0)
        return bar

    def plot(
        self, left: float, top: float, width: float, height: float, x: str, y: str, title: str = ""
    ) -> Axes:
        """Axes for curves, with labelled axes."""
        axes = self.axes(left, top, width, height)
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left", pad=5)
        axes.set_xlabel(x, fontsize=SMALL, color=MUTED)
        axes.set_ylabel(y, fontsize=SMALL, color=MUTED)
        axes.tick_params(which="both", labelsize=SMALL, colors=MUTED, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=RULE)
        axes.grid(color=RULE, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)
        return axes


def column(index: int, start: float = MARGIN) -> float:
    """Left edge of a grid's column."""
    return start + index * (CELL + GAP)


def legend(place: Axes | Figure, handlelength: float | None = 1.6, **more: Any) -> None:
    """The names of what is drawn there; `more` as matplotlib takes it."""
    place.legend(fontsize=SMALL, frameon=False, labelcolor=INK, handlelength=handlelength, **more)


def legend_below(sheet: Sheet, columns: int, above: float = 0.01) -> None:
    """The names of the first axes' curves at the sheet's lower edge, where no curve is.

    Args:
        above: the edge, share of the height.
    """
    handles, names = sheet.figure.axes[0].get_legend_handles_labels()
    corner = MARGIN / sheet.width, above
    legend(
        sheet.figure,
        None,
        handles=handles,
        labels=names,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=corner,
    )


def colour_of(order: int) -> str:
    """Of the curve, bar or run with this number, from 0; they repeat."""
    return COLOURS[order % len(COLOURS)]


def shortened(name: str, longest: int) -> str:
    """The end of a long name, `longest` letters: runs differ there."""
    return plain(name if len(name) <= longest else "…" + name[-longest + 1 :])


def beginning(name: str, longest: int) -> str:
    """The beginning of a long name, `longest` letters, as classes differ there."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def plain(name: str) -> str:
    """A name on an axis or in a legend: what can be shown, and no formula, as matplotlib sees between
    dollars.
    """
    return readable(name).replace("$", r"\$")


def logarithmic(axes: Axes) -> None:
    """To the right, with 1, 2, 5, 10, … instead of powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def ring(drawn: AxesImage, x: float, y: float, radius: float) -> None:
    """A circle around (x, y) of a picture, where a centred mask has its cut; pixels."""
    left, right, bottom, top = drawn.get_extent()
    scale = (right - left) / drawn.get_size()[1]  # inches a pixel
    centre = left + scale * (x + 0.5), top + scale * (y + 0.5)
    circle = Circle(centre, scale * radius, fill=False, color=COLOURS[1], linewidth=1.1)
    drawn.axes.add_patch(circle)
    circle.set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=drawn.axes.transData))


def mark_radius(axes: Axes, radius: float) -> None:
    """A dotted line where a frequency axis is cut, its name above the frame, clear of the curves."""
    axes.axvline(radius, color=MUTED, linewidth=1, linestyle=":")
    note(
        axes,
        radius,
        1.02,
        f"r = {format_number(radius)}",
        axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
    )


def note(axes: Axes, x: float, y: float, text: str, transform: Transform, **more: Any) -> None:
    """Small grey text beside what is drawn; `more` as matplotlib takes it."""
    axes.text(x, y, text, transform=transform, fontsize=SMALL, color=MUTED, **more)


def format_number(value: float) -> str:
    """16 for 16.0, 2.29 for 2.29."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def save_missing(draw: Callable[[], Figure], path: Path) -> Path:
    """Draw and write what is not there yet, for pictures of results that are final; returns `path`."""
    return path if path.is_file() else save_figure(draw(), path)


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a PNG as `path`, or with -2, -3, … before its ending where that is taken; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as unfinished:
        write(figure, unfinished, dpi)
        return put(unfinished, path)


def write(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """A PNG file. A class's name may be in letters that the font lacks: they are boxes, which says enough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(path, dpi=dpi, format="png")
