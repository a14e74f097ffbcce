"""Which files are images: by their ending, or, where they have none, by how they begin.

Pillow decodes, with a list of formats by name: never EPS, PDF, WMF or MPEG, which are no pictures of
one size or start other programs. HEIC and JPEG XL come through Pillow plug-ins, where these are installed.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO, NamedTuple

import PIL
from PIL import Image, UnidentifiedImageError, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What nearly every image is, and what is tried first; JPEG includes MPO."""
OTHERS = (
    "AVIF", "JPEG2000", "PSD", "QOI", "DDS", "ICNS", "ICO", "CUR", "FITS", "SGI", "SUN", "PCX", "DCX",
    "MSP", "XPM",
    "BLP", "FTEX", "PIXAR", "XBM", "DIB",
)  # fmt: skip
"""Other raster formats, where the installed Pillow has them, each told by its signature. `_is_targa` knows
TGA, which has none. Left out beside documents and films: PCD and GBR, whose endings are those of
point clouds and circuit boards."""

TARGA = "TGA"

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".mpo",
)  # fmt: skip
"""Endings of FORMATS, in any case of letters; `is_image` knows those of the others."""


class _PlugIn(NamedTuple):
    module: str
    extra: str  # of sslkit
    endings: tuple[str, ...]


PLUG_INS: Mapping[str, _PlugIn] = {
    "HEIF": _PlugIn("pillow_heif", "heif", (".heic", ".heif", ".hif", ".heics", ".heifs")),
    "JXL": _PlugIn("pillow_jxl", "jxl", (".jxl",)),
}
_HEAD = 4096  # bytes that tell a format
_ENDING = re.compile(
    rb"\.(?=[0-9]*[a-z])[0-9a-z]{1,8}\Z"
)  # .jpg and .3fr; not .jpg_large, .2019 or .jpg?w=100
_BOX = b"\0\0\0\x0c%b\r\n\x87\n"
_BEGINNINGS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"P[1-6]\s+[#\d]", "PPM"),
    (re.escape(_BOX % b"jP  ") + rb"|\xff\x4f\xff\x51", "JPEG2000"),
    (re.escape(_BOX % b"JXL ") + rb"|\xff\x0a", "JXL"),
    (rb"....ftyp(avi[fs]|.{4,40}?avi[fs])", "AVIF"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIF"),
    (rb"8BPS\0\x01", "PSD"),
    (rb"qoif", "QOI"),
    (rb"DDS \x7c\0\0\0", "DDS"),
    (rb"icns", "ICNS"),
    (rb"SIMPLE  =", "FITS"),
)
"""How a file begins → its format, where that is sure enough for a file without an ending."""
_BEGINS = tuple((re.compile(start, re.DOTALL), kind) for start, kind in _BEGINNINGS)


def open_image(file: BinaryIO) -> Image.Image:
    """The image in an opened file, its header read, whatever the file is called.

    Raises:
        UnidentifiedImageError: of no format that is read. ValueError: of one that needs a plug-in.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        return Image.open(file, formats=_others(file))


def turns_itself(image: Image.Image) -> bool:
    """Whether the decoder has turned it: of JPEG XL only what was a JPEG goes by its EXIF (ISO/IEC
    18181-2).
    """
    return image.format == "JXL" and not getattr(image, "jpeg", False)


def rules() -> str:
    """What `is_image` depends on beside this file: another text where it may answer otherwise."""
    return " ".join([PIL.__version__, *(plug.extra for plug in PLUG_INS.values() if _installed(plug.module))])


def ending(name: bytes) -> bytes:
    """ ".jpg" of "A.JPG"; nothing where what follows the last dot is no ending, as in "scan.001" or
    "a.jpg_large".
    """
    found = _ENDING.search(name.lower())
    return found[0] if found and found.start() else b""


@cache
def is_image(ending: bytes) -> bool:
    """Whether files with this ending, in small letters, are read."""
    text = os.fsdecode(ending)
    if text in ENDINGS:
        return True
    for kind, plug in PLUG_INS.items():
        if text in plug.endings:
            return _registered(kind)
    kind = Image.registered_extensions().get(text, "")
    return kind in Image.OPEN and (kind in FORMATS or kind in OTHERS or kind == TARGA) and _built(kind)


def looks_like_image(path: bytes) -> bool:
    """Whether a file begins as an image that is read; False if it can't be read."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            kind = kind_of(file.read(_HEAD))
    except OSError:
        return False
    return kind in FORMATS or (bool(kind) and _registered(kind))


def kind_of(head: bytes) -> str:
    """Format of a file that begins so; "" if that is not sure."""
    return next((kind for begins, kind in _BEGINS if begins.match(head)), "")


def cure(ending: str) -> str:
    """What to install so that files with this ending are read; "" where nothing helps."""
    for plug in PLUG_INS.values():
        if ending in plug.endings:
            return f"pip install 'sslkit[{plug.extra}]' reads {ending}"
    return "pip install -U Pillow reads .avif" if ending in (".avif", ".avifs") else ""


def without_waiting(path: str | bytes, flags: int) -> int:
    """Opens a file without waiting for a writer, should it have become a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _others(file: BinaryIO) -> tuple[str, ...]:
    """What a file may be that is none of FORMATS: one, where that is sure."""
    file.seek(0)
    head = file.read(_HEAD)
    sure = kind_of(head)
    if sure in PLUG_INS and not _registered(sure):
        plug = PLUG_INS[sure]
        name = plug.endings[0].lstrip(".").upper()
        raise ValueError(f"{name}: pip install 'sslkit[{plug.extra}]' reads it")
    Image.init()
    if sure and sure not in FORMATS and _registered(sure):
        return (sure,)
    return (TARGA,) if _is_targa(head, file) else tuple(kind for kind in OTHERS if kind in Image.OPEN)


def _registered(kind: str) -> bool:
    """Whether Pillow, with its plug-in where it takes one, has this format."""
    if kind in PLUG_INS and kind not in Image.OPEN:
        module = PLUG_INS[kind].module
        if not _installed(module):
            return False
        try:
            plug_in = import_module(module)
        except ImportError:  # of another Pillow, or without its library
            return False
        if kind == "HEIF":
            plug_in.register_heif_opener()
    else:
        Image.init()
    return kind in Image.OPEN and _built(kind)


def _built(kind: str) -> bool:
    """Some formats have a reader even where Pillow was built without their library."""
    library = {"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
    return library is None or bool(features.check(library))


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _is_targa(head: bytes, file: BinaryIO) -> bool:
    """TGA has no signature but that at its end; without it the header must fit the file's length."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 18))
    if file.read(18) == b"TRUEVISION-XFILE.\0":
        return True
    if len(head) < 18:
        return False
    name, colours, kind, _, count, depth_of_colour, _, _, width, height, depth, flags = struct.unpack(
        "<BBBHHBHHHHBB", head[:18]
    )
    paletted = kind in (1, 9)
    palette = count * -(-depth_of_colour // 8)
    if kind not in (1, 2, 3, 9, 10, 11) or colours != paletted or bool(palette) != paletted:
        return False
    depths = {8} if paletted else {8, 16} if kind in (3, 11) else {16, 24, 32}
    if depth not in depths or flags & 0xC0 or not width or not height:
        return False
    least: int = 18 + name + palette
    pixels: int = width * height * depth // 8
    return length >= least + pixels if kind < 9 else least < length <= least + pixels + pixels // 64 + 1024
