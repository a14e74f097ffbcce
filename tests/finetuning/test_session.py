"""What fine-tuning shares with pre-training: several processes, the clock, loggers, dry runs, memory."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STRIPES, write_stripes
from safetensors.torch import load_file
from torch import nn

from sslkit import api
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.finetuning.classifier import Classifier
from sslkit.finetuning.comparison import Comparison
from sslkit.finetuning.config import finetune_config
from sslkit.finetuning.finetune import dry_run, finetune
from sslkit.finetuning.prepare import prepare
from sslkit.methods.base import Clock
from sslkit.training.loop.acceleration import pieces

# Without drop path and mixing, which draw for the images of a process; SGD, because AdamW divides rounding
# errors of tiny gradients by tiny gradients.
EQUAL = ["optim.name=sgd", "optim.lr=1", "model.drop_path=0", "augment.mix_probability=0", "run.log_every=2"]
QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "float32", "workers": 0, "epochs": 2, "batch_size": 8, "size": 32,
}  # fmt: skip
SOURCE = "random/test_vit"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stripes(tmp_path_factory.mktemp("stripes"), STRIPES))


@pytest.fixture(scope="module")
def alone(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    finetune(SOURCE, labelled, out=out, settings=EQUAL, keep="best", **QUICK)
    return out


def far(one: Path, other: Path) -> float:
    """The largest difference of any weight."""
    mine, theirs = (load_file(run / "model.safetensors") for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def predictions(run: Path) -> list[tuple[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return [(row["path"], row["predicted"]) for row in csv.DictReader(file)]


# ------------------------------------------------------------------------------------ several processes


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(labelled: str, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = finetune(SOURCE, labelled, out=out, settings=EQUAL, keep="best", devices=2, **QUICK)
    assert far(alone, out) < 1e-6
    assert predictions(out) == predictions(alone)
    for mine, theirs in zip(lines(out), lines(alone), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert mine.get("held_out") == theirs.get("held_out")
    one, two = (json.loads((run / "run.json").read_text()) for run in (alone, out))
    assert two["status"] == "completed"
    error = one["result"].pop("calibration_error")
    assert two["result"]["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert {**one["result"], "folder": ""}.items() <= {**two["result"], "folder": ""}.items()
    assert result.to_document()["top1"] == two["result"]["top1"]
    assert "devices = 2" in (out / "config.toml").read_text()


@pytest.mark.slow
def test_a_comparison_of_two_processes_is_stopped_and_goes_on_as_one(
    labelled: str, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compared"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    command = [sys.executable, "-m", "sslkit", "finetune", "random/test_vit", labelled, *flags, "--out"]
    command = [part.replace("random/test_vit", str(alone)) for part in command]
    options = [str(out), "--devices", "2", "--baseline", "scratch", "--save-every", "1", "-q"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not any(out.glob("*-seed-0/checkpoints/step-????????")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [json.loads(file.read_text())["status"] for file in out.glob("*/run.json")] == ["interrupted"]
    result = finetune(resume=out, devices=1)
    assert isinstance(result, Comparison)
    assert [run.scratch for run in result.runs] == [False, True]
    assert len(predictions(result.runs[1].folder)) == result.counts["validation"]


def test_pairs_that_processes_can_t_have_are_refused(labelled: str, tmp_path: Path) -> None:
    mixed = {**QUICK, "batch_size": 6, "devices": 2, "out": tmp_path / "run"}
    with pytest.raises(UserError, match=r"batch_size 6 on 2 devices, .*mixing needs even numbers"):
        finetune(SOURCE, labelled, settings=["augment.cutmix=1", "augment.mix_probability=1"], **mixed)
    with pytest.raises(UserError, match="a batch of 8 images can't be shared by 3 processes alike"):
        finetune(SOURCE, labelled, settings=EQUAL, **{**mixed, "batch_size": 8, "devices": 3})
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------- the clock and loggers


def test_the_clock_ends_a_run_which_looks_at_its_last_step(labelled: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    own = {name: value for name, value in QUICK.items() if name != "epochs"}
    settings = [*EQUAL, 'run.loggers=["tensorboard"]', "run.log_every=100000"]
    finetune(SOURCE, labelled, out=out, settings=settings, keep="best", max_time="3s", **own)
    facts, last = json.loads((out / "run.json").read_text()), lines(out)[-1]
    assert facts["status"] == "completed"
    assert last["step"] == facts["step"]
    assert "held_out" in last
    assert list((out / "tensorboard").glob("events*"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in told.Scalars("held_out")] == [line["step"] for line in lines(out)]
    with pytest.raises(UserError, match="--epochs and --max-time both say how long"):
        finetune(SOURCE, labelled, max_time="3s", **QUICK)


# ------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_counts_all_runs_and_writes_nothing(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = dry_run(SOURCE, labelled, **QUICK)
    several = api.finetune_dry_run(SOURCE, labelled, seeds=[0, 1], **QUICK)
    assert several.steps == 2 * one.steps
    assert several.hours > one.hours > 0
    assert one.rates.whole > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--dry-run and bench time one process"):
        dry_run(SOURCE, labelled, devices=2, **QUICK)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="exists"):
        dry_run(SOURCE, labelled, out="taken", **QUICK)


def test_a_dry_run_s_disk_is_a_run_s(labelled: str, tmp_path: Path) -> None:
    """Three checkpoints and the classifier, against what a run wrote."""
    out = tmp_path / "run"
    said = dry_run(SOURCE, labelled, out=out, **QUICK)

    class Look(Console):
        def event(self, document: Any) -> None:
            folders = (out / "checkpoints").glob("step-????????")
            sizes.extend(sum(file.stat().st_size for file in one.glob("*.safetensors")) for one in folders)

    sizes: list[int] = []
    every = {**QUICK, "save_every": "1"}
    finetune(SOURCE, labelled, out=out, settings=["run.log_every=1"], console=Look(quiet=True), **every)
    product = (out / "model.safetensors").stat().st_size
    assert said.disk == pytest.approx(3 * max(sizes) + product, rel=0.05)


# ----------------------------------------------------------------------------------- compiled, in memory


@pytest.mark.slow
def test_the_backbone_is_compiled_in_place(labelled: str) -> None:
    wanted = finetune_config(SOURCE, labelled, settings=["run.compile=true"], flags=QUICK)
    plan = prepare(wanted, Console(quiet=True))
    model: Any = plan.classifier.model
    compiled = [piece._compiled_call_impl is not None for piece in pieces(model, plan.encoder.family)]
    assert len(compiled) > 2
    assert all(compiled)
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_memory_that_runs_out_leaves_pairs_to_mix(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 images 6 don't fit either; 3 would, but are no pairs."""
    honest, seen = Classifier.forward, []

    def forward(self: Classifier, batch: dict[str, torch.Tensor], clock: Clock) -> dict[str, torch.Tensor]:
        seen.append(len(batch["index"]))
        if seen[-1] > 4:
            raise torch.OutOfMemoryError("full")
        return honest(self, batch, clock)

    monkeypatch.setattr(Classifier, "forward", forward)
    settings = ["augment.cutmix=1", "augment.mix_probability=1", "augment.mixup=0.8", "run.log_every=1"]
    out = tmp_path / "run"
    finetune(SOURCE, labelled, out=out, settings=settings, **{**QUICK, "batch_size": 12, "epochs": 1})
    assert seen[:3] == [12, 6, 2]
    assert json.loads((out / "run.json").read_text())["at_once"] == {"asked": 0, "micro_batch": 2}
    assert lines(out)[-1]["micro_batch"] == 2


def test_images_at_once_that_fit_are_what_auto_means(labelled: str) -> None:
    plan = prepare(
        finetune_config(SOURCE, labelled, flags={**QUICK, "micro_batch": "auto"}), Console(quiet=True)
    )
    assert plan.config.run.micro_batch == 0
    assert "fits a GPU" in plan.reasons["run.micro_batch"]
    assert isinstance(plan.classifier, nn.Module)
