"""What lies in a folder of images and is none: counted, told, and, where sslkit or the system has put
it there, left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_photos

from sslkit import api
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.data.images import formats
from sslkit.data.sources import listing
from sslkit.data.sources.folders import mark_drawn
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.training.pretrain.pretrain import pretrain, resume


def below(images: ImageSet, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in images.paths]


@pytest.fixture
def mixed(photos: Path) -> Path:
    """Sixteen photos beside 7 files that are none."""
    for name in ("a.NEF", "b.nef", "inside/c.nef", "labels.csv", "film.mp4", "README", "inside/d.xyz"):
        (photos / name).write_bytes(b"no image")
    return photos


def test_every_file_that_is_not_read_is_counted_by_its_ending(mixed: Path) -> None:
    left_out = open_images([str(mixed)]).left_out
    assert left_out.passed == ((".nef", 3), ("", 1), (".csv", 1), (".mp4", 1), (".xyz", 1))
    assert left_out.lines() == ["7 files were passed over: 3 .nef, 1 without ending, 1 .csv, 1 .mp4, 1 .xyz"]
    twice = open_images([str(mixed), str(mixed / "inside")]).left_out
    assert dict(twice.passed)[".nef"] == 4
    assert open_images(["fractal:10"]).left_out.lines() == []


def test_check_pack_and_embed_tell_it(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finding,) = api.check(mixed, workers=0).findings
    assert (finding.kind, finding.count) == ("passed over", 7)
    assert finding.rows[0] == (".nef", "3 files")
    api.pack(mixed, out=tmp_path / "pack", console=Console())
    api.embed("random/test_vit", mixed, tmp_path / "a.npz", size=32, workers=0, console=Console())
    assert capsys.readouterr().err.count("7 files were passed over: 3 .nef, ") == 2


SYSTEMS = (
    "__MACOSX/._a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/S-1-5/a.png", "lost+found/#12",
    "System Volume Information/IndexerVolumeGuid", ".Trash-1000/files/a.png", ".thumbnails/a.png",
    "#recycle/a.png",
    ".ipynb_checkpoints/a-checkpoint.png", "LOST.DIR/a.png", "RECYCLER/a.png", ".git/a.png", "Thumbs.db",
    "desktop.ini", ".DS_Store", "._a.png", "Icon\r", "__pycache__/a.pyc",
)  # fmt: skip


def test_what_systems_leave_behind_is_never_data(photos: Path) -> None:
    before = open_images([str(photos)])
    for name in SYSTEMS:
        for folder in (photos, photos / "inside"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((photos / "02.png").read_bytes())
    after = open_images([str(photos)])
    assert (after.paths, after.fingerprint, after.left_out) == (
        before.paths,
        before.fingerprint,
        before.left_out,
    )
    assert len(open_images([str(photos / "@eaDir")])) == 1  # asked for by name


WRITTEN = {
    "runs/mfm-1": ("run.json", "config.toml", "pictures/a.png", "checkpoints/x/model.safetensors"),
    "runs/compared": ("comparison.json", "config.toml", "scratch/run.json", "scratch/pictures/a.png"),
    "exports/a-1": ("model.safetensors", "config.json", "example.png"),
    "probed": ("probe.json", "table.md", "probe.png"),
    "packed": ("pack.json", "index.safetensors", "shard-000000.tar", "a.png"),
}


def test_what_sslkit_has_written_is_left_out(photos: Path) -> None:
    before = open_images([str(photos)])
    content = (photos / "02.png").read_bytes()
    for folder, names in WRITTEN.items():
        for name in names:
            (photos / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (photos / folder / name).write_bytes(content)
    for picture in ("pictures-mfm/map.png", "inside/map.png"):
        (photos / picture).parent.mkdir(exist_ok=True)
        (photos / picture).write_bytes(content)
        mark_drawn([photos / picture] * 2)
    after = open_images([str(photos)])
    assert (after.paths, after.fingerprint) == (before.paths, before.fingerprint)
    assert after.left_out.passed == ()
    assert set(after.left_out.written) == {
        *(f"{name}/" for name in WRITTEN),
        "inside/map.png",
        "pictures-mfm/map.png",
    }
    assert after.left_out.lines()[0].startswith(
        "left out, as sslkit wrote it: exports/a-1/, inside/map.png, "
    )


def test_pictures_beside_photos_are_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_images([str(photos)])
    monkeypatch.chdir(photos)
    for _ in range(2):
        files = api.visualize("mfm", ["."], kinds=["masks", "spectrum"], out=".", size=32)
    assert [file.name for file in files] == ["masks-2.png", "spectrum-2.png"]
    assert open_images(["."]).paths == before.paths


def test_a_run_inside_its_images(
    tiny: Callable[..., PretrainConfig], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    changes = {"data.sources": ["."], "schedule.epochs": 1, "run.pictures": 2}
    first = pretrain(tiny("photos/runs/one", **changes))
    assert any((first / "pictures").glob("*.png"))
    second = pretrain(tiny("photos/runs/two", **changes))
    assert (first / "images.jsonl.gz").read_bytes()[10:] == (second / "images.jsonl.gz").read_bytes()[10:]
    facts = second / "run.json"
    facts.write_text(facts.read_text().replace('"completed"', '"interrupted"'))
    assert resume(second) == second


def test_a_kept_listing_holds_all_of_it_and_is_renewed_with_the_rules(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "KEPT_FROM", 0)
    monkeypatch.setattr(listing, "SETTLED", 0)
    (mixed / "README").unlink()
    write_photos(mixed / "pictures", 2)
    mark_drawn([mixed / "pictures/inside/00.png"])
    first = listing.look_through(str(mixed))
    monkeypatch.setattr(listing, "_read", lambda path: pytest.fail("read anew"))
    assert listing.look_through(str(mixed)) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "KEPT_FROM", 0)
    monkeypatch.setattr(formats, "rules", lambda: "another plug-in")
    monkeypatch.setattr(formats, "is_image", lambda ending: ending == b".nef")
    assert len(listing.look_through(str(mixed)).images) == len(first.images) + 3
