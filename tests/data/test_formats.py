"""Which files are images: by their ending, by how they begin, and with the plug-ins that are there."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sslkit.core.errors import UserError
from sslkit.data.images import formats
from sslkit.data.images.decode import UnreadableImage, image_size, read_image
from sslkit.data.sources.image_set import open_images


def photo(width: int = 64, height: int = 48) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    photo().save(file, kind, **options)
    return file.getvalue()


def has(kind: str) -> bool:
    Image.init()
    return kind in Image.SAVE and (kind != "AVIF" or bool(features.check("avif")))


KINDS = [
    ("AVIF", "avif", {}), ("JPEG2000", "jp2", {}), ("JPEG2000", "j2k", {"no_jp2": True}), ("TGA", "tga", {}),
    ("TGA", "vda", {"compression": "tga_rle"}), ("ICO", "ico", {"sizes": [(64, 48)]}), ("PCX", "pcx", {}),
    ("QOI", "qoi", {}), ("SGI", "sgi", {}), ("DDS", "dds", {}), ("PPM", "ppm", {}), ("TIFF", "tif",
    {"big_tiff": True}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "ending", "options"), KINDS, ids=[ending for _, ending, _ in KINDS])
def test_what_pillow_decodes_is_an_image_whatever_it_is_called(
    kind: str, ending: str, options: dict[str, object], tmp_path: Path
) -> None:
    if not has(kind):
        pytest.skip(f"this Pillow does not write {kind}")
    content = saved(kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(content), formats=[kind]).convert("RGB"))
    (tmp_path / f"A.{ending.upper()}").write_bytes(content)
    (tmp_path / "notes.txt").write_bytes(content)
    found = open_images([str(tmp_path)])
    assert found.paths == [str(tmp_path / f"A.{ending.upper()}")]
    assert found.left_out.passed == ((".txt", 1),)
    for name in (f"A.{ending.upper()}", "notes.txt"):  # its content tells what a file is
        np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / name))), expected)
        assert image_size(str(tmp_path / name)) == expected.shape[1::-1]


def test_a_file_without_an_ending_is_looked_at(tmp_path: Path) -> None:
    kinds = {"JPEG": {}, "PNG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "JPEG2000": {}}
    for kind, options in kinds.items():
        (tmp_path / kind).write_bytes(saved(kind, **options))
    for name in ("photo.jpg_large", "scan.001", "IMG 2024.12.24", "a.jpg?w=100", "dot."):
        (tmp_path / name).write_bytes(saved("JPEG"))
    others = {
        "README": b"BM is a prefix",
        "LICENSE": b"P1 of the text",
        "empty": b"",
        "film": b"\0\0\0\x18ftypisom",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    found = open_images([str(tmp_path)])
    assert len(found) == len(kinds) + 5
    assert found.left_out.passed == (("", len(others)),)
    assert found.left_out.kinds == "4 without ending"


@pytest.mark.parametrize(
    "ending", ["eps", "ps", "pdf", "wmf", "mpg", "h5", "grib", "bufr", "svg", "mp4", "fli", "pcd"]
)
def test_documents_films_and_vectors_are_none(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").write_bytes(saved("PNG"))
    with pytest.raises(UserError, match=f"no images found among 1 file: 1 .{ending}"):
        open_images([str(tmp_path)])


def test_noise_is_no_targa(tmp_path: Path) -> None:
    """TGA has no signature: of what Pillow would take for one, noise and text must not come out as
    pictures.
    """
    draw, taken = random.Random(0), 0
    file = tmp_path / "a.jpg"
    for _ in range(300):
        head = bytes([draw.choice((0, 0, 9)), draw.choice((0, 1)), draw.choice((1, 2, 3, 10))]) + bytes(5)
        noise = head + draw.randbytes(draw.choice((40, 4000)))
        try:
            Image.open(io.BytesIO(noise), formats=["TGA"])
            taken += 1
        except Image.DecompressionBombError:
            taken += 1
        except Image.UnidentifiedImageError:
            pass
        file.write_bytes(noise)
        with pytest.raises(UnreadableImage):
            read_image(str(file))
    assert taken  # Pillow alone would have begun to read some


def test_without_the_plug_in_there_is_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    code = (
        "import sys; sys.modules['pillow_heif'] = sys.modules['pillow_jxl'] = None\n"
        "from sslkit.data.images import formats; formats._installed = lambda module: False\n"
        "from sslkit.data.sources.image_set import open_images\n"
        "images = open_images(sys.argv[1:]); print(*images.left_out.lines(), sep='\\n')\n"
        "try: images.read(0)\nexcept Exception as problem: print(problem.reason)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == [
        "2 files were passed over: 1 .heic, 1 .jxl "
        "(pip install 'sslkit[heif]' reads .heic, pip install 'sslkit[jxl]' reads .jxl)",
        "HEIC: pip install 'sslkit[heif]' reads it",
    ]


@pytest.mark.parametrize(
    ("module", "kind", "ending"), [("pillow_heif", "HEIF", "heic"), ("pillow_jxl", "JXL", "jxl")]
)
def test_with_the_plug_in_it_is_read_and_upright(module: str, kind: str, ending: str, tmp_path: Path) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    assert formats.is_image(f".{ending}".encode())
    photo().save(tmp_path / f"a.{ending}", quality=95)
    for name in ("plain", "b.jpg"):
        (tmp_path / name).write_bytes((tmp_path / f"a.{ending}").read_bytes())
    found = open_images([str(tmp_path)])
    assert len(found) == 3
    for index in range(3):
        difference = np.asarray(found.read(index), np.int16) - np.asarray(photo())
        assert abs(difference).mean() < 8
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {"exif": turned.tobytes()}
    if kind == "JXL":  # made of a JPEG, it goes by the JPEG's EXIF
        photo().save(tmp_path / "a.jpg", **options)
        Image.open(tmp_path / "a.jpg").save(tmp_path / "c.jxl", lossless_jpeg=True)
    else:
        photo().save(tmp_path / "c.heic", **options)
    assert (
        image_size(str(tmp_path / f"c.{ending}"))
        == read_image(str(tmp_path / f"c.{ending}")).size
        == (48, 64)
    )


def test_endings() -> None:
    known = {"A.JPG": ".jpg", "a.3fr": ".3fr", "a.tar.gz": ".gz", "b.7z": ".7z"}
    none = ("a", "a.", ".jpg", "a.2024", "a.jpg_large", "a.jpg~", "a.b c", "a.verylongword")
    assert {
        name: formats.ending(name.encode()).decode() for name in (*known, *none)
    } == known | dict.fromkeys(none, "")
