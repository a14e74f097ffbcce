"""`sslkit check`: what is planted is found, what is clean is called clean, and text is safe."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from sslkit import api
from sslkit.cli import app
from sslkit.core.errors import UserError
from sslkit.data.audit.audit import Audit, audit
from sslkit.data.audit.likeness import (
    BLANK,
    COLOUR_LEVELS,
    HASH_BITS,
    LIKENESS,
    SAME_COLOUR_LEVELS,
    SAME_HASH_BITS,
    look_at,
    near_groups,
    perceptual_hash,
)
from sslkit.data.sources import fractal

Edit = Callable[[Image.Image], Image.Image]


def photo(number: int, side: int = 96) -> Image.Image:
    """A generated image; another number is another system, another picture."""
    return fractal.draw(fractal.names(1000)[100 * (number % 10) + number // 10]).resize((side, side))


def save(image: Image.Image, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return str(path)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Ten different pictures in two class folders."""
    for number in range(10):
        save(photo(number), tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    return tmp_path / "photos"


def kinds(found: Audit) -> dict[str, int]:
    return {finding.kind: finding.count for finding in found.findings}


def rows(found: Audit, kind: str) -> list[tuple[str, str]]:
    (finding,) = [finding for finding in found.findings if finding.kind == kind]
    return finding.rows


# ------------------------------------------------------------------------------------------- findings


def test_different_pictures_are_clean(clean: Path) -> None:
    found = audit([str(clean)], workers=0)
    assert kinds(found) == {}
    assert found.seen.kinds == {"PNG RGB": 10}
    assert found.classes == {"a": 5, "b": 5}
    assert found.histogram() == {"64-127": 10}
    assert found.seen.huge() == 0


def test_generated_images_are_pictures_too() -> None:
    found = audit(["fractal:40"], workers=0)
    assert found.seen.kinds == {"generated RGB": 40}
    assert not {"unreadable", "copies", "blank"} & set(kinds(found))


def test_each_defect_is_found_where_it_was_planted(clean: Path) -> None:
    (clean / "a" / "bad.jpg").write_bytes(b"<html>")
    tiny = save(photo(11, 20), clean / "a" / "tiny.png")
    blank = save(Image.new("RGB", (64, 64), (250, 240, 230)), clean / "a" / "blank.png")
    Image.open(clean / "a" / "0.png").save(clean / "b" / "copy.bmp")
    photo(3).save(clean / "b" / "near.jpg", quality=60)
    found = audit([str(clean)], workers=0)
    assert kinds(found) == {
        "unreadable": 1, "tiny": 1, "blank": 1, "copies": 1, "near copies": 1, "contradictions": 1,
    }  # fmt: skip
    assert rows(found, "unreadable")[0][0] == str(clean / "a" / "bad.jpg")
    assert rows(found, "unreadable")[0][1].startswith("not an image")
    assert rows(found, "tiny") == [(tiny, "20x20")]
    assert rows(found, "blank")[0][0] == blank
    assert rows(found, "copies") == [(str(clean / "b" / "copy.bmp"), str(clean / "a" / "0.png"))]
    assert set(rows(found, "near copies")[0]) == {str(clean / "b" / "near.jpg"), str(clean / "b" / "3.png")}
    # The copy lies in the other class, the near copy in its own.
    assert rows(found, "contradictions") == rows(found, "copies")


def test_copies_count_all_but_one_of_each(clean: Path) -> None:
    for number in range(3):
        photo(0).save(clean / "a" / f"again-{number}.png")
    photo(2).save(clean / "a" / "again-2-2.png")
    assert kinds(audit([str(clean)], workers=0)) == {"copies": 4}


def test_leaks_exact_and_near(clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save(photo(4), other / "same.bmp")
    save(photo(5, 64), other / "smaller.jpg")
    save(photo(17), other / "own.png")
    save(photo(17), other / "own-again.png")
    found = audit([str(clean)], [str(other)], workers=0)
    assert kinds(found) == {"leaks": 1, "near leaks": 1}  # what is doubled in the other set is its own affair
    assert rows(found, "leaks") == [(str(clean / "a" / "4.png"), str(other / "same.bmp"))]
    assert rows(found, "near leaks") == [(str(clean / "b" / "5.png"), str(other / "smaller.jpg"))]
    assert kinds(audit([str(clean)], [str(clean)], workers=0)) == {"leaks": 10}


def test_any_number_of_processes_finds_the_same(clean: Path) -> None:
    for number in range(10, 90):
        save(photo(number, 40), clean / "b" / f"{number}.png")
    (clean / "b" / "50.png").write_bytes(b"")
    (clean / "a" / "bad.png").write_bytes(b"")
    documents = [audit([str(clean)], workers=workers).to_document() for workers in (0, 1, 2)]
    for document in documents:
        del document["images_per_second"]
    assert documents[0] == documents[1] == documents[2]
    assert documents[0]["findings"]["unreadable"]["count"] == 2


def test_nothing_readable_is_still_an_answer(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    found = audit([str(tmp_path)], workers=0)
    assert kinds(found) == {"unreadable": 1}
    assert found.histogram() == {}


# ------------------------------------------------------------------------------------------- likeness


def again(quality: int) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return edit


EDITS: dict[str, Edit] = {
    "jpeg": again(50),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "double": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
}


@pytest.mark.parametrize("name", EDITS)
def test_saved_again_is_near_and_another_picture_is_not(name: str) -> None:
    """Pairs of an image and its edit among twenty different ones: nearly all found, nothing else joined."""
    images = [photo(number, 256) for number in range(20)]
    looks = np.array([look_at(image) for image in [*images, *map(EDITS[name], images)]], LIKENESS)
    group = near_groups(looks)
    assert (group[:20] == np.arange(20)).all()
    joined = group[20:] != np.arange(20, 40)
    assert joined.sum() >= 18
    assert (group[20:][joined] == np.arange(20)[joined]).all()


def test_the_hash_is_what_its_definition_says() -> None:
    """Against the cosine transform summed in four loops."""
    grey = np.random.default_rng(0).uniform(0, 255, (32, 32))
    place = np.arange(32) + 0.5
    low = [
        sum(
            grey[y, x] * np.cos(np.pi * u * place[y] / 32) * np.cos(np.pi * v * place[x] / 32)
            for y in range(32)
            for x in range(32)
        )
        for u in range(8)
        for v in range(8)
    ]
    middle = sorted(low[1:])[31]
    assert perceptual_hash(grey) == int("".join("1" if value > middle else "0" for value in low), 2)
    assert perceptual_hash(grey * 0.5 + 10) == perceptual_hash(grey)


def test_a_look_holds_pixels_size_and_colours() -> None:
    image = photo(0, 64)
    look = look_at(image)
    assert look["digest"].item().ljust(32, b"\0") == hashlib.sha256(b"64x64:" + image.tobytes()).digest()
    assert (look["width"], look["height"]) == image.size
    blocks = np.asarray(image).reshape(4, 16, 4, 16, 3).mean((1, 3)).ravel()
    assert np.abs(look["colours"] - blocks).max() <= 1.5  # Pillow rounds rows and columns
    assert not look["blank"]
    almost = Image.fromarray(
        np.full((64, 64, 3), 90, np.uint8) + np.arange(64, dtype=np.uint8)[:, None, None] % 2
    )
    assert look_at(almost)["blank"]
    assert look_at(Image.linear_gradient("L").convert("RGB"))["blank"] == (BLANK > 255)
    tall, wide = Image.new("RGB", (8, 32)), Image.new("RGB", (32, 8))
    assert look_at(tall)["digest"] != look_at(wide)["digest"]


def slow_groups(hashes: NDArray[np.uint64], colours: NDArray[np.uint8]) -> list[int]:
    """Every pair compared, groups by flooding."""
    count = len(hashes)
    bands = list(pairwise((0, 13, 26, 39, 52, 64)))

    def alike(i: int, j: int) -> bool:
        differ = int(hashes[i]) ^ int(hashes[j])
        bits, levels = differ.bit_count(), np.abs(colours[i].astype(int) - colours[j]).mean()
        meet = any(not differ >> low & ((1 << (high - low)) - 1) for low, high in bands)
        same = bits <= SAME_HASH_BITS and levels <= SAME_COLOUR_LEVELS and meet
        return bool((bits <= HASH_BITS and levels <= COLOUR_LEVELS) or same)

    near = [[alike(i, j) for j in range(count)] for i in range(count)]
    group = [-1] * count
    for start in range(count):
        pending = [start] if group[start] < 0 else []
        while pending:
            i = pending.pop()
            if group[i] < 0:
                group[i] = start
                pending += [j for j in range(count) if near[i][j] and group[j] < 0]
    return group


def test_buckets_find_what_comparing_all_pairs_finds() -> None:
    random = np.random.default_rng(0)
    looks = np.zeros(200, LIKENESS)
    for i in range(200):  # families of ten hashes that drift away bit by bit, so that chains appear
        base = int(looks["hash"][i - 1]) if i % 10 else int(random.integers(2**63))
        for bit in random.choice(64, int(random.integers(0, 7)), replace=False):
            base ^= 1 << int(bit)
        looks["hash"][i] = base
        looks["colours"][i] = 100 + random.choice([0, 3, 17])
    expected = slow_groups(looks["hash"], looks["colours"])
    assert near_groups(looks).tolist() == expected
    assert 25 < len(set(expected)) < 190  # some joined, some apart
    looks["hash"], looks["colours"] = 0, 0
    assert near_groups(looks).tolist() == [0] * 200
    assert near_groups(looks[:0]).tolist() == []


def drawing(random: np.random.Generator) -> Image.Image:
    """A rectangle on a sheet of one colour: of most frequencies there is nearly nothing."""
    side = int(random.integers(40, 260))
    image = Image.new("RGB", (side, side), tuple(random.integers(0, 256, 3).tolist()))
    (left, right), (top, bottom) = np.sort(random.integers(0, side, (2, 2)), axis=1).tolist()
    colour = tuple(random.integers(0, 256, 3).tolist())
    ImageDraw.Draw(image).rectangle((left, top, right + 2, bottom + 2), fill=colour)
    return image


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_drawings_saved_again_are_found() -> None:
    """Whatever the encoder rounds: 577 of 600 where four bits of the hash alone would find 548."""
    random = np.random.default_rng(0)
    drawings = [drawing(random) for _ in range(200)]
    looks = [look_at(image) for image in drawings]
    found = 0
    for quality in (95, 85, 70):
        again = [look_at(saved_again(image, quality)) for image in drawings]
        group = near_groups(np.stack(looks + again))
        found += int((group[200:] == group[:200]).sum())
        assert len(set(group[:200])) == 200  # no two drawings are taken for one
    assert found >= 565


# --------------------------------------------------------------------------------- the command, the verb


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sslkit", "check", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_exit_code_and_streams(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clean.parent)
    assert call(monkeypatch, "photos", "--workers", "0") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("10 images: photos (")
    assert out.splitlines()[-1] == "no findings"
    assert "2, from 5 images (b) to 5 (a)" in out
    assert not [letter for letter in err if not letter.isprintable() and letter != "\n"]
    for number in range(5):
        photo(0).save(clean / "a" / f"again\x1b[31m-{number}.png")
    assert call(monkeypatch, "photos", "--workers", "0", "-q") == 1
    out, err = capsys.readouterr()
    assert "copies: 5 images, exact copies of others" in out
    assert "and 2 more; --out FILE lists all" in out
    assert "  photos/a/again\\x1b[31m-0.png  photos/a/" in out  # not absolute
    assert "\x1b" not in out
    assert err == ""
    assert call(monkeypatch, "photos", "--workers", "0", "--json", "-q") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["findings"]["copies"]["count"] == 5
    assert document["count"] == 15


def test_out_lists_every_finding_in_a_new_file(clean: Path, tmp_path: Path) -> None:
    for number in range(5):
        photo(0).save(clean / "a" / f"again\n{number}.png")
    found = api.check(clean, out=tmp_path / "found.tsv", workers=0)
    lines = (tmp_path / "found.tsv").read_text("utf-8").splitlines()
    assert lines == ["\t".join(row) for row in found.rows()]
    assert [line.split("\t")[0] for line in lines] == ["copies"] * 5
    for place, reason in (("found.tsv", "exists"), ("missing/found.tsv", "lies in no folder")):
        with pytest.raises(UserError, match=reason):
            api.check(clean, out=tmp_path / place)
    assert not (tmp_path / "missing").exists()


def test_what_can_not_be_checked_is_said(tmp_path: Path, clean: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        api.check(clean, against=[tmp_path / "missing"])
    with pytest.raises(UserError, match="--workers: -1 is not >= 0"):
        api.check(clean, workers=-1)
