"""What cannot work is refused at the door, with nothing written; and finished work is never lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sslkit
from sslkit import api
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.labels import open_labelled
from sslkit.models.encoder import Encoder
from sslkit.models.weights import ENCODER_FILE, load_encoder, write_encoder

TINY = {"epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu", "pictures": 0, "precision": "float32"}


SIMCLR = {"method": "simclr", "backbone": "test_resnet", "size": 32}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of eight generated images at 32 px, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return api.pretrain("fractal:8", backbone="test_vit", size=32, out="run", **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "halonet26t", "size": 64}, "can't take images of 64 px"),
        ({"backbone": "test_vit", "size": 32, "settings": ["method.radius=500"]}, "keeps every bin"),
        ({"backbone": "test_vit", "size": 32, "settings": ["method.crop_scale=[1.0,0.2]"]}, "is not <="),
        ({"backbone": "vit_tiny_patch16_224", "size": 89}, "not a multiple of 16"),
        ({"backbone": "test_vit", "size": 32, "epoch": 1}, "pretrain has no option 'epoch'"),
        ({**SIMCLR, "batch_size": 1}, "simclr compares the images of a batch, and gets 1 at once"),
        ({**SIMCLR, "settings": ["run.micro_batch=7"]}, "simclr compares .* gets 1 at once"),  # 7 and 1 of 8
    ],
)
def test_pretrain_refuses_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        api.pretrain("fractal:8", out="run", **{**TINY, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_accumulation_that_changes_the_method_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {**TINY, **SIMCLR, "settings": ["run.micro_batch=4"]}
    api.pretrain("fractal:8", out="run", console=Console(), **options)  # type: ignore[arg-type]
    assert "simclr compares the images in memory: 8 in parts of 4" in capsys.readouterr().err
    api.pretrain("fractal:8", out="whole", console=Console(), **{**TINY, **SIMCLR})  # type: ignore[arg-type]
    assert "in memory" not in capsys.readouterr().err


def test_init_brings_backbone_and_size_and_its_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = api.pretrain("fractal:8", init=str(run), out="second", lr=1e-30, console=Console(), **TINY)
    assert "started from run" in capsys.readouterr().err
    before, after = load_encoder(run), load_encoder(second)
    assert (after.name, after.size) == ("test_vit", 32)
    assert torch.allclose(before.model.pos_embed, after.model.pos_embed, atol=1e-6)


def test_init_at_another_size_resamples_the_position_embedding(run: Path) -> None:
    second = api.pretrain("fractal:8", init=str(run), size=64, out="second", lr=1e-30, **TINY)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = load_encoder(run, size=64).vector(images)
        assert torch.allclose(load_encoder(second).vector(images), expected, atol=1e-4)


def test_a_run_is_found_from_another_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.fromarray(np.full((40, 40, 3), 30 * number, np.uint8)).save(tmp_path / f"photos/{number}.png")
    again = api.pretrain("photos", backbone="test_vit", size=32, out="again", **TINY).absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert api.visualize(again, kinds="views", out="pictures") == [Path("pictures/views.png")]


def test_a_report_that_fails_loses_no_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "finetune.json").write_text("{ not json", encoding="utf-8")
    result = api.probe(run, data="fractal:40", workers=0, device="cpu", console=Console())
    assert len(result.verdicts) == 4
    assert json.loads((run / "probe.json").read_text(encoding="utf-8"))["counts"]["validation"] == 8
    assert "report.html was not written" in capsys.readouterr().err


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    write_encoder(Encoder("test_vit", 32), tmp_path, ENCODER_FILE, {})
    whole = (tmp_path / ENCODER_FILE).read_bytes()
    (tmp_path / ENCODER_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="can't be read"):
        sslkit.load_encoder(tmp_path)


def test_a_finetuned_folder_is_no_pretraining_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = api.finetune(
        "random/test_vit", "fractal:40", size=32, epochs=1, batch_size=8, workers=0, device="cpu", out="ft"
    )
    assert made.scratch
    with pytest.raises(UserError, match="is not a pre-training run"):
        api.pretrain(resume="ft")


def table(folder: Path, rows: list[str]) -> str:
    for number in range(8):
        Image.fromarray(np.full((16, 16, 3), 9 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder / "t.csv")


def test_a_doubled_row_leaks_nothing_into_validation(tmp_path: Path) -> None:
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(8)]
    training, validation = open_labelled(table(tmp_path, ["path,label", *rows, *rows]))
    assert (len(training), len(validation)) == (6, 2)
    assert not set(training.paths) & set(validation.paths)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,label", "0.png,a", "0.png,b", "1.png,b"], "is labelled 'a' and 'b'"),
        (["path,label,split", "0.png,a,train", "1.png,b,train", "0.png,a,val"], "in the validation part"),
    ],
)
def test_contradicting_rows_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_labelled(table(tmp_path, rows))
