"""Images as they are found: every mode with exact pixels, every orientation, every kind of damage."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sslkit.core.errors import UserError
from sslkit.core.value_range import FULL
from sslkit.data.images.decode import UnreadableImage, image_size, read_image
from sslkit.data.sources.image_set import ImageSet, open_images

Pixels = NDArray[np.uint8]
RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 16), dtype=np.uint8)
COLOR = RANDOM.integers(0, 256, (12, 16, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (12, 16), dtype=np.uint8)
ALPHA[:, :2], ALPHA[:, 2:4] = 0, 255


def on_white(color: Pixels, alpha: Pixels) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def grey_to_rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[..., None], 3, axis=2)


def pixels(path: Path) -> NDArray[np.int64]:
    image = read_image(str(path), range=FULL)
    assert image.mode == "RGB"
    assert image_size(str(path)) == image.size
    return np.asarray(image).astype(np.int64)


def palette_image() -> tuple[Image.Image, Pixels]:
    table = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8)
    image = Image.fromarray(GREY % 4)
    image.putpalette(table.tobytes())
    return image, table[GREY % 4]


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_exact_in_lossless_formats(tmp_path: Path, ending: str) -> None:
    Image.fromarray(COLOR).save(tmp_path / f"a.{ending}")
    assert np.array_equal(pixels(tmp_path / f"a.{ending}"), COLOR)


def test_webp_is_exact_when_lossless(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(pixels(tmp_path / "a.webp"), COLOR)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(GREY > 127).save(tmp_path / "bit.png")
    assert np.array_equal(pixels(tmp_path / "grey.png"), grey_to_rgb(GREY))
    assert np.array_equal(pixels(tmp_path / "bit.png"), grey_to_rgb(np.where(GREY > 127, 255, 0)))


def test_alpha_is_composed_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLOR, ALPHA])).save(tmp_path / "rgba.png")
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]).save(tmp_path / "la.png")
    assert np.abs(pixels(tmp_path / "rgba.png") - on_white(COLOR, ALPHA)).max() <= 0.51
    assert np.abs(pixels(tmp_path / "la.png") - on_white(grey_to_rgb(GREY), ALPHA)).max() <= 0.51


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palettes_with_and_without_transparency(tmp_path: Path, ending: str) -> None:
    image, colors = palette_image()
    image.save(tmp_path / f"opaque.{ending}")
    image.save(tmp_path / f"clear.{ending}", transparency=2)
    assert np.array_equal(pixels(tmp_path / f"opaque.{ending}"), colors)
    expected = np.where((GREY % 4 == 2)[..., None], 255, colors)
    assert np.array_equal(pixels(tmp_path / f"clear.{ending}"), expected)


def test_grey_and_colour_keys_of_png_are_transparent(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=int(GREY[3, 5]))
    Image.fromarray(COLOR).save(tmp_path / "rgb.png", transparency=tuple(COLOR[3, 5].tolist()))
    assert (pixels(tmp_path / "grey.png")[3, 5] == 255).all()
    assert (pixels(tmp_path / "rgb.png")[3, 5] == 255).all()
    assert np.array_equal(pixels(tmp_path / "rgb.png")[0], COLOR[0])


def test_cmyk_is_inks_subtracted_from_white(tmp_path: Path) -> None:
    inks = RANDOM.integers(0, 256, (12, 16, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (16, 12), inks.tobytes()).save(tmp_path / "a.tif")
    share = 1 - inks.astype(float) / 255
    expected = 255 * share[..., :3] * share[..., 3:]
    assert np.abs(pixels(tmp_path / "a.tif") - expected).max() <= 1.01


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100, **options)
    return file.getvalue()


def without_adobe_mark(whole: bytes) -> bytes:
    start = whole.index(b"\xff\xee")
    return whole[:start] + whole[start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big") :]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (10, 200, 90, 30), (0, 0, 0, 255)])
def test_cmyk_jpeg_with_and_without_adobe_s_mark(tmp_path: Path, ink: tuple[int, ...]) -> None:
    """255 is no ink in either: what removes metadata removes the mark too, and leaves the pixels."""
    marked = jpeg(Image.new("CMYK", (16, 12), ink))
    (tmp_path / "marked.jpg").write_bytes(marked)
    (tmp_path / "plain.jpg").write_bytes(without_adobe_mark(marked))
    share = np.array(ink) / 255
    expected = 255 * (1 - share[:3]) * (1 - share[3])
    assert np.abs(pixels(tmp_path / "marked.jpg") - expected).max() <= 2
    assert np.array_equal(pixels(tmp_path / "plain.jpg"), pixels(tmp_path / "marked.jpg"))


def test_16_bit_grey_keeps_what_is_declared_transparent(tmp_path: Path) -> None:
    values = np.linspace(0, 40_000, 192).reshape(12, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=int(values[3, 5]))
    found = pixels(tmp_path / "a.png")
    assert (found[3, 5] == 255).all()
    assert np.abs(found[4:] - grey_to_rgb(values / 257)[4:]).max() <= 0.51


def test_palette_entries_of_many_opacities(tmp_path: Path) -> None:
    image, colors = palette_image()
    image.save(tmp_path / "a.png", transparency=bytes([0, 85, 170, 255]))
    opacity = np.array([0, 85, 170, 255], np.uint8)[GREY % 4]
    assert np.abs(pixels(tmp_path / "a.png") - on_white(colors, opacity)).max() <= 0.51


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [b"", b"junk", b"\0" * 128, b"\xff" * 70_000], ids=len)
def test_colour_profiles_of_any_kind_change_nothing(tmp_path: Path, form: str, profile: bytes) -> None:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(COLOR).save(tmp_path / "plain", form, **options)
    Image.fromarray(COLOR).save(tmp_path / "odd", form, icc_profile=profile, **options)
    assert np.array_equal(pixels(tmp_path / "odd"), pixels(tmp_path / "plain"))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def profile_chunk(name: bytes, method: int, body: bytes) -> bytes:
    return png_chunk(b"iCCP", name + bytes([0, method]) + body)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (profile_chunk(b"x", 0, b"no zlib stream"), ""),  # passed over
        (profile_chunk(b"x", 7, zlib.compress(b"x")), "damaged header"),
        (profile_chunk(b"x", 0, zlib.compress(bytes(2**21))), "(?i)too large"),
        (png_chunk(b"iCCP", b""), "damaged header"),
        (png_chunk(b"cHRM", b"\1"), "cHRM|damaged header"),
    ],
    ids=["stream", "method", "bomb", "empty", "primaries"],
)
def test_broken_profiles_of_png_are_passed_over_or_say_why(tmp_path: Path, chunk: bytes, reason: str) -> None:
    whole = encoded()
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    if not reason:
        assert read_image(str(tmp_path / "a.png")).size == (64, 64)
        return
    with pytest.raises(UnreadableImage, match=reason):
        read_image(str(tmp_path / "a.png"))


def test_lab_is_converted(tmp_path: Path) -> None:
    """L* = 128 / 255 · 100 without colour is the sRGB grey 119 (CIE 1976: Y = ((L* + 16) / 116)³)."""
    Image.new("LAB", (16, 12), (128, 128, 128)).save(tmp_path / "a.tif")
    assert np.abs(pixels(tmp_path / "a.tif") - 119).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, ending: str) -> None:
    values = np.linspace(0, 65535, 192).reshape(12, 16).astype(np.uint16)
    if ending == "pgm":  # which early versions of Pillow read and do not write
        (tmp_path / "a.pgm").write_bytes(b"P5 16 12 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert np.abs(pixels(tmp_path / f"a.{ending}") - grey_to_rgb(values / 257)).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.linspace(0, 65535, 192), 0, 65535),  # the customary range of integers
        (np.linspace(0, 4095, 192), 0, 65535),
        (np.linspace(-1000, 90_000, 192), -1000, 90_000),  # its own
        (np.full(192, 70_000), 70_000, 70_001),  # constant: black
    ],
)
def test_32_bit_integers_are_scaled_by_range(
    tmp_path: Path, values: NDArray[np.float64], low: float, high: float
) -> None:
    whole = values.reshape(12, 16).astype(np.int32)
    Image.fromarray(whole).save(tmp_path / "a.tif")
    expected = 255 * (whole - low) / (high - low)
    assert np.abs(pixels(tmp_path / "a.tif") - grey_to_rgb(expected)).max() <= 0.51


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (0.0, 255.0)])
def test_floats_are_scaled_by_range(tmp_path: Path, low: float, high: float) -> None:
    values = np.linspace(low, high, 192, dtype=np.float32).reshape(12, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = 255 * (values - low) / (high - low)
    assert np.abs(pixels(tmp_path / "a.tif") - grey_to_rgb(expected)).max() <= 0.51


def test_floats_that_are_no_numbers_become_black(tmp_path: Path) -> None:
    values = np.full((12, 16), 0.5, dtype=np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = pixels(tmp_path / "a.tif")
    assert (found[0, :3] == 0).all()
    assert (found[1:] == 128).all()


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "mpo"])
def test_the_first_frame_counts(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    lossless: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **lossless)
    assert np.abs(pixels(tmp_path / f"a.{ending}") - [255, 0, 0]).max() <= 1


# Stored pixels → upright picture (EXIF 2.32, tag 274), as array operations.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(COLOR).save(tmp_path / f"a.{ending}", exif=exif, **lossless)
    assert np.array_equal(pixels(tmp_path / f"a.{ending}"), UPRIGHT[orientation](COLOR))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_tiff_with_wide_numbers(
    tmp_path: Path, orientation: int, kind: type, compression: str | None
) -> None:
    """Pillow gives the size of such a file as stored or as turned, by its version; here it is not square."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif", exif=exif, compression=compression)
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "plain.tif")
    expected = UPRIGHT[orientation](pixels(tmp_path / "plain.tif"))
    assert np.array_equal(pixels(tmp_path / "a.tif"), expected)
    assert image_size(str(tmp_path / "a.tif")) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg(tmp_path: Path, orientation: int) -> None:
    """Blocks of eight pixels and one grey each, which JPEG at its best keeps to a level."""
    blocks = np.kron(GREY[:2, :3], np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(blocks).save(tmp_path / "a.jpg", exif=exif, quality=100)
    expected = UPRIGHT[orientation](grey_to_rgb(blocks).astype(np.int64))
    found = pixels(tmp_path / "a.jpg")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40],
)
def test_broken_exif_does_not_lose_the_image(tmp_path: Path, exif: bytes) -> None:
    plain = Image.fromarray(GREY)
    plain.save(tmp_path / "broken.jpg", exif=exif, quality=100)
    plain.save(tmp_path / "plain.jpg", quality=100)
    assert np.array_equal(pixels(tmp_path / "broken.jpg"), pixels(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), COLOR)


def test_a_wrong_ending_is_opened_by_content(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "a.jpg"), COLOR)


def encoded(form: str = "PNG", size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format=form)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no data."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb() -> bytes:
    """A PNG whose compressed comment unfolds to 10 MB; Pillow answers with ValueError."""
    part = b"zTXt" + b"Comment\0\0" + zlib.compress(b"x" * 10**7)
    chunk = struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    whole = encoded()
    return whole[:33] + chunk + whole[33:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"%PDF-1.4", "not an image"),
        (encoded("JPEG")[:1500], "truncated"),
        (encoded("PNG")[:5000], "truncated"),
        (encoded("PNG").replace(b"IDAT", b"IDAX"), ""),
        (png_header(10_000, 10_000), "10000x10000 pixels, more than 64 megapixels"),
        (png_header(20_000, 20_000), "more than 64 megapixels"),
        (text_bomb(), ""),
        (encoded(size=(7, 30)), "7x30 pixels, a side under 8"),
        (encoded(size=(1, 1)), "1x1 pixels, a side under 8"),
        (encoded(size=(1, 20_000)), "1x20000 pixels, a side under 8"),
        (encoded(size=(20_000, 1)), "20000x1 pixels, a side under 8"),
        (b"%!PS-Adobe-3.0\nshowpage\n", "not an image"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "not an image"),
    ],
    ids=[
        "zero",
        "html",
        "eps",
        "pdf",
        "jpeg",
        "png",
        "chunk",
        "100MP",
        "400MP",
        "text",
        "tiny",
        "1x1",
        "1x20000",
        "20000x1",
        "ps",
        "eps-binary",
    ],
)
def test_what_can_not_be_read_says_why_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        read_image(str(path))
    assert caught.value.path == str(path)
    assert reason in caught.value.reason
    assert caught.value.reason
    assert caught.value.reason.isprintable()


def test_files_that_are_gone_or_are_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (("gone.jpg", "No such file or directory"), ("folder.jpg", "Is a directory")):
        with pytest.raises(UnreadableImage) as caught:
            read_image(str(tmp_path / name))
        assert caught.value.reason == reason


def test_eight_pixels_and_a_camera_of_64_megapixels_are_allowed(tmp_path: Path) -> None:
    Image.new("L", (8, 2000)).save(tmp_path / "narrow.png")
    assert read_image(str(tmp_path / "narrow.png")).size == (8, 2000)
    (tmp_path / "large.png").write_bytes(png_header(9248, 6936))
    assert image_size(str(tmp_path / "large.png")) == (9248, 6936)


def gif_header(width: int, height: int) -> bytes:
    """A GIF that claims a size and has one frame of it."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\2\2\x44\1\0;"


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF that claims a size, RGB in one strip that is not there."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def text_bombs(count: int) -> bytes:
    """A PNG with comments just under the limit of one, unfolding to `count` megabytes."""
    whole, comment = encoded(), zlib.compress(b"x" * 1_000_000)
    chunks = [png_chunk(b"zTXt", b"%d\0\0" % number + comment) for number in range(count)]
    return whole[:33] + b"".join(chunks) + whole[33:]


BOMBS = {
    "png-100MP": lambda: png_header(10_000, 10_000),
    "png-400MP": lambda: png_header(20_000, 20_000),
    "png-claims-2e18": lambda: png_header(2**31 - 1, 2**31 - 1),
    "gif-400MP": lambda: gif_header(20_000, 20_000),
    "tiff-400MP": lambda: tiff_header(20_000, 20_000),
    "bmp-100MP": lambda: encoded("BMP")[:18] + struct.pack("<ii", 10_000, 10_000) + encoded("BMP")[26:],
    "ppm-400MP": lambda: b"P6 20000 20000 255\n",
    "text": text_bomb,
    "texts": lambda: text_bombs(500),
}
MEASURE = """
import resource, sys
from sslkit.data.images.decode import (UnreadableImage, read_image)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1])
except UnreadableImage as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error.reason)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux alone")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_with_little_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "bomb").write_bytes(BOMBS[name]())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    line = [sys.executable, "-c", MEASURE, str(tmp_path / "bomb")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "the bomb was read as an image"
    megabytes, _, reason = done.stdout.partition(" ")
    assert int(megabytes) < 300
    assert "text" in name or "megapixels" in reason


def test_long_images_are_scaled_as_one_piece(tmp_path: Path) -> None:
    """2,000 rows are scaled in several strips, by the range of all of them."""
    values = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    low, high = values.min(), values.max()
    expected = (values.astype(np.float64) - low) * (255 / (float(high) - float(low)))
    assert np.abs(pixels(tmp_path / "a.tif") - grey_to_rgb(expected)).max() <= 0.51


def test_mutations_of_each_format_leave_the_process_alive() -> None:
    """The script that anyone can run, as anyone runs it; it fails on other errors, deaths and slow files."""
    script = Path(__file__).parents[1] / "faults" / "images.py"
    line = [sys.executable, str(script), "--count", "300", "--seed", "5"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [text.split() for text in done.stdout.splitlines() if " read " in text]
    assert [words[0] for words in lines] == ["JPEG", "PNG", "WEBP", "GIF", "TIFF"]
    for words in lines:  # some of both, or the damage would be too little or too much to tell anything
        assert int(words[1]) > 10
        assert int(words[3]) > 10


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_random_damage_raises_nothing_else(tmp_path: Path, form: str) -> None:
    original, path, chance = encoded(form, (24, 16)), tmp_path / "a", random.Random(0)
    for _ in range(150):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 12)):
            # Mostly headers, where the parsers are.
            reach = len(damaged) if chance.random() < 0.3 else min(len(damaged), 120)
            damaged[chance.randrange(reach)] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randint(1, len(damaged))] if chance.random() < 0.2 else damaged)
        with contextlib.suppress(UnreadableImage):
            assert read_image(str(path)).mode == "RGB"


def test_unreadable_image_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "truncated")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "truncated", "a.jpg: truncated")


def test_native_side_is_the_median_short_side(tmp_path: Path) -> None:
    for i, size in enumerate([(100, 30), (20, 90), (64, 50)]):
        Image.new("L", size).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").touch()
    assert open_images([str(tmp_path)]).native_side() == 30
    assert open_images(["fractal:100"]).native_side() == 128


def test_native_side_of_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    with pytest.raises(UserError, match="none of 1 sampled images can be read"):
        open_images([str(tmp_path)]).native_side()


def test_native_side_samples_the_whole_range(tmp_path: Path) -> None:
    for side in (10, 20):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    small, large = str(tmp_path / "10.png"), str(tmp_path / "20.png")
    assert ImageSet((small,) * 40 + (large,) * 60, "x").native_side(sample=5) == 20
    assert ImageSet((small,) * 60 + (large,) * 40, "x").native_side(sample=5) == 10
