"""What `pretrain --dry-run` and `bench` say: arithmetic against closed forms, and that nothing is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslkit.cli import app
from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.core.console import SILENT
from sslkit.core.errors import UserError
from sslkit.methods import card
from sslkit.models.encoder import Encoder
from sslkit.training.loop.flops import counted_flops, known_peak
from sslkit.training.loop.rates import Rates
from sslkit.training.loop.throughput import ThroughputBench
from sslkit.training.pretrain.bench import prepare_job
from sslkit.training.pretrain.pretrain import pretrain

SMALL = ["-b", "test_vit", "--size", "32", "--batch-size", "4", "--workers", "0", "--precision", "float32"]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sslkit", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def rates(**changed: Any) -> Rates:
    sides: dict[str, Any] = {"loader": 200.0, "model": 100.0, "whole": 90.0, "bare": 120.0}
    return Rates(**{**sides, "wait": 0.01, "memory": 1, "workers": 2, **changed})


def configuration(**values: Any) -> Any:
    own = {"data.sources": ["x"], "data.workers": 2, "run.precision": "float32", "run.device": "cpu"}
    return build_pretrain("mfm", card("mfm").Config, {**own, **values})


def test_flops_of_a_linear_layer_are_counted_forward_and_backward() -> None:
    """B rows times an m × n matrix: 2 B m n, and as much for the weight's gradient; the input has none."""
    layer, rows = nn.Linear(5, 7, bias=False), torch.rand(3, 5)
    assert counted_flops(lambda: layer(rows).sum()) == 2 * (2 * 3 * 5 * 7)
    assert counted_flops(lambda: layer(rows.requires_grad_()).sum()) == 3 * (2 * 3 * 5 * 7)


def test_flops_of_a_vit_hold_its_attention() -> None:
    """ViT-Ti/16 at 224 px, by hand: 12 blocks on 197 tokens of width 192, attention included."""
    encoder, images = Encoder("vit_tiny_patch16_224", 224), torch.rand(1, 3, 224, 224)
    tokens, width = 197, 192
    block = 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    patches = 2 * 196 * 768 * width
    found = counted_flops(lambda: encoder.vector(images).sum())
    assert found == pytest.approx(3 * 12 * block + 2 * patches, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", 0),  # not an A10
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 0),  # slower, by the same name
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0),
        ("NVIDIA GeForce RTX 4090", 0),
        ("Tesla V100-SXM2-16GB", 0),
    ],
)
def test_peaks_belong_to_whole_names(name: str, teraflops: float) -> None:
    assert known_peak(name) == teraflops * 1e12


def test_use_is_flops_times_rate_by_peak() -> None:
    found = rates(flops=3e9, bare_flops=2e9, peak=1e12)
    assert found.use == {
        "bare": pytest.approx(0.24),
        "model": pytest.approx(0.3),
        "whole": pytest.approx(0.27),
    }
    assert rates(flops=3e9).use == {}


def test_the_slower_side_is_the_limit() -> None:
    assert rates().limit(configuration()) == "the model is the limit: --compile, --precision bfloat16"
    slow, decoded = rates(loader=50.0), rates(loader=50.0, kept=1)
    off = configuration(**{"data.cache": "off"})
    several = "the loader is the limit: more than 2 --workers"
    assert slow.limit(configuration()) == f"{several}, or sslkit pack"
    assert slow.limit(off) == f"{several}, or --cache auto, or sslkit pack"
    assert decoded.limit(configuration()) == several
    alone = rates(loader=50.0, kept=1, workers=0)  # where more of them would not read
    assert alone.limit(configuration()) == "the loader is the limit: a smaller --size"
    assert alone.limit(configuration(**{"data.workers": 0})).endswith("the limit: a smaller --size")
    done = {"run.compile": True, "run.precision": "bfloat16"}
    assert rates().limit(configuration(**done)) == "the model is the limit: a smaller --size or --backbone"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_dry_run_writes_nothing(
    workers: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["pretrain", str(photos), *SMALL, "--epochs", "3", "--dry-run", "--json", "--workers", workers]
    assert run(words, monkeypatch) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 3 * (16 // 4)
    assert said["kept"] == 16 * 40 * 36 * 3
    assert said["decoding"] > 0
    assert said["hours"] == pytest.approx((said["decoding"] + said["steps"] * 4 / said["whole"]) / 3600)
    assert min(said["loader"], said["model"], said["whole"], said["disk"], said["memory"]) > 0
    assert 0 <= said["wait"] < 1


def test_a_dry_run_with_a_time_limit_says_how_many_steps_fit(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", str(photos), *SMALL, "--max-time", "90s", "--dry-run", "--json", "--workers", "0"]
    assert run(words, monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["hours"] == pytest.approx(90 / 3600)
    assert said["steps"] == pytest.approx((90 - said["decoding"]) * said["whole"] / 4, abs=1)


@pytest.mark.parametrize(
    "words", [["--cache", "off"], ["--epochs", "1"]], ids=["not wanted", "each image is read once"]
)
def test_a_dry_run_reads_files_where_the_run_would(
    words: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pretrain", str(photos), *SMALL, "--dry-run", "--json", *words], monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kept"], said["decoding"]) == (0, 0)


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_loader_and_whole_read_from_what_is_kept(
    cache: str, photos: Path, tiny: Callable[..., PretrainConfig]
) -> None:
    bench = ThroughputBench(prepare_job(tiny("none", **{"data.cache": cache}), SILENT), SILENT)
    for path in photos.rglob("*.png"):
        path.unlink()
    for side in (bench.loader, bench.whole):
        if cache == "off":
            with pytest.raises((UserError, OSError)):
                side(2)
        else:
            assert side(2).seconds > 0


def test_what_an_init_refuses_a_dry_run_does(
    tiny: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(pretrain(tiny("first", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0.0})))
    source = tiny("none").data.sources[0]
    words = ["pretrain", source, "--init", first, *SMALL, "--epochs", "1", "--dry-run"]
    assert run([*words, "-s", "model.patch_size=8"], monkeypatch) == 0
    assert f"started from {first}" in capsys.readouterr().err
    resnet = ["-b", "test_resnet", "--size", "64", "-s", "model.patch_size=0"]
    assert run([*words, *resnet], monkeypatch) == 2
    assert "lacks" in capsys.readouterr().err


def test_a_dry_run_s_disk_is_a_run_s(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Three checkpoints and the encoder, against the size of what a run really wrote."""
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", str(photos), *SMALL, "--epochs", "2", "--pictures", "0", "-q"]
    assert run([*words, "--dry-run", "--json"], monkeypatch) == 0
    disk = json.loads(capsys.readouterr().out)["disk"]
    assert run([*words, "--save-every", "2"], monkeypatch) == 0
    made = Path(capsys.readouterr().out.strip())
    (newest, *_) = sorted((made / "checkpoints").iterdir(), reverse=True)
    checkpoint = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    encoder = (made / "encoder.safetensors").stat().st_size
    assert disk == pytest.approx(3 * checkpoint + encoder, rel=0.05)


def test_a_dry_run_is_no_resume_and_takes_no_taken_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    assert run(["pretrain", "--resume", "somewhere", "--dry-run"], monkeypatch) == 2
    assert "before it begins" in capsys.readouterr().err
    assert run(["pretrain", str(photos), "--out", str(tmp_path / "taken"), "--dry-run"], monkeypatch) == 2
    assert "exists" in capsys.readouterr().err
    assert run(["pretrain", str(photos), "--devices", "2", "--dry-run"], monkeypatch) == 2
    assert "time one process" in capsys.readouterr().err
    assert run(["pretrain", str(photos), "--max-time", "8x", "--dry-run"], monkeypatch) == 2
    assert "8x" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["mfm", "simclr"])
def test_bench_compares_with_the_bare_backbone(
    method: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(["bench", str(photos), "-m", method, *SMALL, "--steps", "3", "--json", "-q"], monkeypatch) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = json.loads(capsys.readouterr().out)
    assert min(said[side] for side in ("loader", "bare", "model", "whole", "peak")) > 0
    views = {"mfm": 1, "simclr": 2}[method]  # and a head
    assert 1 <= said["flops"] / (views * said["bare_flops"]) < 1.5
    assert said["use"]["bare"] == pytest.approx(said["bare"] * said["bare_flops"] / said["peak"])


def test_bench_without_json_is_a_table(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(photos), *SMALL, "--steps", "1", "-q"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14].strip() for line in lines[1:5]] == [
        "loader only",
        "bare backbone",
        "model only",
        "end to end",
    ]
    assert "100.0%" in lines[2]
