"""The pieces of a page: text that can't do harm, headings, tables that can be read aloud, pictures inside.

All that comes from a file passes through `shown`: no tag, no control character is obeyed.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from sslkit.core.console import visible
from sslkit.visualization.figures.style import DPI as FILE_DPI

_DPI = 110  # sharp at the page's width, half the bytes of the files' 150
WIDEST, TALLEST = 1600, 2400  # pixels of a picture
PLOT_COLOURS = 5000  # at most; a picture of more holds photographs, which JPEG keeps in a fifth of the bytes
LARGE = 120_000  # bytes of a PNG from which JPEG may be smaller: grey photographs have few colours too
_WIDE = 6.4  # inches from which a picture is scrolled on a narrow screen, not made unreadable
_UNIT = re.compile(r"(?<=\d) (?=[±%]|points\b|px\b)|(?<=±) (?=\d)")


def shown(value: object) -> str:
    """Any value as HTML text; control characters and stray bytes of a name as Python's escapes."""
    return escape(visible(str(value)))


def _together(value: object) -> str:
    """As `shown`, and no line ends between a number and its unit or its interval."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", shown(value))


def section(title: str, content: str) -> str:
    """A part of the page with its heading; nothing where there is no content."""
    if not content:
        return ""
    return f'<section id="{anchor(title)}"><h2>{shown(title)}</h2>\n{content}</section>'


def anchor(title: str) -> str:
    """A heading's name in links."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_together(text)}</p>' if kind else f"<p>{_together(text)}</p>"


def facts(rows: Mapping[str, object]) -> str:
    """Names and values."""
    cells = "".join(
        f'<tr><th scope="row">{shown(k)}</th><td>{_together(v)}</td></tr>' for k, v in rows.items()
    )
    return f'<table class="facts"><tbody>{cells}</tbody></table>'


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "figures"
) -> str:
    """Columns under a header; the first cell of a row names it. `kind` "words" aligns all to the left."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{shown(first)}</th>'
        + "".join(f"<td>{_together(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{shown(caption)}">'
        f'<table class="{kind}"><caption>{shown(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """A block that is closed until it is clicked."""
    return f"<details><summary>{shown(summary)}</summary>{content}</details>"


def code(lines: Sequence[str]) -> str:
    text = "\n".join(map(shown, lines))
    return f'<pre tabindex="0" role="region" aria-label="commands">{text}</pre>'


def drawn(figure: Figure, text: str) -> str:
    """A figure as a picture of the page; `text` says what it shows."""
    figure.dpi = _DPI
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return picture(Image.fromarray(np.asarray(canvas.buffer_rgba())), text)


def stored(file: Path, text: str) -> str:
    """A picture file; nothing where it can't be read."""
    try:
        with Image.open(file) as image:
            return picture(image, text, FILE_DPI)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""


def picture(image: Image.Image, text: str, dpi: int = _DPI) -> str:
    """Inside the page, never larger than it is shown."""
    made = on_white(image)
    made.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
    kind, content = _encoded(made)
    data = base64.b64encode(content).decode("ascii")
    wide = ' class="wide"' if image.width > _WIDE * dpi else ""
    tag = (
        f'<img{wide} src="data:image/{kind};base64,{data}" width="{made.width}" height="{made.height}" '
        f'alt="{shown(text)}">'
    )
    if wide:
        tag = f'<div class="scroll" role="region" tabindex="0" aria-label="picture">{tag}</div>'
    return f"<figure>{tag}<figcaption>{shown(text)}</figcaption></figure>"


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    """As PNG where that is sharp and small, else as JPEG: the kind, and the bytes."""
    plot = image.getcolors(PLOT_COLOURS) is not None
    if plot and len(sharp := _bytes(image, "png")) <= LARGE:
        return "png", sharp
    smooth = _bytes(image, "jpeg")
    return ("png", sharp) if plot and len(sharp) < len(smooth) else ("jpeg", smooth)


def _bytes(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88, subsampling=0)  # of which a PNG takes no notice
    return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes paper."""
    if image.mode in ("RGB", "L"):
        return image.convert("RGB")
    clear = image.convert("RGBA")
    paper = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(paper, clear).convert("RGB")
