"""Files with more than 8 bits: every number as it was written, and what of a file says how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiffs import png, tiff

from sslkit.core.value_range import FULL, Range
from sslkit.data.images.decode import UnreadableImage, read_image, read_numbers

RANDOM = np.random.default_rng(0)
TWELVE = RANDOM.integers(0, 4096, (12, 16), dtype=np.uint16)
COLOURS = RANDOM.integers(0, 4096, (12, 16, 3), dtype=np.uint16)
ALPHA = RANDOM.integers(0, 65536, (12, 16), dtype=np.uint16)
OWN = Range((0.0, 4095.0))


def written(folder: Path, content: bytes, name: str = "a.tif") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def shown(path: str, range: Range = FULL) -> NDArray[np.int64]:
    return np.asarray(read_image(path, range=range)).astype(np.int64)


def grey(path: str, range: Range = FULL) -> NDArray[np.int64]:
    image = shown(path, range)
    assert (image == image[..., :1]).all()
    return image[..., 0]


def expected(value: Any, low: float, high: float) -> int:
    """Brightness of one number, in Python's own arithmetic."""
    share = (float(value) - low) / (high - low)
    return round(255 * min(max(share, 0.0), 1.0))


def all_expected(values: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    flat = [expected(value, low, high) for value in values.ravel().tolist()]
    return np.array(flat, np.int64).reshape(values.shape)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i1", "u2", "i2", "u4", "i4", "f4"])
def test_numbers_of_one_channel_are_those_written(
    tmp_path: Path, kind: str, order: str, deflate: bool
) -> None:
    top = min(np.iinfo(kind).max, 10**9) if kind != "f4" else 1e6
    values = RANDOM.integers(-100 if kind[0] == "i" else 0, top, (12, 16)).astype(kind)
    path = written(tmp_path, tiff(values, order=order, deflate=deflate))
    if (kind, order) == ("u4", ">"):  # which Pillow doesn't know
        with pytest.raises(UnreadableImage):
            read_numbers(path)
        return
    found = read_numbers(path)
    assert found is not None
    assert found.bits == 8 * int(kind[1])
    assert not found.inverted
    assert np.array_equal(found.values, values)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_numbers_of_several_channels_are_those_written(
    tmp_path: Path, order: str, deflate: bool, extra: int | None
) -> None:
    path = written(tmp_path, tiff(COLOURS, photometric=2, order=order, deflate=deflate))
    assert np.array_equal(read_numbers(path).values, COLOURS)  # type: ignore[union-attr]
    four = np.dstack([COLOURS, ALPHA | 0x8000])
    if extra == 1:  # colours are stored times alpha
        four[..., :3] = (COLOURS * (four[..., 3:] / 65535)).round()
    content = tiff(
        four, photometric=2, order=order, deflate=deflate, extra=None if extra is None else [extra]
    )
    found = read_numbers(written(tmp_path, content))
    assert found is not None
    assert (found.alpha is not None) == (extra in (1, 2))
    assert np.abs(found.values.astype(int) - COLOURS).max() <= (1 if extra == 1 else 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("extra", [None, 0, 2])
def test_bands_that_lie_apart(tmp_path: Path, kind: str, order: str, extra: int | None) -> None:
    """Pillow takes those of 16 bits for bytes, which gives stripes."""
    bands = COLOURS if kind == "u2" else (COLOURS >> 4).astype(np.uint8)
    top = 65535 if kind == "u2" else 255
    four = np.dstack([bands, np.full(bands.shape[:2], top, bands.dtype)])
    given = {"photometric": 2, "apart": True, "order": order}
    contents = [tiff(bands, rows=5, **given)]  # type: ignore[arg-type]
    if (kind, extra) != ("u1", 0):  # which Pillow can't open
        contents.append(tiff(four, rows=5, extra=None if extra is None else [extra], **given))  # type: ignore[arg-type]
    for content in contents:
        path = written(tmp_path, content)
        upper = bands >> 8 if kind == "u2" else bands
        assert np.array_equal(shown(path), upper)
        if kind == "u2":
            assert np.array_equal(read_numbers(path).values, bands)  # type: ignore[union-attr]


def test_numbers_of_png(tmp_path: Path) -> None:
    for values, colours in (
        (TWELVE, TWELVE),
        (COLOURS, COLOURS),
        (np.dstack([TWELVE, ALPHA]), TWELVE),
        (np.dstack([COLOURS, ALPHA]), COLOURS),
    ):
        found = read_numbers(written(tmp_path, png(values), "a.png"))
        assert found is not None
        assert np.array_equal(found.values, colours)
        if found.alpha is not None:
            assert np.array_equal(found.alpha, ALPHA >> 8)


def test_plain_bytes_have_no_numbers(tmp_path: Path) -> None:
    bytes_ = (COLOURS >> 4).astype(np.uint8)
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"):
        Image.fromarray(bytes_).save(tmp_path / name)
        assert read_numbers(str(tmp_path / name)) is None
    Image.fromarray(bytes_[..., 0]).save(tmp_path / "grey.tif")
    assert read_numbers(str(tmp_path / "grey.tif")) is None
    assert read_numbers(written(tmp_path, tiff(bytes_[..., 0], photometric=0))) is None


def test_a_range_makes_12_bits_bright_in_every_kind_of_file(tmp_path: Path) -> None:
    wanted = all_expected(TWELVE, 0, 4095)
    files = {
        "16.png": png(TWELVE),
        "16.tif": tiff(TWELVE),
        "32.tif": tiff(TWELVE.astype(np.int32)),
        "float.tif": tiff(TWELVE.astype(np.float32)),
        "signed.tif": tiff(TWELVE.astype(np.int16)),
    }
    for name, content in files.items():
        assert np.array_equal(grey(written(tmp_path, content, name), OWN), wanted), name
    for content in (png(COLOURS), tiff(COLOURS, photometric=2), tiff(COLOURS, photometric=2, deflate=True)):
        assert np.array_equal(shown(written(tmp_path, content, "rgb"), OWN), all_expected(COLOURS, 0, 4095))


def test_numbers_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    values = RANDOM.integers(-3000, 9000, (12, 16), dtype=np.int16)
    path = written(tmp_path, tiff(values))
    assert np.array_equal(grey(path, Range((-1024.0, 3071.0))), all_expected(values, -1024, 3071))


def test_four_numbers_are_of_integers_and_of_floats(tmp_path: Path) -> None:
    both = Range((0.0, 4095.0, 0.0, 1.0))
    share = RANDOM.random((12, 16), np.float32)
    assert np.array_equal(grey(written(tmp_path, tiff(TWELVE)), both), all_expected(TWELVE, 0, 4095))
    assert np.array_equal(grey(written(tmp_path, tiff(share)), both), all_expected(share, 0, 1))


def test_sixteen_bits_in_full_are_read_as_before(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (150, 160), dtype=np.uint16)  # more than are worth a table
    path = written(tmp_path, png(values), "a.png")
    assert np.array_equal(grey(path, Range((0.0, 65535.0))), grey(path))
    assert np.array_equal(grey(path), all_expected(values, 0, 65535))
    rgb = written(tmp_path, png(np.dstack([values] * 3)), "rgb.png")
    assert np.array_equal(shown(rgb, Range((0.0, 65535.0))), np.dstack([values >> 8] * 3))


@pytest.mark.parametrize("range", [FULL, OWN])
@pytest.mark.parametrize(("kind", "order"), [("u2", "<"), ("f4", "<"), ("f4", ">")])
def test_white_is_zero(tmp_path: Path, kind: str, order: str, range: Range) -> None:
    values = TWELVE.astype(kind) if range is OWN else RANDOM.random((12, 16), np.float32)
    values = values if range is OWN or kind == "f4" else RANDOM.integers(0, 65536, (12, 16), dtype=np.uint16)
    black = written(tmp_path, tiff(values, photometric=1, order=order), "black.tif")
    white = written(tmp_path, tiff(values, photometric=0, order=order), "white.tif")
    assert np.array_equal(grey(white, range), 255 - grey(black, range))


@pytest.mark.parametrize("range", [FULL, Range((-128.0, 127.0))])
def test_signed_bytes(tmp_path: Path, range: Range) -> None:
    values = RANDOM.integers(-128, 128, (12, 16), dtype=np.int8)
    assert np.array_equal(grey(written(tmp_path, tiff(values)), range), values.astype(int) + 128)


@pytest.mark.parametrize(
    ("kind", "tag", "stored"),
    [
        ("f4", "-9999", -9999),
        ("f4", "-3.40282346638529e+38", np.finfo(np.float32).min),
        ("f4", "-3.40282e+38", np.finfo(np.float32).min),
        ("f4", " 1e+20 ", 1e20),
        ("f4", "nan", np.nan),
        ("i2", "-32768", -32768),
        ("i4", "-9999", -9999),
        ("u2", "65535", 65535),
        ("u2", "0", 0),
    ],
)
def test_gdal_s_tag_makes_numbers_black(tmp_path: Path, kind: str, tag: str, stored: float) -> None:
    values = TWELVE.astype(kind)
    values[stored == TWELVE] = 1
    with np.errstate(over="ignore"):
        values[::3] = stored
    wanted = all_expected(TWELVE.astype(kind), 0, 4095)
    wanted[stored == TWELVE] = expected(1, 0, 4095)
    wanted[::3] = 0
    path = written(tmp_path, tiff(values, nodata=tag))
    assert np.array_equal(grey(path, OWN), wanted)
    inverted = written(tmp_path, tiff(values, nodata=tag, photometric=0)) if kind in ("f4", "u2") else None
    if inverted:
        assert (grey(inverted, OWN)[::3] == 0).all()


def test_a_tag_that_fits_no_number_of_the_file_names_nothing(tmp_path: Path) -> None:
    for tag in ("-9999", "1e+300", "0.5", "", "none", "70000"):
        assert np.array_equal(
            grey(written(tmp_path, tiff(TWELVE, nodata=tag)), OWN), all_expected(TWELVE, 0, 4095)
        )


def test_named_numbers_and_what_is_not_finite_are_black(tmp_path: Path) -> None:
    values = TWELVE.astype(np.float32)
    values[0], values[1], values[2], values[3] = np.nan, np.inf, -np.inf, -999
    wanted = all_expected(TWELVE, 0, 4095)
    wanted[:4] = 0
    range = Range((-1000.0, 4095.0), (-999.0,))
    wanted[4:] = all_expected(TWELVE[4:], -1000, 4095)
    assert np.array_equal(grey(written(tmp_path, tiff(values)), range), wanted)
    signed = TWELVE.astype(np.int16)
    signed[3] = -999
    assert (grey(written(tmp_path, tiff(signed)), range)[3] == 0).all()


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_fourth_band_without_name_is_not_alpha(tmp_path: Path, kind: str) -> None:
    values = RANDOM.integers(0, np.iinfo(kind).max + 1, (12, 16, 4), dtype=kind)
    upper = values[..., :3] >> (8 if kind == "u2" else 0)
    for extra in (None, [0]):
        assert np.array_equal(shown(written(tmp_path, tiff(values, photometric=2, extra=extra))), upper)
    named = shown(written(tmp_path, tiff(values, photometric=2, extra=[2])))
    assert not np.array_equal(named, upper)


def test_infrared_that_gdal_calls_alpha_is_not_alpha(tmp_path: Path) -> None:
    colours = (COLOURS >> 4).astype(np.uint8)
    infrared = RANDOM.integers(1, 250, (12, 16), dtype=np.uint8)
    mask = np.where(RANDOM.random((12, 16)) < 0.3, 0, 255).astype(np.uint8)
    band = tiff(np.dstack([colours, infrared]), photometric=2, extra=[2], georeferenced=True)
    assert np.array_equal(shown(written(tmp_path, band)), colours)
    masked = tiff(np.dstack([colours, mask]), photometric=2, extra=[2], georeferenced=True)
    wanted = np.where(mask[..., None] == 255, colours, 255)
    assert np.array_equal(shown(written(tmp_path, masked)), wanted)
    photo = tiff(np.dstack([colours, infrared]), photometric=2, extra=[2])
    assert not np.array_equal(shown(written(tmp_path, photo)), colours)


def test_transparent_numbers_are_white_by_a_range_too(tmp_path: Path) -> None:
    clear = np.where(RANDOM.random((12, 16)) < 0.5, 0, 65535).astype(np.uint16)
    path = written(tmp_path, png(np.dstack([TWELVE, clear])), "a.png")
    wanted = np.where(clear > 0, all_expected(TWELVE, 0, 4095), 255)
    assert np.array_equal(grey(path, OWN), wanted)
    Image.fromarray(TWELVE).save(tmp_path / "key.png", transparency=int(TWELVE[0, 0]))
    found = grey(str(tmp_path / "key.png"), OWN)
    assert (found[TWELVE[0, 0] == TWELVE] == 255).all()
