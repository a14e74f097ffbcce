"""DATA as people type it: folders, lists, tables, generated images, and what is said when they are wrong."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.labels import open_labelled


def put(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), color).save(path, format="PNG")
    return path


def relative(images: ImageSet, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in images.paths]


def test_folder_is_searched_to_any_depth_and_sorted_by_code_point(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/deep/er/x.webp", "Z.tiff", "é.png", "notes.txt"):
        put(tmp_path / name)
    expected = ["Z.tiff", "a/deep/er/x.webp", "a/z.jpg", "b.PNG", "é.png"]
    assert relative(open_images([str(tmp_path)]), tmp_path) == expected


def test_paths_are_absolute_whatever_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    images = open_images(["photos/"])
    assert images.paths == (str(tmp_path / "photos" / "a.png"),)
    assert images.name == "photos/"
    assert images.read(0).size == images.size(0) == (16, 12)


def test_hidden_files_system_files_and_non_files_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", ".hidden.png", "._a.png", "Thumbs.db", ".git/b.png"):
        put(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert relative(open_images([str(tmp_path)]), tmp_path) == ["a.png"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "elsewhere")
    assert relative(open_images([str(tmp_path / "photos")]), tmp_path / "photos") == ["a.png", "again/b.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_names_of_strange_bytes_survive(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"new\nline.png", b"-rf.png", b"\x1b[31m.png", b"x" * 251 + b".png"]
    for name in names:
        shutil.copy(os.fsencode(put(tmp_path / "source.part")), os.path.join(os.fsencode(tmp_path), name))
    images = open_images([str(tmp_path)])
    assert sorted(os.path.basename(os.fsencode(path)) for path in images.paths) == sorted(names)
    assert all(images.read(i).size == (16, 12) for i in range(5))
    assert len(images.fingerprint) == 64
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\r\n\r\n-rf.png\n")
    assert set(open_images([str(tmp_path / "list.txt")]).paths) < set(images.paths)


def test_lists_and_tables_are_relative_to_themselves(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png")
    outside = put(tmp_path / "b.png")
    (tmp_path / "in" / "list.txt").write_text(f"a.png\n\n../b.png\n{outside}\n")
    (tmp_path / "in" / "table.csv").write_text("\ufefflabel,path\nx,a.png\n", encoding="utf-8")
    listed = open_images([str(tmp_path / "in" / "list.txt")])
    assert relative(listed, tmp_path) == ["b.png", "in/a.png"]
    assert relative(open_images([str(tmp_path / "in" / "table.csv")]), tmp_path) == ["in/a.png"]


def test_several_sources_are_joined_without_doubles(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "2.png")
    images = open_images([str(tmp_path / "b"), str(tmp_path), "fractal:3"])
    assert relative(images.subset([0, 1]), tmp_path) == ["a/1.png", "b/2.png"]
    assert images.paths[2:] == ("fractal:0000/00000", "fractal:0000/00001", "fractal:0001/00000")
    assert images.read(2).size == images.size(2) == (128, 128)


def test_limit_is_fixed_and_spread_over_the_set() -> None:
    few = open_images(["fractal:1000"], limit=40)
    assert len(few) == 40
    assert few == open_images(["fractal:1000"], limit=40)
    assert list(few.paths) == sorted(few.paths)
    assert len({path.split("/")[0] for path in few.paths}) == 10
    assert len(open_images(["fractal:10"], limit=40)) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file or folder"),
        ("empty", "", "no images found"),
        ("empty.txt", "\n", "no images found"),
        ("gone.txt", "a.png\nb.png\nc.png\n", "1 of 3 files are missing, the first is 'b.png'"),
        ("gone.csv", "path\nb.png\n", "1 of 1 files are missing, the first is 'b.png'"),
        ("blank.csv", "path,label\n,x\n", "1 of 1 files are missing, the first is ''"),
        ("column.csv", "file\na.png\n", "no column `path`"),
        ("rows.csv", "path\n", "no rows"),
        ("photo.png", "x", "not a folder"),
    ],
)
def test_errors_name_the_source(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "c.png")
    source = tmp_path / name
    if name == "empty":
        source.mkdir()
    elif content is not None:
        source.write_text(content)
    with pytest.raises(UserError) as caught:
        open_images([str(source)])
    assert message in caught.value.message
    assert str(source) in caught.value.message


def test_an_empty_folder_says_which_endings_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError) as caught:
        open_images([str(tmp_path)])
    assert {".jpg", ".png", ".webp", ".tif"} <= set(caught.value.hint.split())


@pytest.mark.parametrize("result", ["run.json", "comparison.json"])
def test_a_run_is_no_folder_of_images_and_is_left_out_where_it_lies_in_one(
    tmp_path: Path, result: str
) -> None:
    put(tmp_path / "photos/cat/a.png")
    run = tmp_path / "photos/runs/one"
    put(run / "pictures/step-1.png")
    for name in ("config.toml", result):
        (run / name).touch()
    for opened in (lambda: open_images([str(run)]), lambda: open_labelled(str(run))):
        with pytest.raises(UserError, match="is a run, not a folder of images") as caught:
            opened()
        assert f"{run}/config.toml" in caught.value.hint
    assert relative(open_images([str(tmp_path / "photos")]), tmp_path) == ["photos/cat/a.png"]
    (run / "config.toml").unlink()
    assert len(open_images([str(run)])) == 1


@pytest.mark.parametrize("part", ["", "train"])
def test_masks_are_no_photos(tmp_path: Path, part: str) -> None:
    for name in ("images", "masks"):
        put(tmp_path / part / name / "a.png")
    with pytest.raises(UserError, match="images/ and masks/, and a mask is no photo") as caught:
        open_images([str(tmp_path)])
    cure = caught.value.hint.removeprefix("give ")
    assert relative(open_images([cure]), tmp_path / part) == ["images/a.png"]


def test_a_limit_below_one_and_no_source_are_refused() -> None:
    with pytest.raises(UserError, match="limit 0"):
        open_images(["fractal:10"], limit=0)
    with pytest.raises(UserError, match="no images given"):
        open_images([])


def test_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for root in (first, second):
        put(root / "x" / "a.png")
        put(root / "y" / "b.png")
    before = open_images([str(first)]).fingerprint
    assert open_images([str(second)]).fingerprint == before
    (second / "x" / "a.png").rename(second / "x" / "c.png")
    assert open_images([str(second)]).fingerprint != before
    with open(first / "x" / "a.png", "ab") as file:
        file.write(b"\0")
    assert open_images([str(first)]).fingerprint != before
    labelled, _ = open_labelled("fractal:40")
    assert labelled.fingerprint != ImageSet(labelled.paths, "x").fingerprint
    assert ImageSet((str(tmp_path / "gone.png"),), "x").fingerprint  # deleted meanwhile: no crash


def test_class_folders_are_divided_by_class_and_seed(tmp_path: Path) -> None:
    for name, count in (("cat", 10), ("dog", 20), ("rare", 2), ("single", 1)):
        for i in range(count):
            put(tmp_path / name / "sub" / f"{i}.png")
    training, validation = open_labelled(str(tmp_path))
    assert training.classes == validation.classes == ("cat", "dog", "rare", "single")
    assert [(validation.labels or ()).count(label) for label in range(4)] == [2, 4, 1, 0]
    assert len(training) + len(validation) == len({*training.paths, *validation.paths}) == 33
    for part in (training, validation):
        named = [Path(path).parent.parent.name for path in part.paths]
        assert [part.classes[label] for label in part.labels or ()] == named
    assert open_labelled(str(tmp_path))[1] == validation
    assert open_labelled(str(tmp_path), seed=1)[1] != validation


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
def test_given_parts_are_used(tmp_path: Path, part: str) -> None:
    for name in ("cat", "dog"):
        put(tmp_path / "train" / name / "1.png")
        put(tmp_path / part / name / "2.png")
    training, validation = open_labelled(str(tmp_path))
    assert relative(training, tmp_path) == ["train/cat/1.png", "train/dog/1.png"]
    assert relative(validation, tmp_path) == [f"{part}/cat/2.png", f"{part}/dog/2.png"]
    assert validation.labels == (0, 1)


def test_tables_with_and_without_a_split_column(tmp_path: Path) -> None:
    for i in range(12):
        put(tmp_path / f"{i:02}.png")
    plain = "".join(f"{i:02}.png,{'even' if i % 2 == 0 else 'odd'}\n" for i in range(12))
    (tmp_path / "plain.csv").write_text("path,label\n" + plain)
    training, validation = open_labelled(str(tmp_path / "plain.csv"))
    assert (len(training), len(validation)) == (10, 2)
    split = "".join(
        f"{line},{'Train' if i < 8 else 'val' if i < 10 else 'test'}\n"
        for i, line in enumerate(plain.splitlines())
    )
    (tmp_path / "split.csv").write_text("path,label,split\n" + split)
    training, validation = open_labelled(str(tmp_path / "split.csv"))
    assert relative(validation, tmp_path) == ["08.png", "09.png"]
    assert validation.labels == (0, 1)
    assert len(training) == 8


def test_generated_images_are_labelled_by_system() -> None:
    training, validation = open_labelled("fractal:1000")
    assert len(training.classes) == 10
    assert (len(training), len(validation)) == (800, 200)
    assert not {*training.paths} & {*validation.paths}
    for part in (training, validation):
        assert [int(path[8:12]) for path in part.paths] == list(part.labels or ())


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (["a.png"], "", "no labels"),
        (["cat/a.png"], "", "only one class"),
        (["cat/a.png", "dog/b.png"], "", "nothing is left for validation"),
        (["cat/notes.txt"], "", "no images found"),
        (["train/cat/a.png", "train/dog/a.png", "val/cow/a.png"], "", "'cow' is in the validation part"),
        (["a.png"], "list.txt", "no labels"),
        (["a.png"], "nolabel.csv", "no column `label`"),
        (["a.png"], "unlabelled.csv", "1 of 1 rows have an empty `label`"),
        (["a.png"], "split.csv", "split 'fold 3'"),
        (["a.png"], "onlyval.csv", "no training images"),
        ([], "gone", "no such file"),
    ],
)
def test_label_errors(tmp_path: Path, files: list[str], source: str, message: str) -> None:
    for name in files:
        put(tmp_path / name)
    (tmp_path / "list.txt").write_text("a.png\n")
    (tmp_path / "nolabel.csv").write_text("path\na.png\n")
    (tmp_path / "unlabelled.csv").write_text("path,label\na.png,\n")
    (tmp_path / "split.csv").write_text("path,label,split\na.png,x,fold 3\n")
    (tmp_path / "onlyval.csv").write_text("path,label,split\na.png,x,val\n")
    with pytest.raises(UserError) as caught:
        open_labelled(str(tmp_path / source))
    assert message in caught.value.message


def test_too_few_generated_images_for_classes() -> None:
    with pytest.raises(UserError, match="too few"):
        open_labelled("fractal:19")


def test_a_text_that_is_no_list_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "1.txt").write_text("It was a dark and stormy night.")
    with pytest.raises(UserError) as prose:
        open_images([str(tmp_path / "1.txt")])
    assert "a .txt is read as a list of images" in prose.value.hint
    with pytest.raises(UserError) as absent:
        open_images([str(tmp_path / "nope")])
    assert absent.value.hint == f"folders there: {tmp_path / 'train'}"
