"""Names as one run of bytes, and folders that are not read again: both must be what plain Python says."""

from __future__ import annotations

import os
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit.data.images.formats import ENDINGS
from sslkit.data.loading.loader import KeyedBatches
from sslkit.data.sources import listing
from sslkit.data.sources.listing import look_through
from sslkit.data.sources.names import Names, common_folder

texts = st.lists(st.binary(max_size=6).filter(lambda name: b"\0" not in name).map(os.fsdecode), max_size=8)


@given(texts)
def test_names_are_the_texts_they_were_made_of(names: list[str]) -> None:
    held = Names(names)
    assert len(held) == len(names)
    assert list(held) == names
    assert [held[i] for i in range(-len(names), len(names))] == names + names
    assert held == names == held
    assert held == Names(names) == tuple(names)
    assert [*held.as_bytes()] == [os.fsencode(name) for name in names]
    assert pickle.loads(pickle.dumps(held)) == held
    assert Names.of_parts(*held.parts) == held


@given(texts, st.slices(8), st.lists(st.integers(0, 7)))
def test_parts_of_names(names: list[str], part: slice, chosen: list[int]) -> None:
    held = Names(names)
    assert held[part] == names[part]
    chosen = [index for index in chosen if index < len(names)]
    assert held.take(chosen) == held.take(np.array(chosen, int)) == [names[index] for index in chosen]


def test_names_differ_where_only_the_borders_do() -> None:
    assert Names(["ab", "c"]) != Names(["a", "bc"])
    assert Names(["ab"]) != ["ab", "c"]
    assert Names(["a"]) != "a"
    with pytest.raises(IndexError):
        Names(["a"])[1]


def test_a_million_names_are_little_more_than_their_bytes() -> None:
    held = Names.of_bytes(b"/photos/class/%07d.jpg" % i for i in range(100_000))
    assert sum(sys.getsizeof(part) for part in held.parts) < 100_000 * (25 + 8) * 1.01
    assert len(pickle.dumps(held)) < 100_000 * (25 + 8) * 1.01


def test_ten_billion_images_need_no_memory() -> None:
    count, size = 10**10, 256
    per_epoch = count // size
    tracemalloc.start()
    batches = list(KeyedBatches(count, size, 0, 2 * per_epoch - 2, 2 * per_epoch + 2, per_epoch))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [batch[0][0] for batch in batches] == [1, 1, 2, 2]
    assert all(0 <= index < count for batch in batches for _, index in batch)
    assert peak < 2**20


folders = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)


@given(st.lists(folders, max_size=5), st.booleans())
def test_common_folder_is_that_of_the_standard_library(names: list[str], absolute: bool) -> None:
    names = [("/" if absolute else "") + name for name in names]
    expected = (
        os.path.join(os.path.commonpath([os.path.dirname(name) for name in names]), "") if names else ""
    )
    assert common_folder(map(os.fsencode, names)) == os.fsencode(expected)


# ------------------------------------------------------------------------------------------- folders


def plain(root: Path) -> list[str]:
    """The rule without order, links and cache: every visible file with an ending of ours."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(folder, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(ENDINGS)
        ]
    return sorted(found, key=os.fsencode)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders whose names sort otherwise with their "/" than without; every listing is kept, at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "KEPT_FROM", 0)
    monkeypatch.setattr(listing, "SETTLED", 0)
    root = tmp_path / "root"
    for name in ("a/x.jpg", "a-b/x.png", "a.jpg", "a/b/c.PNG", "a/b-/c.gif", "a0/é.jpg", "b/.hidden/d.jpg"):
        touch(root / name)
    touch(root / "notes.txt")
    (root / "empty").mkdir()
    return root


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def cached(root: Path) -> Path:
    (file,) = (root.parent / "cache/sslkit/listings").iterdir()
    return file


def test_images_are_listed_by_their_bytes(tree: Path) -> None:
    assert look_through(str(tree)).images == plain(tree)
    assert look_through(str(tree)).images == plain(tree)
    assert look_through(str(tree / "empty")).images == []


def test_unchanged_folders_are_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    scandir = os.scandir

    def watched(path: bytes) -> object:
        read.append(path)
        return scandir(path)

    look_through(str(tree))
    monkeypatch.setattr(os, "scandir", watched)
    assert look_through(str(tree)).images == plain(tree)
    read = [path for path in read if isinstance(path, bytes)]  # os.walk gives texts
    assert read == []
    touch(tree / "a/b/new.jpg")
    assert os.path.join(str(tree), "a/b/new.jpg") in look_through(str(tree)).images
    assert [path for path in read if isinstance(path, bytes)] == [os.fsencode(tree / "a/b") + b"/"]


@pytest.mark.parametrize("change", ["add", "remove", "rename", "folder", "times"])
def test_no_change_is_missed(tree: Path, change: str) -> None:
    look_through(str(tree))
    before = os.stat(tree / "a")
    if change == "add":
        touch(tree / "a/y.jpg")
    elif change == "remove":
        (tree / "a/x.jpg").unlink()
    elif change == "rename":
        (tree / "a/x.jpg").rename(tree / "a/z.jpg")
    elif change == "folder":
        (tree / "a/b").rename(tree / "a/c")
    else:  # what copying tools do: new content, and the old time set back
        touch(tree / "a/y.jpg")
        os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look_through(str(tree)).images == plain(tree)


def test_what_a_link_leads_to_may_change_unseen_and_is_looked_at(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere.jpg")
    (tree / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert str(tree / "link.jpg") in look_through(str(tree)).images
    (tmp_path / "elsewhere.jpg").unlink()
    assert str(tree / "link.jpg") not in look_through(str(tree)).images


def test_a_folder_that_has_just_changed_is_not_kept(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SETTLED", 3600 * 10**9)
    look_through(str(tree))
    assert not (tree.parent / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"x", b"sslkit listing 9\n", "cut", "flip"])
def test_a_damaged_listing_is_ignored(tree: Path, damage: bytes | str) -> None:
    look_through(str(tree))
    file = cached(tree)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-9]
    elif damage == "flip":
        content[-3] ^= 1
    file.write_bytes(damage if isinstance(damage, bytes) else content)
    assert look_through(str(tree)).images == plain(tree)


@pytest.mark.parametrize("home", ["/dev/null", "", "relative"])
def test_without_a_place_for_the_cache_nothing_is_said(
    tree: Path, home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.chdir(tmp_path)
    assert look_through(str(tree)).images == plain(tree)
    assert not (tmp_path / "relative").exists()


def test_few_images_leave_no_trace(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "KEPT_FROM", 20_000)
    look_through(str(tree))
    assert not (tmp_path / "cache").exists()
