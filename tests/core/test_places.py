"""Where files go: names that several commands want at once, read-only places, disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import Called, called, export_test_vit, write_stripes

from sslkit import api
from sslkit.core import paths
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.setting import AUTO
from sslkit.core.errors import UserError
from sslkit.exporting import export
from sslkit.models.weights import load_encoder
from sslkit.training.pretrain.pretrain import pretrain
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import RunFolder, build_method

QUICK = ["--workers", "0", "--device", "cpu", "--precision", "float32", "-q"]
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], Path]]:
    """read_only(folder): nothing can be written there any more, until the test ends."""
    mounted: list[Path] = []
    closed: list[Path] = []

    def close(folder: Path) -> Path:
        if os.geteuid():  # root may write whatever the permissions say
            closed.extend([folder, *(path for path in folder.rglob("*") if path.is_dir())])
            for path in closed:
                path.chmod(0o555)
            return folder
        for words in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            if subprocess.run(["mount", *words], check=False, capture_output=True).returncode:
                pytest.skip("root, and nothing can be mounted here")
            mounted.extend([] if folder in mounted else [folder])
        return folder

    yield close
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
    for folder in closed:
        folder.chmod(0o755)


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., PretrainConfig]) -> Path:
    return pretrain(tiny("run", **{"schedule.epochs": 2}))


def exported() -> Path:
    Path("exported").mkdir()
    return export_test_vit(Path("exported"))


# --------------------------------------------------------------------------------------- names at once


def test_every_claim_is_somebodys_own(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a-2").symlink_to("nowhere")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: paths.claim_folder(tmp_path / "runs", "a"), range(64)))
    assert sorted(int(path.name.removeprefix("a-")) for path in found) == [1, *range(3, 66)]


def test_files_take_a_free_name_and_never_anothers(tmp_path: Path) -> None:
    def write(number: int) -> Path:
        unfinished = tmp_path / f".{number}"
        unfinished.write_text(str(number))
        return paths.put(unfinished, tmp_path / "a.csv")

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(write, range(64)))
    assert {path.name for path in found} == {"a.csv", *(f"a-{number}.csv" for number in range(2, 65))}
    assert [path.read_text() for path in found] == [str(number) for number in range(64)]
    assert len(list(tmp_path.iterdir())) == 64


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="can't create"):
        paths.claim_folder(tmp_path / "runs", "a")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="can't create"):
        paths.claim_folder(tmp_path / "gone", "a")


def test_runs_that_start_together(
    tiny: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny("unused", **{"run.out": AUTO, "schedule.epochs": 2})
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: pretrain(config), range(3)))
    assert sorted(map(str, found)) == [f"runs/mfm-test_vit-{number}" for number in (1, 2, 3)]
    for path in found:
        assert RunFolder.open(path).facts["status"] == "completed"
        assert f'out = "{path}"' in (path / "config.toml").read_text()
        assert not (path / "run.lock").exists()


def test_classifiers_and_exports_that_start_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_stripes(tmp_path / "data", {"checks": 6, "rows": 6})
    words = {"size": 32, "epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu"}
    with ThreadPoolExecutor(3) as pool:
        made = list(
            pool.map(lambda seed: api.finetune("random/test_vit", data, seed=seed, **words), range(3))
        )
        exported = list(pool.map(lambda _: export("random/test_resnet"), range(3)))
    assert sorted(str(one.folder) for one in made) == [f"runs/finetune-test_vit-{n}" for n in (1, 2, 3)]
    seeds = {str(one.folder): one.seed for one in made}
    for folder, seed in seeds.items():
        assert f"\nseed = {seed} " in (Path(folder) / "config.toml").read_text()
    assert sorted(one.folder.name for one in exported) == [f"test_resnet-{number}" for number in (1, 2, 3)]


def test_vectors_whose_name_was_taken_meanwhile(photos: Path, command: Callable[..., Called]) -> None:
    source = exported()
    for number in ("", "-2", "-3"):
        assert command("embed", source, photos, *QUICK)[:2] == (0, f"features{number}.safetensors\n")
    Path("features-4-neighbours.csv").touch()
    out = command("embed", source, photos, "--neighbours", 2, *QUICK)[1]
    assert out.split() == ["features-5-neighbours.csv", "features-5.safetensors"]


def test_a_beginning_that_fails_leaves_no_folder(
    tiny: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.training.pretrain import pretrain as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "list_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny("run"))
    assert not (tmp_path / "run").exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "list_images", full)
    with pytest.raises(UserError, match="No space left") as caught:
        pretrain(tiny("run"))
    assert caught.value.code == 1
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------- read-only sources


def test_a_source_that_can_only_be_read(
    run: Path, command: Callable[..., Called], read_only: Callable[[Path], Path]
) -> None:
    labelled = write_stripes(Path("data"), {"checks": 6, "rows": 6})
    before = sorted(path.name for path in run.rglob("*"))
    read_only(run)
    code, out, told = command("probe", run, labelled, "--no-cache", *QUICK[:-1])
    assert (code, "no difference" in out or "better" in out or "worse" in out) == (0, True), told
    assert "can't be written: the result lies in probe-run-1" in told
    assert {"probe.json", "table.md", "probe.png"} <= {path.name for path in Path("probe-run-1").iterdir()}
    code, out, told = command("visualize", run, "--kind", "curves", "--kind", "recon")
    assert (code, out.split()) == (0, ["pictures-run/curves.png", "pictures-run/recon.png"]), told
    words = ["--epochs", 1, "--batch-size", 4, "--out", "tuned", *QUICK]
    code, out, told = command("finetune", run, labelled, *words)
    assert (code, out) == (0, "tuned\n"), told
    assert told.count("\n") == 1
    assert "its report says nothing of this finetune" in told
    assert (Path("tuned") / "model.safetensors").is_file()
    assert command("export", run, "-q")[0] == 0
    assert command("embed", run, labelled, *QUICK)[0] == 0
    assert command("info", run)[0] == 0
    assert sorted(path.name for path in run.rglob("*")) == before


def test_images_that_can_only_be_read(
    photos: Path, command: Callable[..., Called], read_only: Callable[[Path], Path]
) -> None:
    read_only(photos)
    words = ["-b", "test_vit", "--size", 32, "--batch-size", 8, "--epochs", 1, *QUICK]
    assert command("pretrain", photos, *words) == (0, "runs/mfm-test_vit-1\n", "")
    assert command("check", photos)[0] in (0, 1)


# ------------------------------------------------------------------------------------------ at the door


def test_a_place_that_can_not_be_written_is_told_before_any_work(
    run: Path,
    photos: Path,
    command: Callable[..., Called],
    read_only: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = exported()
    labelled = write_stripes(Path("data"), {"checks": 6, "rows": 6})
    shut = Path("shut").absolute()
    shut.mkdir()
    (shut / "pictures").mkdir()
    read_only(shut)
    small = ["-b", "test_vit", "--size", 32, "--epochs", 1]
    for words in (
        ["pretrain", photos, *small, "--out", shut / "run"],
        ["pretrain", photos, *small, "--out", shut / "run", "--dry-run"],
        ["finetune", source, labelled, "--out", shut / "run"],
        ["finetune", source, labelled, "--seeds", "0,1", "--out", shut / "run"],
        ["export", source, shut / "new"],
        ["embed", source, photos, "--out", shut / "new.csv"],
        ["pack", photos, shut / "new"],
        ["check", photos, "--out", shut / "new.tsv"],
        ["probe", source, labelled, "--out", shut / "new"],
        ["visualize", source, photos, "--out", shut / "new"],
        ["visualize", source, photos, "--out", shut / "pictures"],
        ["demo", "--out", shut / "new"],
        ["methods", "--new", shut / "new.py"],
    ):
        code, out, told = command(*words)
        assert (code, out) == (2, ""), words
        assert told.startswith("error: "), told
        assert len(told.splitlines()) <= 2, told
    monkeypatch.chdir(shut)
    for words in (
        ["pretrain", photos, *small],
        ["finetune", source.absolute(), labelled.absolute()],
        ["export", source.absolute()],
        ["demo"],
    ):
        code, out, told = called([str(word) for word in words], monkeypatch, capsys)
        assert (code, out) == (2, ""), told
        assert told.startswith("error: can't create "), told


def test_a_disk_without_room_is_told_before_any_work(
    tiny: Callable[..., PretrainConfig], photos: Path, command: Callable[..., Called],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = exported()
    labelled = write_stripes(Path("data"), {"checks": 6, "rows": 6})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 2000))
    with pytest.raises(UserError, match=r"0\.01 GB needed for checkpoints, 0\.00 GB free"):
        pretrain(tiny("run"))
    for words in (
        ["finetune", source, labelled, "--out", "tuned"],
        ["embed", source, photos],
        ["pack", photos, "packed"],
    ):
        code, out, told = command(*words)
        assert (code, out) == (2, ""), told
        assert " GB free" in told
        assert told.splitlines()[-1].startswith("hint: ")
    assert not Path("tuned").exists()
    assert not Path("run").exists()


def test_what_checkpoints_are_estimated_to_need(run: Path, tiny: Callable[..., PretrainConfig]) -> None:
    config = tiny("other")
    encoder = load_encoder(run)
    from sslkit.methods.base import Info

    method = build_method(config, Info(16, 32, 36))
    held = max(checkpoint.committed(run / "checkpoints"))
    one = sum(file.stat().st_size for file in held.iterdir())
    product = sum(tensor.nbytes for tensor in encoder.model.state_dict().values())
    assert checkpoint.bytes_needed(method, "adamw") == pytest.approx(3 * one + product, rel=0.05)
