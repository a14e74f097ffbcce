"""Packed images are the images they were made of: same order, same pixels, same labels, same batches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_photos
from PIL import Image
from safetensors.numpy import load_file, save_file

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.core.errors import UserError
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.packs import reader
from sslkit.data.packs.members import Settings
from sslkit.data.packs.writer import pack, parse_bytes
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.labels import open_labelled

SMALL = Settings(shard_size=10**4)
TRANSFORM = Views(image=RandomResizedCrop(16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes of photographs of several formats, one of them damaged."""
    for name in ("cat", "dog"):
        write_photos(tmp_path / "data" / name, 8)
    with Image.open(tmp_path / "data/cat/03.png") as image:
        image.save(tmp_path / "data/cat/JPEG.wrong", "JPEG")
        image.save(tmp_path / "data/dog/é.webp", "WEBP", lossless=True)
    (tmp_path / "data/cat/JPEG.wrong").rename(tmp_path / "data/cat/jpeg.png")
    (tmp_path / "data/dog/05.png").write_bytes(b"damaged")
    return tmp_path / "data"


def packed_images(folder: Path, out: Path, settings: Settings = SMALL, **options: Any) -> ImageSet:
    pack([str(folder)], out, settings, **options)
    return open_images([str(out)])


def pixels(images: ImageSet, index: int) -> Any:
    try:
        return np.asarray(images.read(index))
    except UnreadableImage as problem:
        return problem.path == images.paths[index], problem.reason


def test_the_same_images_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    before, after = open_images([str(folder)]), packed_images(folder, tmp_path / "out")
    assert len(after) == len(before) == 18
    assert len(list((tmp_path / "out").glob("*.tar"))) > 2
    assert [reader.original(name) for name in after.paths] == [
        os.path.relpath(path, folder) for path in before.paths
    ]
    assert list(after.paths) == sorted(after.paths)
    for index in range(len(before)):
        assert np.array_equal(pixels(before, index), pixels(after, index))
        if reader.original(after.paths[index]) != "dog/05.png":  # the damaged one
            assert after.size(index) == before.size(index)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.sizes, before.sizes)


def batches(images: ImageSet, start: int = 0, workers: int = 0) -> list[dict[str, Any]]:
    plan = {"batch_size": 4, "seed": 3, "start_step": start, "steps": 8, "steps_per_epoch": 4}
    return list(pretraining_loader(images, TRANSFORM, workers=workers, **plan))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_from_any_step_on(folder: Path, tmp_path: Path, workers: int) -> None:
    before, after = open_images([str(folder)]), packed_images(folder, tmp_path / "out")
    expected, found = batches(before), batches(after, 3, workers)
    assert len(found) == 5
    for one, other in zip(expected[3:], found, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["image"], other["image"])
        assert [(before.paths.index(path), reason) for path, reason in one["bad"]] == [
            (after.paths.index(path), reason) for path, reason in other["bad"]
        ]
    assert sum(len(batch["bad"]) for batch in expected)


def test_the_same_files_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    settings = Settings(size=24, shard_size=10**4)
    pack([str(folder)], tmp_path / "one", settings, workers=0)
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy/cat/02.png", (0, 0))
    pack([str(tmp_path / "copy")], tmp_path / "two", settings, workers=2)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert first == second


def test_tar_reads_it(folder: Path, tmp_path: Path) -> None:
    images = packed_images(folder, tmp_path / "out")
    originals = [Path(path).read_bytes() for path in open_images([str(folder)]).paths]
    description = json.loads((tmp_path / "out/pack.json").read_text())
    found: dict[str, bytes] = {}
    for shard in description["shards"]:
        file = tmp_path / "out" / shard["name"]
        assert file.stat().st_size == shard["bytes"] <= 2 * 10**4
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
        with tarfile.open(file) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                content = archive.extractfile(member)
                assert content
                found[member.name] = content.read()
    endings = ["png"] * 18
    endings[8], endings[17] = "jpg", "webp"
    assert [found[f"{i:09}.{ending}"] for i, ending in enumerate(endings)] == originals
    labels = [0] * 9 + [1] * 9
    assert [int(found[f"{i:09}.cls"]) for i in range(18)] == labels
    assert len(found) == 2 * len(images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_webdataset_reads_it(folder: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the dev extra has it")
    (folder / "dog/05.png").unlink()
    images = packed_images(folder, tmp_path / "out")
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    read = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png;webp", "cls")
    found = list(read)
    assert [label for _, label in found] == [0] * 9 + [1] * 8
    for index, (image, _) in enumerate(found):
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels(images, index))


def test_large_images_become_smaller_and_stay_upright(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    base = Image.effect_noise((5, 4), 60).resize((300, 200), Image.Resampling.BICUBIC).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(tmp_path / "data/a.jpg", quality=95, exif=exif)
    base.save(tmp_path / "data/b.png")
    base.resize((99, 64)).save(tmp_path / "data/c.png")
    packing = pack([str(tmp_path / "data")], tmp_path / "out", Settings(size=64), workers=0)
    assert (packing.resized, packing.count) == (2, 3)
    before, after = open_images([str(tmp_path / "data")]), open_images([str(tmp_path / "out")])
    assert [after.size(i) for i in range(3)] == [(64, 96), (96, 64), (99, 64)]
    for index in range(3):
        wanted = before.read(index).resize(after.size(index), Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(wanted, int) - pixels(after, index))
        assert difference.mean() < 1.5
        assert difference.max() <= (12 if index < 2 else 0)


def test_generated_and_packed_images_can_be_packed(tmp_path: Path) -> None:
    first = packed_images(Path("fractal:40"), tmp_path / "one")
    generated = open_images(["fractal:40"])
    assert np.array_equal(pixels(first, 17), pixels(generated, 17))
    again = packed_images(tmp_path / "one", tmp_path / "two", Settings(size=32), workers=0, limit=20)
    assert again.size(3) == (32, 32)
    few = open_images([str(tmp_path / "one")], limit=20)
    assert [*map(reader.original, again.paths)] == [*map(reader.original, few.paths)]
    for source in ("fractal:40", str(tmp_path / "one")):
        training, validation = open_labelled(source)
        assert (training.classes, len(training), len(validation)) == (("system 0000", "system 0001"), 32, 8)


@pytest.mark.parametrize("parts", [("",), ("train", "validation"), ("train", "val", "test"), ("train",)])
def test_labels_are_those_of_the_folders(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            write_photos(tmp_path / "data" / part / name, 10)
    (tmp_path / "data/loose.png").write_bytes(b"in no class")
    pack([str(tmp_path / "data")], tmp_path / "out", SMALL)
    for before, after in zip(
        open_labelled(str(tmp_path / "data")), open_labelled(str(tmp_path / "out")), strict=True
    ):
        originals = [*map(reader.original, after.paths)]
        assert originals == [os.path.relpath(path, tmp_path / "data") for path in before.paths]
        assert (after.labels, after.classes) == (before.labels, before.classes)
        assert after.fingerprint == before.fingerprint


def test_a_pack_without_classes_has_no_labels(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "inside")
    pack([str(photos)], tmp_path / "out", SMALL)
    with pytest.raises(UserError, match="no class folders"):
        open_labelled(str(tmp_path / "out"))


def test_a_pack_may_move_and_stand_beside_others(folder: Path, tmp_path: Path) -> None:
    before = packed_images(folder, tmp_path / "out")
    (tmp_path / "else:where").mkdir()
    (tmp_path / "out").rename(tmp_path / "else:where" / "moved")
    after = open_images([str(tmp_path / "else:where" / "moved")])
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(pixels(after, 4), pixels(open_images([str(folder)]), 4))
    both = open_images([str(tmp_path / "else:where" / "moved"), str(folder)])
    assert len(both) == 36
    assert both.fingerprint != before.fingerprint


# --------------------------------------------------------------------------------------- what is refused


def redescribed(out: Path, **changes: Any) -> None:
    """Change the index and let pack.json agree, as somebody would who means harm."""
    index = load_file(out / reader.INDEX)
    for key, change in changes.items():
        index[key] = change(index[key])
    save_file(index, out / reader.INDEX)
    description = json.loads((out / "pack.json").read_text())
    content = (out / reader.INDEX).read_bytes()
    description["index"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (out / "pack.json").write_text(json.dumps(description))


def at(position: int, value: int) -> Callable[[Any], Any]:
    def change(column: Any) -> Any:
        column[position] = value
        return column

    return change


HOSTILE: dict[str, dict[str, Callable[[Any], Any]]] = {
    "beyond the end": {"offset": at(-1, 10**9)},
    "before the beginning": {"offset": at(0, -512)},
    "too large": {"size": at(-1, 2**62)},
    "an overflow": {"offset": at(-1, 2**62), "size": at(-1, 2**62)},
    "negative": {"size": at(2, -1)},
    "another shard": {"shard": at(-1, 99)},
    "backwards": {"offset": at(0, 10_000)},
    "the same image twice": {"offset": lambda column: np.repeat(column[:1], len(column))},
    "other numbers": {"offset": lambda column: column.astype(np.float64)},
    "fewer": {"size": lambda column: column[:-1].copy()},
    "names beyond the end": {"name_ends": at(-1, 10**6)},
    "names backwards": {"name_ends": at(1, 10**6)},
    "an absolute name": {"names": at(0, ord("/"))},
    "a name with an end": {"names": at(1, 0)},
    "upwards": {"names": lambda column: np.frombuffer(b"../" + column.tobytes()[3:], np.uint8).copy()},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_index_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    pack([str(folder)], out, SMALL)
    redescribed(out)
    assert len(open_images([str(out)])) == 18
    redescribed(out, **HOSTILE[kind])
    with pytest.raises(UserError, match=r"out: .*index\.safetensors"):
        open_images([str(out)])


@pytest.mark.parametrize("kind", ["no shard", "short", "no index", "index", "json", "version", "empty json"])
def test_a_pack_that_is_not_whole_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    pack([str(folder)], out, SMALL)
    if kind == "no shard":
        (out / "shard-000001.tar").unlink()
    elif kind == "short":
        os.truncate(out / "shard-000000.tar", 512)
    elif kind == "no index":
        (out / reader.INDEX).unlink()
    elif kind == "index":
        content = bytearray((out / reader.INDEX).read_bytes())
        content[-1] ^= 1
        (out / reader.INDEX).write_bytes(content)
    else:
        texts = {"json": "{", "version": '{"format": "sslkit pack 2", "count": 1}', "empty json": "{}"}
        (out / "pack.json").write_text(texts[kind])
    for opened in (lambda: open_images([str(out)]), lambda: open_labelled(str(out))):
        with pytest.raises(UserError) as caught:
            opened()
        assert caught.value.message.startswith(f"{out}: ")
        assert caught.value.hint


def test_a_folder_with_a_file_of_that_name_stays_a_folder(photos: Path) -> None:
    (photos / "pack.json").write_text("something else")
    assert len(open_images([str(photos)])) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": Settings(size=4)}, "--size 4"),
        ({"settings": Settings(quality=101)}, "--quality 101"),
        ({"settings": Settings(shard_size=1)}, "--shard-size: 1 bytes, 10kB"),
        ({"workers": -1}, "workers -1"),
        ({"limit": 0}, "limit 0"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pack([str(photos)], tmp_path / "out", **changes)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken exists"):
        pack([str(photos)], tmp_path / "taken")
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "taken"}


def test_sizes_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("256MB", "1gb", "10kB")] == [256_000_000, 10**9, 10_000]
    for text in ("256", "MB", "-1MB", "1.5GB", "1TB"):
        with pytest.raises(UserError, match="not a number of bytes"):
            parse_bytes(text)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.data.packs.tar.shard_name", lambda number: "/dev/full")
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(self, mode.replace("x", "w")))
    with pytest.raises(UserError, match="out can't be written: No space left on device") as caught:
        pack([str(photos)], tmp_path / "out", SMALL)
    assert (caught.value.code, caught.value.hint) == (1, "free some space")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C as a terminal sends it: to the process and to those that it started."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = Image.effect_noise((1500, 1500), 90)
    noise.save(folder / "000.jpg")
    for number in range(1, 400):
        os.link(folder / "000.jpg", folder / f"{number:03}.jpg")
    words = [sys.executable, "-m", "sslkit", "pack", str(folder), "out", "--size", "900", "--workers", "2"]
    child = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    while not list(tmp_path.glob("out.partial-*/shard-*")):
        assert child.poll() is None
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
