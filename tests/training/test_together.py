"""Several processes that train as one: the same weights, images and order, and one end for all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sslkit import api
from sslkit.core import rng
from sslkit.core.config.build import build_pretrain
from sslkit.core.distributed import collectives, environment, processes
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import KeyedBatches
from sslkit.methods import TEMPLATE, card
from sslkit.methods.base import Clock
from sslkit.training.loop.acceleration import agreed_micro_batch
from sslkit.training.loop.launch import _judged, launch
from sslkit.training.loop.signals import Interrupted

pytestmark = pytest.mark.slow  # each launch imports torch in every process

COMMON = {
    "backbone": "test_vit", "size": 32, "epochs": 3, "batch_size": 8, "workers": 0, "device": "cpu",
    "precision": "float32", "pictures": 0, "seed": 3,
}  # fmt: skip
SETTINGS = ["model.patch_size=8", "run.log_every=2", "run.patience=60"]


def train(photos: Path, out: Path, settings: tuple[str, ...] = (), **changes: Any) -> Path:
    return api.pretrain(photos, out=out, settings=[*SETTINGS, *settings], **{**COMMON, **changes})


def far(one: Path, other: Path, file: str = "encoder.safetensors") -> float:
    """The largest difference of any weight."""
    mine, theirs = load_file(one / file), load_file(other / file)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("method", ["mfm", "simclr"])
@pytest.mark.parametrize("devices", [2, 4])
def test_processes_equal_one_at_the_same_batch(
    photos: Path, tmp_path: Path, method: str, devices: int
) -> None:
    # SGD, because AdamW divides rounding errors of tiny gradients by tiny gradients.
    options = {"method": method, "settings": ("optim.name=sgd", "optim.lr=0.1")}
    one = train(photos, tmp_path / "one", **options)
    many = train(photos, tmp_path / "many", devices=devices, **options)
    assert far(one, many) < 1e-6
    assert losses(many) == pytest.approx(losses(one), abs=1e-6)
    assert json.loads((many / "run.json").read_text())["status"] == "completed"


def test_shared_statistics_make_a_cnn_the_same(photos: Path, tmp_path: Path) -> None:
    options = {"backbone": "test_resnet", "method": "simclr", "epochs": 1}
    settings = ("optim.name=sgd", "optim.lr=0.1")
    one = api.pretrain(
        photos, out=tmp_path / "one", settings=["run.log_every=2", *settings], **{**COMMON, **options}
    )
    apart, shared = (
        api.pretrain(
            photos, out=tmp_path / str(sync), devices=2, **{**COMMON, **options},
            settings=["run.log_every=2", "run.patience=60", f"model.sync_norm={sync}", *settings],
        )
        for sync in ("false", "true")
    )  # fmt: skip
    assert far(one, shared) < 1e-5
    assert far(one, apart) > 1e-4  # so the comparison can tell


def test_a_run_of_two_goes_on_as_one_and_as_four(photos: Path, tmp_path: Path) -> None:
    whole = train(photos, tmp_path / "whole", settings=("optim.name=sgd",), devices=2)
    assert stopped(photos, tmp_path / "first") == 143
    saved = max((tmp_path / "first/checkpoints").glob("step-*")).name
    assert 0 < int(saved.removeprefix("step-")) < 6
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    for devices, part in ((1, tmp_path / "first"), (4, tmp_path / "second")):
        api.pretrain(resume=part, devices=devices)
        assert far(whole, part) < 1e-6
        state = json.loads((part / "checkpoints/step-00000006/state.json").read_text())
        assert state["world"] == devices


def stopped(photos: Path, out: Path) -> int:
    """The exit code of a run of two that is sent SIGTERM at its first checkpoint."""
    command = [
        sys.executable, "-m", "sslkit", "pretrain", str(photos), "--out", str(out), "--devices", "2",
        "--save-every", "1", "-q", "-s", "optim.name=sgd", *flags(),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: any((out / "checkpoints").glob("step-????????")))
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def flags() -> list[str]:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in COMMON.items()]
    return [*named, *(part for setting in SETTINGS for part in ("-s", setting))]


def until(true: Callable[[], bool], patience: float = 90) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("world", [1, 2, 8, 64, 1024])
def test_shares_of_a_batch_are_disjoint_and_make_the_whole(world: int) -> None:
    def batches(share: tuple[int, int]) -> list[list[tuple[int, int]]]:
        return list(KeyedBatches(5000, 2048, 7, 1, 3, 2, share))

    parts = [batches((number, world)) for number in range(world)]
    whole = batches((0, 1))
    for step in range(2):
        assert [key for part in parts for key in part[step]] == whole[step]
    assert whole[0] == [(0, int(i)) for i in rng.permutation(5000, 7, 0, 2048, 4096)]


# ------------------------------------------------------------------------------------------------ ends


def test_unreadable_images_of_every_process_are_listed(photos: Path, tmp_path: Path) -> None:
    broken = sorted(photos.rglob("*.png"))[:2]
    for path in broken:
        path.write_bytes(b"no image")
    run = train(photos, tmp_path / "run", settings=("data.max_bad=0.5",), devices=2)
    listed = {line.split("\t")[0] for line in (run / "skipped.tsv").read_text().splitlines()}
    assert listed == {str(path) for path in broken}
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["skipped"] == 2


def test_a_process_that_dies_ends_all_and_the_run_goes_on(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "sslkit", "pretrain", str(photos), "--out", str(run), "--devices", "2",
        "--save-every", "2", *flags(), "--epochs", "400",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until(lambda: any((run / "checkpoints").glob("step-????????")))
    os.kill(trained_by(run, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "error: process 1 of 2 was killed by signal 9" in err
    assert "hint: sslkit pretrain --resume" in err
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


def test_a_process_that_stalls_is_named_after_the_time_out(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "sslkit", "pretrain", str(photos), "--out", str(run), "--devices", "2",
        "--save-every", "1000", *flags(), "--epochs", "4000", "-s", "run.patience=8",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until(lambda: (run / "metrics.jsonl").is_file())
    stalled = trained_by(run, 1)
    os.kill(stalled, signal.SIGSTOP)
    try:
        _, err = process.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):  # whoever started it has done so
            os.kill(stalled, signal.SIGKILL)
    assert process.returncode == 1
    assert "lost contact with the others (silent: 1)" in err
    assert "Traceback" not in err
    assert any((run / "checkpoints").glob("step-????????"))  # what was learned is kept


def trained_by(run: Path, rank: int) -> int:
    """The process of a rank: the first one holds the lock, the other one is its sibling."""
    first = int(json.loads((run / "run.lock").read_text())["pid"])
    parent = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    family = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [first, *(pid for pid in map(int, family) if pid != first)][rank]


@pytest.mark.parametrize("short", [0, 1])
def test_out_of_memory_in_one_process_ends_all_and_the_run_goes_on_with_less_at_once(
    short: int, photos: Path, tmp_path: Path
) -> None:
    plain, greedy = tmp_path / "plain.py", tmp_path / "greedy.py"
    text = TEMPLATE.read_text(encoding="utf-8")
    plain.write_text(text, encoding="utf-8")
    text = text.replace(
        "from torch import",
        "import torch\nfrom sslkit.core.distributed.collectives import rank\nfrom torch import",
    )
    case = f"if clock.step >= 2 and len(images) > 2 and rank() == {short}:"
    problem = f"        {case}\n            raise torch.OutOfMemoryError('full')\n"
    greedy.write_text(text.replace("        features =", problem + "        features ="), encoding="utf-8")
    options: dict[str, Any] = {"settings": ("optim.name=sgd", "optim.lr=0.1"), "devices": 2}
    whole, run = train(photos, tmp_path / "whole", method=str(plain), **options), tmp_path / "run"
    with pytest.raises(UserError) as error:
        train(photos, run, method=str(greedy), **options)
    assert error.value.message == f"process {short} of 2, step 3: out of memory with 4 images at once"
    assert error.value.hint == "--resume goes on with 2 at once; the batch of a step stays"
    assert error.value.code == 1
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    (saved,) = (run / "checkpoints").glob("step-*")
    state = json.loads((saved / "state.json").read_text())
    assert (saved.name, state["micro_batch"]) == ("step-00000002", 2)
    api.pretrain(resume=run, devices=2)
    assert far(whole, run) < 1e-6


class Gathering(torch.nn.Module):
    """Compares the images of all processes; takes 9 at most in the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 9 if collectives.rank() == 1 else 99
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, torch.Tensor], clock: Clock) -> dict[str, torch.Tensor]:
        loss = collectives.all_reduce_sum((self.weight * batch["image"]).sum())
        if len(batch["image"]) > self.room:  # only now: what it has sent must not meet another's next message
            raise torch.OutOfMemoryError("full")
        return {"loss": loss}


def fit(patience: float) -> list[int]:
    """What every process takes for the images at once that fit."""
    device = torch.device("cpu")
    config = build_pretrain("mfm", card("mfm").Config, {"data.sources": ["x"], "run.precision": "float32"})
    batch = {"image": torch.rand(16, 3, 4, 4), "index": torch.arange(16)}
    with processes.joined(device, patience):
        found = agreed_micro_batch(Gathering(), batch, Clock(0, 1, 1), config, device)
        return processes.all_gather_objects(found)


def test_processes_agree_on_the_images_at_once_that_fit_all() -> None:
    assert launch(fit, (30.0,), 2) == [8, 8]


def test_what_cannot_be_shared_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 8 images can't be shared by 3 processes alike") as error:
        train(photos, tmp_path / "run", devices=3)
    assert error.value.hint == "--batch-size 6"
    assert error.value.code == 2
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------- small parts


def test_a_death_explains_what_the_others_saw() -> None:
    lost = ("error", ("process 0 of 2, step 7: lost contact with the others", "", 1))
    with pytest.raises(UserError, match="process 1 of 2 was killed by signal 9"):
        _judged([lost, None], [0, -9])
    with pytest.raises(UserError, match="no room"):
        _judged([lost, ("error", ("no room", "", 1))], [0, 0])
    with pytest.raises(Interrupted):
        _judged([("stopped", 130), ("stopped", 130)], [0, 0])
    assert _judged([("done", "run"), ("done", "run")], [0, 0]) == "run"


def test_places_of_torchrun_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    assert not environment.placed()
    assert (environment.number(), environment.local(), environment.local_count()) == (0, 0, 1)
    slurm = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "STEP_TASKS_PER_NODE": "4(x2)", "JOB_ID": "70001"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert environment.placed()
    assert (environment.number(), environment.local(), environment.local_count()) == (5, 1, 4)
    assert environment.variables()["MASTER_PORT"] == "30001"
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert (environment.number(), environment.variables()["WORLD_SIZE"]) == (
        0,
        "2",
    )  # torchrun has the last word


def test_figures_are_means_without_what_is_absent() -> None:
    from sslkit.training.loop.health import averaged

    told = [({"loss": 1.0, "loss_low": float("nan")}, 0.5), ({"loss": 3.0, "loss_low": 4.0}, 0.25)]
    assert averaged(told) == ({"loss": 2.0, "loss_low": 4.0}, 0.5)
    assert np.isnan(averaged([({"loss": float("nan")}, 0.0), ({"loss": 1.0}, 0.0)])[0]["loss"])
    assert torch.tensor(averaged([({"loss_low": float("nan")}, 0.0)])[0]["loss_low"]).isnan()
