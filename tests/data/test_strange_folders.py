"""Folders as they are found: strange names, links, rights, files that change, and next to nothing in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.api import pretrain as pretrain_verb
from sslkit.augmentations.crops import CenterCrop, RandomResizedCrop
from sslkit.cli import app
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.images.decode import UnreadableImage, read_image
from sslkit.data.images.picture import Picture
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources.image_set import found_in, open_images
from sslkit.training.pretrain.pretrain import pretrain
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.skipped import Skipped

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
NAMES = [
    b"caf\xe9.png", "日本 🎉.png".encode(), b"new\nline.png",
    b"tab\t.png", b"-rf.png", b"\x1b[31m\x07red.png",
    b"x" * 251 + b".png", b"<script>alert(1)<&>.png", "\u202egnp.exe.png".encode(), b"$x_{$.png", b"\\n.png",
]  # fmt: skip
SAFE = "".join(map(chr, range(32, 127)))


def picture(path: Path, size: tuple[int, int] = (40, 36)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return path


def fill(folder: Path, names: list[bytes], content: bytes) -> None:
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "xb") as file:
            file.write(content)


# ------------------------------------------------------------------------------------------------- names


@LINUX
def test_strange_names_are_logged_and_shown_safely(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the strange names are pictures, half are damaged: nothing of them reaches a terminal raw."""
    place = photos.rename(tmp_path / "<b>\x1b[2J\nphotos")
    content = (place / "05.png").read_bytes()
    fill(place, NAMES, content)
    fill(place, [b"bad" + name for name in NAMES[:4] + NAMES[5:6] + NAMES[7:9]], b"damaged")
    size = {"backbone": "test_vit", "size": 32, "epochs": 2, "batch_size": 8, "workers": 0, "device": "cpu"}
    allowed = ["data.max_bad=0.5"]
    run = pretrain_verb(place, settings=allowed, out=tmp_path / "r", console=Console(), **size)
    shown = capsys.readouterr()
    log, table = (run / "log.txt").read_text("utf-8"), (run / "skipped.tsv").read_text("utf-8")
    for text in (shown.out, shown.err, log):
        assert not [letter for letter in text if not letter.isprintable() and letter != "\n"]
    lines = table.splitlines()
    assert len(lines) == 7
    assert all(line.count("\t") == 1 for line in lines)
    assert all(letter.isprintable() for line in lines for letter in line.replace("\t", ""))
    for name in (
        "bad\\x1b[31m\\x07red.png",
        "badcaf\\udce9.png",
        "badnew\\nline.png",
        "bad\\u202egnp.exe.png",
    ):
        assert any(name in line for line in lines), name
    page = (run / "report.html").read_text("utf-8")
    assert "<script>" not in page
    assert "<b>" not in page


@LINUX
def test_a_name_is_counted_once_though_a_run_is_resumed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    path = "/photos/" + os.fsdecode(NAMES[0]) + os.fsdecode(NAMES[2])
    Skipped(run, 1000, 0.5).add([(path, "first\nreason"), (path, "again")])
    again = Skipped(run, 1000, 0.5)
    again.add([(path, "first reason")])
    assert len(again) == 1
    assert len((tmp_path / "run" / "skipped.tsv").read_text("utf-8").splitlines()) == 1


@LINUX
def test_errors_about_strange_names_are_two_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e\x1b[31m\nmpty").mkdir()
    monkeypatch.setattr(sys, "argv", ["sslkit", "check", str(tmp_path / "e\x1b[31m\nmpty")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "e\\x1b[31m\\nmpty: no images found" in lines[0]
    assert set("".join(lines)) <= set(SAFE)


@LINUX
def test_the_order_does_not_depend_on_the_locale(tmp_path: Path) -> None:
    fill(tmp_path, [b"\x80.png", "中.png".encode(), "é.png".encode(), b"Z.png", b"a.png", b"\xff.png"], b"")
    program = (
        "import os, sys\nfrom sslkit.data.sources.image_set import found_in\n"
        "print([os.path.basename(os.fsencode(path)) for path in found_in(sys.argv[1]).images])"
    )
    orders = []
    for settings in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
        line = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        orders.append(done.stdout)
    assert orders[0] == orders[1]
    assert orders[0] == str(sorted(os.listdir(os.fsencode(tmp_path)))) + "\n"


# ------------------------------------------------------------------------------------------ links, rights


def test_links_that_lead_nowhere_or_round_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "through.png").symlink_to("a.png/b.png")
    (tmp_path / "x.jpg").mkdir()
    assert found_in(str(tmp_path)).images == [str(tmp_path / "a.png")]


def test_loops_of_folders_are_walked_once(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b")
    assert [Path(path).name for path in found_in(str(tmp_path)).images] == ["1.png"]


def test_what_others_leave_behind_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in (
        "Thumbs.db",
        "._a.png",
        ".DS_Store",
        ".hidden.jpg",
        ".cache/b.png",
        "a.png.part",
        "desktop.ini",
    ):
        picture(tmp_path / name)
    assert found_in(str(tmp_path)).images == [str(tmp_path / "a.png")]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that a user without rights may enter; inside the test the process is that user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for inside in folder.iterdir():
            inside.chmod(0o700)
        shutil.rmtree(folder)


def give_up_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.skipif(sys.platform == "win32", reason="rights are another matter there")
def test_no_permission_is_a_reason_and_no_crash(nobody: Path) -> None:
    picture(nobody / "a.png")
    picture(nobody / "locked.png").chmod(0)
    picture(nobody / "closed" / "b.png")
    (nobody / "into.png").symlink_to(nobody / "closed" / "b.png")
    (nobody / "closed").chmod(0)
    give_up_rights()
    assert [Path(path).name for path in found_in(str(nobody)).images] == ["a.png", "locked.png"]
    with pytest.raises(UnreadableImage) as caught:
        read_image(str(nobody / "locked.png"))
    assert caught.value.reason == "Permission denied"
    with pytest.raises(UserError, match="may not be read"):
        open_images([str(nobody / "closed")])


# ----------------------------------------------------------------------------- files that change, few files


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def now_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def now_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def now_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("change", [gone, emptied, now_a_folder, now_a_pipe, now_a_loop])
def test_files_that_change_while_training_are_skipped(photos: Path, change: Callable[[Path], None]) -> None:
    images = open_images([str(photos)])
    loader = pretraining_loader(
        images, lambda image, random: {"image": RandomResizedCrop(16)(image, random)},
        batch_size=4, seed=0, start_step=0, steps=12, steps_per_epoch=4, workers=0,
    )  # fmt: skip
    next(loader)
    change(Path(images.paths[3]))
    change(Path(images.paths[9]))
    rest = list(loader)
    assert {path for batch in rest[4:] for path, _ in batch["bad"]} == {images.paths[3], images.paths[9]}
    assert all(reason for batch in rest for _, reason in batch["bad"])
    assert all(batch["image"].shape == (4, 3, 16, 16) for batch in rest)


def test_a_file_that_is_replaced_by_another_picture_is_read_as_it_is(photos: Path) -> None:
    images = open_images([str(photos)])
    Image.new("RGB", (900, 8), "red").save(images.paths[3])
    assert images.read(3).size == (900, 8)


@pytest.mark.parametrize("size", [(8, 8), (8, 2000), (15, 31)])
def test_images_smaller_than_the_crop_work(tmp_path: Path, size: tuple[int, int]) -> None:
    image = read_image(str(picture(tmp_path / "a.png", size)))
    view = RandomResizedCrop(64)(Picture(image), np.random.default_rng(0))
    assert view.shape == CenterCrop(64)(image).shape == (3, 64, 64)
    assert view.dtype == torch.uint8


def only(folder: Path, good: int, bad: int) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()
    for number in range(good):
        picture(folder / f"good-{number}.png")
    for number in range(bad):
        (folder / f"bad-{number}.png").write_bytes(b"damaged")


@pytest.mark.parametrize(
    ("good", "bad", "message", "code"),
    [
        (0, 0, "no images found", 2),
        (3, 0, "batch of 4 is larger than the data: 3 images", 2),
        (0, 9, "none of 9 sampled images can be read", 2),
        (1, 99, "images in a row can't be read", 1),
    ],
    ids=["empty", "fewer than a batch", "all bad", "nearly all bad"],
)
def test_next_to_nothing_is_a_clear_error(
    photos: Path, tiny: Callable[..., PretrainConfig], good: int, bad: int, message: str, code: int
) -> None:
    only(photos, good, bad)
    with pytest.raises(UserError, match=message) as caught:
        pretrain(tiny("run"))
    assert caught.value.code == code
    assert caught.value.hint
    assert str(photos) in caught.value.message or "batch" in message


def test_one_image_is_enough(
    photos: Path, tiny: Callable[..., PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    only(photos, 1, 0)
    run = pretrain(tiny("run", **{"run.batch_size": 1, "optim.lr": 1e-4}), Console())
    assert RunFolder.open(run).facts["status"] == "completed"
    assert "collapse" not in capsys.readouterr().err  # one image alone spreads nowhere
