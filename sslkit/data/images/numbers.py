"""The numbers of files with more than 8 bits, which Pillow's own modes hold in part, or not at all.

Pillow keeps one channel of 16 or 32 bits; of several it keeps the upper byte of each number. Its decoders can
be asked for the lower one just as well: the same file, unpacked as if in the other order of bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS, _PHOTOMETRIC, _PLANES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _NODATA = 258, 262, 284, 338, 339, 42113
_GEOREFERENCE = {33550, 33922, 34264, 34735, 42112, _NODATA}
_WHITE_IS_ZERO, _APART, _SIGNED, _UNSIGNED, _ASSOCIATED = 0, 2, 2, 1, 1
_LITTLE = sys.byteorder == "little"
_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if _LITTLE else "16L"}
_OWN_ORDER = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F", "F;64BF": "F;64F"}


@dataclass(frozen=True)
class Numbers:
    """What a file holds.

    Attributes:
        values: [H, W] or [H, W, 3]: integers of 8 bits (signed only), 16 or 32, or float32.
        bits: of each number in the file.
        inverted: the lowest number is white.
        missing: numbers that the file itself calls no data.
        clear: the number that is transparent.
        alpha: uint8 [H, W], how opaque each pixel is.
    """

    values: NDArray[Any]
    bits: int
    inverted: bool = False
    missing: tuple[float, ...] = ()
    clear: int | None = None
    alpha: NDArray[np.uint8] | None = None


def numbers_of(image: Image.Image, again: Callable[[], Image.Image]) -> Numbers | None:
    """The numbers of an image; None where its channels are plain bytes, and then it is not decoded.

    Args:
        image: opened and not decoded yet.
        again: opens the same file anew.
    """
    if has_one_channel(image):
        mend_(image)
        image.load()
        return one_channel(image)
    return _several_channels(image, again) if has_wide_channels(image) else None


def has_one_channel(image: Image.Image) -> bool:
    """Whether an opened image has one channel of more than 8 bits, or of signed ones."""
    signed = image.mode == "L" and _SIGNED in _tags(image).get(_SAMPLE_FORMAT, ())
    return signed or image.mode == "F" or image.mode.startswith("I")


def has_wide_channels(image: Image.Image) -> bool:
    """Whether an opened image has several channels of 16 bits, which Pillow makes bytes of."""
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return False
    return ";16" in _raw(image) or max(_tags(image).get(_BITS, (8,))) == 16


def mend_(image: Any) -> None:
    """Correct what Pillow would misread of an image that is not decoded yet.

    libtiff gives numbers in the machine's order of bytes, whatever the file's, which Pillow knows of unsigned
    ones only. Bands that lie apart it takes for bytes, and it stumbles over a fourth one that is no alpha.
    """
    if image.format != "TIFF" or not image.tile:
        return
    codec, raw = image.tile[0][0], _raw(image)
    if codec == "libtiff" and _LITTLE and raw in _OWN_ORDER:
        _unpack_as_(image, lambda _: _OWN_ORDER[raw])
    if codec == "raw" and _tags(image).get(_PLANES) == _APART and image.mode in ("RGB", "RGBA", "RGBX"):
        image._mode = image.mode.rstrip("X")  # of versions before Pillow 11, which unpack no 16 bits there
        image.tile = [part for part in image.tile if part[3][0].upper() in image.mode]
        if max(_tags(image)[_BITS]) == 16:
            order = "16B" if _tags(image).prefix == b"MM" else "16L"  # type: ignore[attr-defined]
            _unpack_as_(image, lambda band: f"{band.upper()};{order}")


def has_alpha(image: Image.Image) -> bool:
    """Whether the fourth channel of a decoded image is alpha, and no other band.

    A TIFF that says nothing of it has another band there, such as the near infrared of aerial images; Pillow
    takes it for alpha. GDAL calls the fourth of four bands alpha unless it is told otherwise: real masks of
    georeferenced images are 0 and 255, and a band whose pixels are mostly in between shows something.
    """
    if image.format != "TIFF" or image.mode != "RGBA":
        return True
    tags = _tags(image)
    if not any(tags.get(_EXTRA_SAMPLES, ())):
        return False
    counts = image.getchannel("A").histogram()
    return not _GEOREFERENCE & set(tags) or 2 * (counts[0] + counts[255]) >= sum(counts)


def one_channel(image: Image.Image) -> Numbers:
    """Of a decoded image with one channel."""
    tags, values = _tags(image), np.asarray(image)
    kind = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] if tags else _UNSIGNED
    if image.mode == "L":
        values = values.view(np.int8)
    if image.mode == "I" and tags.get(_BITS) == (32,) and kind == _UNSIGNED:
        values = values.view(np.uint32)
    clear = image.info.get("transparency")
    return Numbers(
        values,
        tags[_BITS][0] if _BITS in tags else 32 if image.mode == "F" else 16,
        inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        missing=_nodata(tags),
        clear=clear if isinstance(clear, int) and image.mode.startswith("I") else None,
    )


def _several_channels(image: Image.Image, again: Callable[[], Image.Image]) -> Numbers:
    """Of an image with channels of 16 bits, from two decodings: the upper and the lower byte of each."""
    if _raw(image).startswith("LA"):
        return _grey_and_alpha(image)
    premultiplied = image.mode == "RGBA" and _ASSOCIATED in _tags(image).get(_EXTRA_SAMPLES, ())
    upper, lower = (_straight(one) for one in (image, again()))
    _unpack_as_(lower, lambda raw: raw[:-3] + _OTHER_ORDER.get(raw[-3:], raw[-3:]))
    upper.load()
    lower.load()
    values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)
    alpha = values[..., 3] if image.mode == "RGBA" and has_alpha(upper) else None
    colours = values[..., :3]
    if premultiplied and alpha is not None:
        whole = colours.astype(np.float64) * 65535 / np.maximum(alpha, 1)[..., None]
        colours = whole.clip(0, 65535).round().astype(np.uint16)
    opaque = None if alpha is None else (alpha >> 8).astype(np.uint8)
    return Numbers(colours, 16, missing=_nodata(_tags(image)), alpha=opaque)


def _straight(image: Image.Image) -> Image.Image:
    """Mended, and to be unpacked as it is, not divided by its alpha."""
    mend_(image)
    _unpack_as_(image, lambda raw: raw.replace("RGBa", "RGBA").replace("a;", "A;"))
    return image


def _grey_and_alpha(image: Image.Image) -> Numbers:
    """Of a PNG, whose four bytes a pixel are unpacked as four channels."""
    image._mode = "RGBA"
    _unpack_as_(image, lambda _: "RGBA")
    image.load()
    pixels = np.asarray(image)
    return Numbers(pixels[..., 0].astype(np.uint16) << 8 | pixels[..., 1], 16, alpha=pixels[..., 2].copy())


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Of a TIFF; none of others."""
    found: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return found


def _nodata(tags: Mapping[int, Any]) -> tuple[float, ...]:
    """GDAL's tag, a text; one that is no number names nothing."""
    try:
        return (float(str(tags[_NODATA]).strip(" \0")),)
    except (KeyError, ValueError):
        return ()


def _raw(image: Image.Image) -> str:
    """How the decoder's bytes are laid out, as Pillow names it."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _unpack_as_(image: Image.Image, renamed: Callable[[str], str]) -> None:
    """Have every part of the file unpacked from another layout."""
    parts = []
    for part in image.tile:  # type: ignore[attr-defined]
        codec, extents, offset, arguments = part
        layout = arguments[0] if isinstance(arguments, tuple) else arguments
        rest = arguments[1:] if isinstance(arguments, tuple) else None
        changed = renamed(layout) if rest is None else (renamed(layout), *rest)
        # A named tuple in later versions of Pillow, whose other fields their loader reads by name.
        named = hasattr(part, "_replace")
        parts.append(part._replace(args=changed) if named else (codec, extents, offset, changed))
    image.tile = parts  # type: ignore[attr-defined]
