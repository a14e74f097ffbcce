"""Which folders are parts of a data set and which are classes, as strangers' folders have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sslkit import api
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import open_images
from sslkit.data.sources.labels import empty_class_folders, open_labelled
from sslkit.data.sources.layout import Ambiguous, folders_of, read_layout
from sslkit.data.sources.split_names import role_of, roles
from sslkit.evaluation.embedding.gallery import class_names


def names(*folders: str) -> list[str]:
    """ "train/cat:3" → three images there."""
    found = []
    for folder in folders:
        name, _, count = folder.partition(":")
        found += [f"{name}/{number}.jpg".removeprefix("/") for number in range(int(count or 2))]
    return found


PARTS = (
    ("train", "val"), ("Training", "Validation"), ("TRAIN", "VALID"), ("training_set", "validation_set"),
    ("TrainingSet", "ValSet"), ("trainset", "testset"), ("train2017", "val2017"), ("train-images",
    "test-images"),
    ("train", "test"), ("Training", "Testing"), ("seg_train", "seg_test"), ("train", "dev"), ("train",
    "eval"),
    ("images_train", "images_val"), ("cats_train", "cats_test"), ("trn", "tst"), ("train_set_1", "holdout"),
    ("animals.training", "animals.test"),
)  # fmt: skip


@pytest.mark.parametrize(("training", "validation"), PARTS)
@pytest.mark.parametrize("above", ["", "archive/", "archive/data-v2/"])
def test_parts_go_by_many_names(training: str, validation: str, above: str) -> None:
    there = [f"{above}{part}/{name}" for part in (training, validation) for name in ("cat", "dog")]
    layout = read_layout("DATA", folders_of(names(*there)))
    assert layout.training.folder == f"{above}{training}/"
    assert layout.validation is not None
    assert layout.validation.folder == f"{above}{validation}/"
    assert layout.training.classes == layout.validation.classes == {"cat", "dog"}
    assert layout.class_of(f"{above}{training}/cat/deep/1.jpg") == "cat"
    assert layout.class_of("elsewhere/cat/1.jpg") == ""


def parts(*folders: str) -> tuple[str, set[str], str | None, list[str]]:
    layout = read_layout("DATA", folders_of(names(*folders)))
    held = layout.validation and layout.validation.folder
    return layout.training.folder, set(layout.training.classes), held, list(layout.notes)


def test_the_best_held_out_part_is_validation_and_the_rest_is_said() -> None:
    both = [f"{part}/{name}" for part in ("train", "test", "dev", "val") for name in ("cat", "dog")]
    expected = ["not used: dev/ (4 images), test/ (4 images)"]
    assert parts(*both) == ("train/", {"cat", "dog"}, "val/", expected)
    assert parts(*both, "extra/new:5", ":3")[3] == [
        "not used: dev/ (4 images), extra/ (5 images), test/ (4 images), 3 images in no class folder"
    ]
    # As competitions have it: test images without labels. They are no class, and are not scored.
    assert parts("train/cat", "train/dog", "test:7") == (
        "train/",
        {"cat", "dog"},
        None,
        ["not used: test/ (7 images)"],
    )
    assert parts("train/cat", "train/dog") == ("train/", {"cat", "dog"}, None, [])
    assert parts("cat", "dog", ":4") == ("", {"cat", "dog"}, None, ["not used: 4 images in no class folder"])
    assert parts("train/cat", "train/dog", "val/cat", "val/dog", "train:6")[3] == [
        "not used: 6 images in no class folder"
    ]


def test_folders_that_only_wrap_are_no_classes() -> None:
    there = [f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("sea", "street")]
    training, classes, held, notes = parts(*there, "seg_pred/seg_pred:9")
    assert (training, classes, held) == ("seg_train/seg_train/", {"sea", "street"}, "seg_test/seg_test/")
    assert notes == [
        "seg_train/seg_train/ is training, seg_test/seg_test/ validation", "not used: seg_pred/ (9 images)"
    ]  # fmt: skip
    assert parts("train/images/a", "train/images/b")[:2] == ("train/images/", {"a", "b"})


def test_a_test_folder_beside_class_folders_is_held_out() -> None:
    assert parts("cat", "dog", "test/cat", "test/dog") == (
        "", {"cat", "dog"}, "test/", ["test/ is the validation part of the classes beside it"],
    )  # fmt: skip


def test_classes_with_the_names_of_parts() -> None:
    assert parts("bus", "car", "train") == (
        "",
        {"bus", "car", "train"},
        None,
        ["'train' is one of the classes"],
    )
    vehicles = [f"{part}/{name}" for part in ("train", "test") for name in ("bus", "train", "test_tube")]
    assert parts(*vehicles)[1] == {"bus", "train", "test_tube"}
    assert parts("bus", "train", "test/bus", "test/train")[1:3] == ({"bus", "train"}, "test/")
    for alone in (
        "train_station",
        "test tube",
        "dev board",
        "valley",
        "trainer",
        "contest",
        "evaluation board",
    ):
        assert parts("bus", alone)[:3] == ("", {"bus", alone}, None)
    assert parts("vehicles/bus", "vehicles/train", "animals/cat")[1] == {"vehicles", "animals"}


@pytest.mark.parametrize(
    ("there", "readings"),
    [
        (["bus", "car", "train/steam", "train/electric"], ("train/ is the training part",
        "'train' is one of 3 classes")),
        (["cat", "dog", "test"], ("test/ is held out", "'test' is one of 3 classes")),
        (["cat", "dog", "test/1", "test/2"], ("test/ is held out", "'test' is one of 3 classes")),
        (["train2014/a", "train2017/a", "val2017/a"], ("train2014/, train2017/", "training parts both")),
        (["cat/train", "cat/test", "dog/train", "dog/test"], ("cat/, dog/ are classes",
        "cat/train/, cat/test/ are parts")),
        (["data/train/a", "data/test/a", "more"], ("data/, more/ are classes", "data/train/ are parts")),
    ],
)  # fmt: skip
def test_two_readings_are_refused_and_both_named(there: list[str], readings: tuple[str, str]) -> None:
    with pytest.raises(Ambiguous) as caught:
        parts(*there)
    message = caught.value.message.replace("data/test/, data/train/", "data/train/")
    message = message.replace("cat/test/, cat/train/", "cat/train/, cat/test/")
    assert all(reading in message for reading in readings), caught.value.message
    assert "a .csv with path,label,split" in caught.value.hint


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        ([":3"], "no class folders"),
        (["train", "val"], "train/ has images but no class folders"),
        (["val/cat", "val/dog"], "val/ but no training part"),
    ],
)
def test_no_labels(there: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        parts(*there)
    assert not isinstance(caught.value, Ambiguous)


def test_roles() -> None:
    assert role_of("train_val") is None
    assert role_of("Train") == role_of("train-set 2017")
    assert sorted(roles(["xy_train", "xy_test", "z_train", "cat"])) == ["xy_test", "xy_train"]


# --------------------------------------------------------------------------------- real folders, all commands


def fill(root: Path, *folders: str) -> Path:
    for number, name in enumerate(names(*folders)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (number, 40, 200 - number)).save(root / name)
    return root


def test_all_commands_read_the_same_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["Training/cat:4", "Training/dog:4", "Testing/cat", "Testing/dog", "more:3"]
    data = fill(tmp_path / "data", *[f"archive/{name}" for name in there])
    (data / "__MACOSX/archive").mkdir(parents=True)
    note = "archive/Training/ is training, archive/Testing/ validation"
    training, validation = open_labelled(str(data))
    assert (len(training), len(validation), training.classes) == (8, 4, ("cat", "dog"))
    assert training.notes == (note, "not used: archive/more/ (3 images)")
    images = open_images([str(data)])
    expected = [Path(path).parent.name if "ing/" in path else "" for path in images.paths]
    assert class_names([str(data)], images) == expected
    packing = api.pack(data, out=tmp_path / "pack")
    assert packing.classes == ("cat", "dog")
    again = open_labelled(str(tmp_path / "pack"))
    assert [len(part) for part in again] == [8, 4]
    assert again[0].notes == training.notes
    audit = api.check(data, workers=0)
    assert audit.classes == {"cat": 6, "dog": 6}
    assert audit.notes == training.notes
    few = {"size": 32, "workers": 0, "console": Console()}
    api.probe("random/test_vit", data=data, cache=False, baselines=(), **few)
    assert note in capsys.readouterr().err
    run = api.finetune("random/test_vit", data, epochs=1, batch_size=8, out=str(tmp_path / "ft"), **few)
    assert run.counts["train"] == 8
    assert note in capsys.readouterr().err
    table = (run.folder / "classes.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == ["cat", "dog"]


def test_without_need_of_labels_two_readings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fill(tmp_path / "data", "cat", "dog", "test")
    assert class_names([str(data)], open_images([str(data)]), Console()) is None
    assert api.pack(data, out=tmp_path / "pack", console=Console()).classes == ()
    told = capsys.readouterr().err
    assert (
        told.count("either test/ is held out, and cat/, dog/ are the classes, or 'test' is one of 3 classes")
        == 2
    )
    assert "either test/ is held out" in api.check(data, workers=0).notes[0]
    (data / "test").rename(data / "tests of animals")
    assert len(class_names([str(data)], open_images([str(data)]), Console()) or ()) == 6


def test_a_hint_that_gives_a_folder_works(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "bus", "car", "train/steam", "train/electric", "val/steam", "val/electric")
    fill(tmp_path, "held/test/cat", "held/test/dog")
    os.rename(data / "val", tmp_path / "val")
    for folder in (data, tmp_path / "held"):
        with pytest.raises(UserError) as caught:
            open_labelled(str(folder))
        given = next(word.rstrip(";") for word in caught.value.hint.split() if word.startswith(str(tmp_path)))
        assert len(open_labelled(given)[0].classes) == 2


def test_runs_among_class_folders_are_no_classes(tmp_path: Path) -> None:
    data = fill(tmp_path, "cat", "dog", "runs/mfm-1/pictures", "out/pictures")
    for folder in ("runs/mfm-1", "out"):
        for name in ("run.json", "config.toml"):
            (data / folder / name).touch()
    (data / "@eaDir").mkdir()
    training, _ = open_labelled(str(data))
    assert training.classes == ("cat", "dog")
    assert empty_class_folders(str(data)) == []
    assert set(training.left_out.written) == {"mfm-1/", "./"}
    (data / "cow").mkdir()
    assert empty_class_folders(str(data)) == ["cow"]


def test_the_split_column_is_read_alike(tmp_path: Path) -> None:
    fill(tmp_path, ":8")
    splits = ["Train", "training", "TRAIN ", "train", "Testing", "test", "dev", "Dev"]
    rows = [f"{number}.jpg,{'ab'[number % 2]},{split}" for number, split in enumerate(splits)]
    (tmp_path / "a.csv").write_text("path,label,split\n" + "\n".join(rows))
    training, validation = open_labelled(str(tmp_path / "a.csv"))
    assert [Path(path).stem for path in validation.paths] == ["6", "7"]
    assert len(training) == 4
    assert training.notes == ("not used: split 'Testing' (1 image), split 'test' (1 image)",)
