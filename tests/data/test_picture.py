"""Crops of a picture against Pillow's, and what decoding a JPEG at a half, a quarter or an eighth changes."""

from __future__ import annotations

import io
import statistics
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.data.images import decode, turbo
from sslkit.data.images.decode import UnreadableImage, image_size, opened, read_image
from sslkit.data.images.picture import Box, Cut, Picture, corners, reduction, resized
from sslkit.data.sources.image_set import open_images

PHOTOS = sorted((Path(__file__).parents[3] / "data" / "clothing224").rglob("*.jpg"))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene(width: int, height: int) -> Image.Image:
    """Smooth shades with edges, as photographs have them; no corner like another."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x * y), (np.hypot(x - 0.3, y - 0.2) < 0.2) * 1.0]
    return Image.fromarray(np.clip(127 + 90 * np.dstack(waves), 0, 255).astype(np.uint8))


def pillows(image: Image.Image, box: Box, size: int) -> Tensor:
    left, top, width, height = box
    crop = image.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(crop.resize((size, size), Image.Resampling.BICUBIC))).permute(2, 0, 1)


def apart(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


def jpeg(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, "JPEG", **{"quality": 90, **options})
    return str(path)


@pytest.fixture(params=["with simplejpeg", "Pillow alone"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow alone":
        monkeypatch.setattr(turbo, "library", None)
    elif turbo.library is None:
        pytest.skip("the extra `fast` is not installed")


@pytest.mark.parametrize("size", [8, 32, 96, 224])
@pytest.mark.parametrize("make", [noise, scene])
def test_crops_are_pillows_within_two_levels(make: Any, size: int) -> None:
    """From a sixth of the size to 28 times it. The noise is too weak to be clipped between the two passes,
    which torch may run in the other order than Pillow."""
    image = make(260, 190).point(lambda level: 80 + 3 * level // 8)
    boxes = [(0, 0, 260, 190), (3, 5, 33, 41), (100, 20, 60, 160), (10, 0, 64, 190), (252, 182, 8, 8)]
    views = Picture(image).crops([Cut(box, size) for box in boxes])
    for box, view in zip(boxes, views, strict=True):
        assert view.dtype == torch.uint8
        assert view.is_contiguous()
        assert apart(view, pillows(image, box, size)) <= 2


@pytest.mark.skipif(not PHOTOS, reason="no photographs at hand")
def test_crops_of_photographs_are_pillows_within_two_levels() -> None:
    """But for a few values in a million, where an overshoot is clipped between the passes."""
    random, beyond, count, farthest = np.random.default_rng(0), 0, 0, 0
    for path in PHOTOS[::20]:
        image = read_image(str(path))
        for size in (32, 64, 96, 224):
            cut = RandomResizedCrop(size).draw(*image.size, random)
            (view,) = Picture(image).crops([cut._replace(mirrored=False)])
            difference = (view.int() - pillows(image, cut.box, size).int()).abs()
            beyond, count = beyond + int((difference > 2).sum()), count + difference.numel()
            farthest = max(farthest, int(difference.max()))
    assert beyond < 5e-5 * count
    assert farthest < 25


def test_a_crop_of_its_own_size_copies_the_pixels() -> None:
    image = noise(40, 30)
    expected = np.asarray(image)[5:21, 7:23].transpose(2, 0, 1)
    assert np.array_equal(Picture(image).crops([Cut((7, 5, 16, 16), 16)])[0], expected)
    mirrored = Picture(image).crops([Cut((7, 5, 16, 16), 16, True)])[0]
    assert np.array_equal(mirrored, expected[..., ::-1])
    assert mirrored.is_contiguous()


def test_pixels_in_memory_are_cut_as_images_are() -> None:
    image = noise(70, 50)
    cuts = [Cut((3, 4, 50, 40), 16), Cut((0, 0, 70, 50), 24, True)]
    for one, other in zip(
        Picture(image).crops(cuts), Picture(np.asarray(image).copy()).crops(cuts), strict=True
    ):
        assert torch.equal(one, other)
    assert np.array_equal(Picture(np.asarray(image)).rgb(), image)


def test_chips_that_take_plane_by_plane_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image, cuts = noise(70, 50), [Cut((3, 4, 50, 40), 16), Cut((0, 0, 70, 50), 24, True)]
    for source in (image, np.asarray(image).copy()):
        expected = Picture(source).crops(cuts)
        with monkeypatch.context() as other:
            other.setattr("sslkit.data.images.picture._VECTORS", False)
            for one, two in zip(Picture(source).crops(cuts), expected, strict=True):
                assert torch.equal(one, two)
                assert one.is_contiguous()


def test_no_crops_need_no_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(Path(jpeg(tmp_path / "b.jpg", noise(64, 64))).read_bytes()[:900])
    with opened(str(tmp_path / "a.jpg")) as picture:
        assert (picture.width, picture.height) == (64, 64)
        assert picture.crops([]) == []
        with pytest.raises(UnreadableImage, match="truncated"):
            picture.crops([Cut((0, 0, 64, 64), 32)])


# ------------------------------------------------------------------------------------------------- reduced


SIDES = st.integers(8, 5000)


@given(SIDES, SIDES, st.integers(8, 600), st.randoms())
def test_a_reduced_box_lies_inside_and_never_has_to_grow(
    width: int, height: int, size: int, random: Any
) -> None:
    """Unless it had to before: then the factor is 1, and the box is itself."""
    box_width, box_height = random.randint(1, width), random.randint(1, height)
    box = (
        random.randint(0, width - box_width),
        random.randint(0, height - box_height),
        box_width,
        box_height,
    )
    factor = reduction([Cut(box, size)])
    left, top, right, bottom = corners(box, factor)
    assert left >= 0
    assert top >= 0
    assert right <= -(-width // factor)
    assert bottom <= -(-height // factor)
    assert min(right - left, bottom - top) >= min(size, box_width, box_height)
    assert abs(left - box[0] / factor) <= 0.5
    assert abs(bottom - (box[1] + box_height) / factor) <= 0.5
    if factor == 1:
        assert (left, top, right - left, bottom - top) == box
    if factor < 8:  # no larger one would do
        assert min(box_width, box_height) < 2 * factor * size


def test_the_smallest_room_decides() -> None:
    large, small = Cut((0, 0, 900, 900), 100), Cut((0, 0, 250, 900), 100)
    assert (reduction([large]), reduction([small]), reduction([large, small])) == (8, 2, 2)
    assert reduction([large, Cut((0, 0, 50, 50), 100)]) == 1


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}], ids=str
)
@pytest.mark.parametrize("grey", [False, True])
def test_a_reduced_crop_shows_what_the_whole_one_shows(tmp_path: Path, options: Any, grey: bool) -> None:
    image = scene(1001, 707).convert("L" if grey else "RGB")
    path = jpeg(tmp_path / "a.jpg", image, **({} if grey else options))
    whole = Picture(read_image(path))
    means = []
    for size, factor in ((350, 2), (150, 4), (80, 8), (40, 8)):
        cuts = [Cut((101, 3, 900, 703), size), Cut((0, 0, 1001, 707), size, True)]
        assert reduction(cuts) == factor
        with opened(path) as picture:
            reduced = picture.crops(cuts)
            assert picture._ready[1] == factor  # type: ignore[attr-defined]
        for one, other in zip(reduced, whole.crops(cuts), strict=True):
            means.append(float((one.float() - other.float()).abs().mean()))
    assert max(means) < 1.5


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_reduced_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = jpeg(tmp_path / "a.jpg", scene(808, 602), exif=exif)
    whole = read_image(path)
    assert whole.size == image_size(path)
    left, top, width, height = 60, 30, 500, 480
    with opened(path) as picture:
        assert (picture.width, picture.height) == whole.size
        (view,) = picture.crops([Cut((left, top, width, height), 120)])
    exact = resized(np.asarray(whole)[top : top + height, left : left + width].copy(), 120)
    assert (view.float() - exact.float()).abs().mean() < 1.5


@pytest.mark.usefixtures("decoder")
def test_two_views_are_those_of_two_reads(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg", scene(1000, 750))
    crop = RandomResizedCrop(64, scale=(0.3, 0.5))  # always by 4 here
    with opened(path) as picture:
        both = Views(first=crop, second=crop)(picture, np.random.default_rng(0))
    random = np.random.default_rng(0)
    for name in both:
        with opened(path) as picture:
            assert torch.equal(both[name], crop(picture, random))


@pytest.mark.usefixtures("decoder")
def test_a_picture_is_decoded_again_only_when_it_is_wanted_finer(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg", scene(640, 640))
    small, large = [Cut((0, 0, 640, 640), 80)], [Cut((0, 0, 640, 640), 320)]
    with opened(path) as picture:
        first = picture.crops(small)[0]
        assert np.array_equal(picture.rgb(), read_image(path))
        assert torch.equal(picture.crops(large)[0], Picture(read_image(path)).crops(large)[0])
    with opened(path) as picture:
        assert torch.equal(picture.crops(small)[0], first)


def test_only_jpeg_is_reduced(tmp_path: Path) -> None:
    image = scene(640, 640)
    cmyk = jpeg(tmp_path / "cmyk.jpg", image.convert("CMYK"))
    image.save(tmp_path / "a.png")
    for path in (cmyk, str(tmp_path / "a.png")):
        with opened(path) as picture:
            view = picture.crops([Cut((0, 0, 640, 640), 64)])[0]
        assert torch.equal(view, resized(np.array(read_image(path)), 64))


@pytest.mark.skipif(turbo.library is None, reason="the extra `fast` is not installed")
@pytest.mark.parametrize("size", [(64, 48), (65, 47), (333, 201)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"keep_rgb": True}],
    ids=str,
)
def test_simplejpeg_gives_pillows_pixels(tmp_path: Path, size: tuple[int, int], options: Any) -> None:
    for mode in ("RGB", "L"):
        path = jpeg(tmp_path / "a.jpg", noise(*size).convert(mode), **({} if mode == "L" else options))
        for factor in (1, 2, 4, 8):
            with Image.open(path) as image:
                image.draft(None, (image.width // factor, image.height // factor))
                found = turbo.decode(Path(path).read_bytes(), *image.size)
                assert found is not None
                assert np.array_equal(found, image.convert("RGB"))


@pytest.mark.skipif(turbo.library is None, reason="the extra `fast` is not installed")
def test_what_simplejpeg_refuses_is_pillows_to_judge(tmp_path: Path) -> None:
    """Junk after the last pixels is forgiven, pixels that are missing are not, with and without it."""
    path = Path(jpeg(tmp_path / "a.jpg", noise(64, 64)))
    whole, content = read_image(str(path)), path.read_bytes()
    path.write_bytes(content[:-2] + bytes(50) + content[-2:])
    assert turbo.decode(path.read_bytes(), 64, 64) is None or np.array_equal(read_image(str(path)), whole)
    path.write_bytes(content[: len(content) // 2])
    assert turbo.decode(path.read_bytes(), 64, 64) is None
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(str(path))
    assert turbo.decode(b"", 8, 8) is None


# ------------------------------------------------------------------------------------- opened, whole or part


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "PPM"])
def test_a_part_of_a_file_is_an_image_of_its_own(tmp_path: Path, form: str) -> None:
    noise(40, 30).save(tmp_path / "a", form)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("first", "second"):
            shard.add(tmp_path / "a", name)
    with tarfile.open(tmp_path / "shard.tar") as shard:
        place = shard.getmembers()[1]
    shard_path, part = str(tmp_path / "shard.tar"), (place.offset_data, place.size)
    assert image_size(shard_path, part) == (40, 30)
    assert np.array_equal(read_image(shard_path, part), read_image(str(tmp_path / "a")))
    with opened(shard_path, part) as picture:
        assert np.array_equal(picture.rgb(), read_image(str(tmp_path / "a")))


@pytest.mark.parametrize("part", [(-1, 10), (0, 10**15), (10**15, 10), (0, 0), (5, 100)])
def test_parts_that_hold_no_image_are_refused(tmp_path: Path, part: tuple[int, int]) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage):
            read(str(tmp_path / "a.png"), part)


def test_large_files_are_read_as_the_decoder_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jpeg(tmp_path / "a.jpg", scene(640, 480))
    cuts = [Cut((0, 0, 640, 480), 100)]
    with opened(path) as picture:
        expected = picture.crops(cuts)[0]
    monkeypatch.setattr(decode, "_AT_ONCE", 100)
    with opened(path) as picture:
        assert torch.equal(picture.crops(cuts)[0], expected)
        assert np.array_equal(picture.rgb(), read_image(path))


def test_a_fault_of_the_reader_is_not_one_of_the_file(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg", noise(40, 30))
    with pytest.raises(ZeroDivisionError), opened(path) as picture:
        picture.width // 0


def test_a_header_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "to_rgb", lambda image: image.crop((0, 0, 20, 30)).convert("RGB"))
    with pytest.raises(UnreadableImage, match="20x30 pixels, its header says otherwise"):
        read_image(str(tmp_path / "a.png"))


def test_fractals_are_pictures_too() -> None:
    images = open_images(["fractal:2"])
    with images.opened(1) as picture:
        assert (picture.width, picture.height) == images.size(1)
        assert np.array_equal(picture.rgb(), images.read(1))


@pytest.mark.skipif(not PHOTOS, reason="no photographs at hand")
def test_reducing_changes_photographs_little(tmp_path: Path) -> None:
    """Photographs of 3 megapixels, made from small ones."""
    means = []
    for path in PHOTOS[:3]:
        image = read_image(str(path))
        file = io.BytesIO()
        image.resize((1500, 1500 * image.height // image.width), Image.Resampling.BICUBIC).save(file, "JPEG")
        (tmp_path / "a.jpg").write_bytes(file.getvalue())
        with opened(str(tmp_path / "a.jpg")) as picture:
            cuts = [Cut((40, 20, 1200, 1200), 224)]
            view = picture.crops(cuts)[0]
            means.append(float((view.float() - Picture(picture.rgb()).crops(cuts)[0].float()).abs().mean()))
    assert statistics.mean(means) < 1
