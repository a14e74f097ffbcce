"""TIFF and PNG files with numbers that Pillow can't write, put together byte by byte from their formats."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FORMATS = {"u": 1, "i": 2, "f": 3}
SHORT, LONG, ASCII = (3, "H", 2), (4, "I", 4), (2, "B", 1)


def tiff(
    values: NDArray[Any],
    *,
    photometric: int = 1,
    extra: Sequence[int] | None = None,
    nodata: str | None = None,
    order: str = "<",
    apart: bool = False,
    deflate: bool = False,
    georeferenced: bool = False,
    rows: int | None = None,
) -> bytes:
    """[H, W] or [H, W, bands] in strips of so many rows; a plane after the other if `apart`."""
    bands = values.shape[2] if values.ndim == 3 else 1
    stored = values.astype(values.dtype.newbyteorder(order))  # type: ignore[arg-type]
    planes = [stored[..., band] for band in range(bands)] if apart else [stored]
    rows = rows or len(values)
    parts = [plane[first : first + rows] for plane in planes for first in range(0, len(plane), rows)]
    strips = [zlib.compress(part.tobytes()) if deflate else part.tobytes() for part in parts]
    tags: dict[int, tuple[tuple[int, str, int], Sequence[int]]] = {
        256: (LONG, [values.shape[1]]),
        257: (LONG, [values.shape[0]]),
        258: (SHORT, [8 * values.dtype.itemsize] * bands),
        259: (SHORT, [8 if deflate else 1]),
        262: (SHORT, [photometric]),
        273: (LONG, [0] * len(strips)),
        277: (SHORT, [bands]),
        278: (LONG, [rows]),
        279: (LONG, [len(strip) for strip in strips]),
        284: (SHORT, [2 if apart else 1]),
        339: (SHORT, [_FORMATS[values.dtype.kind]] * bands),
    }
    if extra is not None:
        tags[338] = (SHORT, extra)
    if georeferenced:
        tags[33922] = (LONG, [0] * 6)  # ModelTiepoint
    if nodata is not None:
        tags[42113] = (ASCII, [*nodata.encode(), 0])
    longer = {
        key: -(-len(numbers) * kind[2] // 2) * 2
        for key, (kind, numbers) in tags.items()
        if len(numbers) * kind[2] > 4
    }
    place = 8 + 2 + 12 * len(tags) + 4
    first = place + sum(longer.values())
    tags[273] = (LONG, [first + sum(map(len, strips[:number])) for number in range(len(strips))])
    entries, further = b"", b""
    for key in sorted(tags):
        kind, numbers = tags[key]
        content = struct.pack(f"{order}{len(numbers)}{kind[1]}", *numbers)
        entries += struct.pack(f"{order}HHI", key, kind[0], len(numbers))
        if key in longer:
            entries += struct.pack(f"{order}I", place + len(further))
            further += content.ljust(longer[key], b"\0")
        else:
            entries += content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return start + entries + bytes(4) + further + b"".join(strips)


def png(values: NDArray[np.uint16]) -> bytes:
    """[H, W] or [H, W, 2 … 4] of 16 bits: grey, grey and alpha, RGB, RGBA."""
    bands = values.shape[2] if values.ndim == 3 else 1
    header = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
