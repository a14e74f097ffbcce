"""What a run can't do by its very numbers is told at the door, with what to type: and that works."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Called, write_stripes
from torch import nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock
from sslkit.training.loop.batch_norm_check import cure_of_one, fewest_at_once, refuse_one_value
from sslkit.training.loop.engine import accumulated
from sslkit.training.loop.intervals import refuse_longer_than_run
from sslkit.training.loop.out_of_memory import OutOfMemory
from sslkit.training.pretrain.pretrain import pretrain

QUICK = ["--size", "32", "--workers", "0", "--device", "cpu", "--precision", "float32", "-q"]


# ------------------------------------------------------------------------------ longer than the run


@pytest.mark.parametrize(
    ("changes", "told", "cure"),
    [
        ({"schedule.warmup_epochs": 3.1}, "a warm-up of 3.1 epochs", "-s schedule.warmup_epochs=0.2"),
        ({"schedule.warmup_epochs": 20.0}, "a warm-up of 20 epochs", "-s schedule.warmup_epochs=0.2"),
        ({"run.save_every": "5e"}, "saving every 5 epochs", "--save-every 1e"),
        ({"run.save_every": "13"}, "saving every 13 steps", "--save-every 1e"),
        ({"run.log_every": 13}, "logging every 13 steps", "-s run.log_every=4"),
        (
            {"schedule.warmup_epochs": 4.0, "run.save_every": "3.5e", "run.log_every": 50},
            "a warm-up of 4 epochs, saving every 3.5 epochs, logging every 50 steps",
            "-s schedule.warmup_epochs=0.2 --save-every 1e -s run.log_every=4",
        ),
    ],
)
def test_what_is_longer_than_the_run(
    tiny: Callable[..., PretrainConfig], tmp_path: Path, changes: dict[str, object], told: str, cure: str
) -> None:
    with pytest.raises(UserError) as caught:
        pretrain(tiny("run", **changes))
    assert caught.value.message == f"longer than the run (3 epochs of 4 steps): {told}"
    assert caught.value.hint == cure
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule.warmup_epochs": 3.0},
        {"run.save_every": "3e"},
        {"run.save_every": "12"},
        {"run.save_every": "9h"},
        {"run.log_every": 12},
        {"schedule.warmup_epochs": 20.0, "run.max_time": "1h"},
    ],
)
def test_what_is_as_long_as_the_run(tiny: Callable[..., PretrainConfig], changes: dict[str, object]) -> None:
    refuse_longer_than_run(tiny("run", **changes), 16, 15, SILENT)


def test_a_recipe_in_a_short_run_and_its_cure(photos: Path, command: Callable[..., Called]) -> None:
    words = ["pretrain", photos, "-c", "dino-vit-s16", "-b", "test_vit", "--epochs", 3]
    words += ["--batch-size", 8, "-s", "method.local_crops=0"]
    for more in (["--dry-run"], []):
        code, _, told = command(*words, *QUICK, *more)
        assert code == 2, told
        assert "a warm-up of 10 epochs" in told
        assert "method.warmup_teacher_epochs of 30 epochs" in told
    cure = told.splitlines()[1].removeprefix("hint: ")
    code, out, told = command(*words, *QUICK, *shlex.split(cure))
    assert (code, out) == (0, "runs/dino-test_vit-1\n"), told


def test_a_fine_tuning_and_its_cure(command: Callable[..., Called]) -> None:
    data = write_stripes(Path("data"), {"checks": 8, "rows": 8})
    words = ["finetune", "random/test_vit", data, "--epochs", 2, "--batch-size", 4, *QUICK]
    long = ["-s", "schedule.warmup_epochs=5", "--save-every", "500", "-s", "run.log_every=100"]
    for more in ([], ["--seeds", "0,1"]):
        code, _, told = command(*words, *long, *more)
        assert (code, told.count("\n")) == (2, 2), told
        assert (
            "longer than the run (2 epochs of 3 steps): a warm-up of 5 epochs, saving every 500 steps" in told
        )
        assert not Path("runs").exists()
    cure = told.splitlines()[1].removeprefix("hint: ")
    assert command(*words, *shlex.split(cure))[0] == 0


# ----------------------------------------------------------------------- one value for a batch norm


def test_the_smallest_part_of_a_step() -> None:
    for batch in range(1, 13):
        for devices in (one for one in (1, 2, 3, 4) if batch % one == 0):
            for micro in range(batch + 2):
                part = batch // devices
                sizes = [len(range(part)[i : i + (micro or part)]) for i in range(0, part, micro or part)]
                assert fewest_at_once(batch, micro, devices) == min(sizes)


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "photos", "-b", "resnet18", "--epochs", 1, "--batch-size", 1],
        ["pretrain", "photos", "-b", "resnet18", "--epochs", 1, "--batch-size", 8, "--micro-batch", 1],
        ["pretrain", "photos", "-b", "resnet18", "--epochs", 1, "--batch-size", 7, "--micro-batch", 3],
        ["pretrain", "photos", "-b", "resnet18", "--epochs", 1, "--batch-size", 1, "--dry-run"],
        ["bench", "photos", "-b", "resnet18", "--batch-size", 1, "--steps", 1],
        ["finetune", "random/resnet18", "data", "--epochs", 1, "--batch-size", 1],
        ["finetune", "random/resnet18", "data", "--epochs", 1, "-s", "run.micro_batch=1", "--batch-size", 4],
    ],
    ids=lambda words: " ".join(map(str, words[:1] + words[-2:])),
)
def test_one_image_at_once(photos: Path, command: Callable[..., Called], words: list[object]) -> None:
    write_stripes(Path("data"), {"checks": 8, "rows": 8})
    plain = ["-s", "augment.mix_probability=0"] if words[0] == "finetune" else []
    own = [word for word in QUICK if word != "-q"] if words[0] == "bench" else QUICK
    code, out, told = command(*words, *own, *plain)
    assert (code, out) == (2, ""), told
    lines = [line for line in told.splitlines() if line.startswith(("error", "hint", "Traceback"))]
    assert lines[0] == "error: one image at once leaves batch norm one value per channel"
    assert lines[1].startswith(("hint: --batch-size 2", "hint: --micro-batch", "hint: -s run.micro_batch="))
    assert not Path("runs").exists()


def test_one_image_at_once_where_maps_are_larger(tiny: Callable[..., PretrainConfig]) -> None:
    changes = {"model.backbone": "test_resnet", "model.patch_size": 0, "run.batch_size": 1}
    changes |= {"data.size": 64, "data.limit": 2, "schedule.epochs": 1, "schedule.warmup_epochs": 0.0}
    pretrain(tiny("run", **changes))


def test_cures_of_one_image_at_once() -> None:
    assert cure_of_one(1) == "--batch-size 2 or more"
    assert cure_of_one(4, 4) == "--batch-size 8 or more"
    assert cure_of_one(8) == "--micro-batch 2"
    assert cure_of_one(7) == "--micro-batch 0"


class Normed(nn.Module):
    """A batch norm of vectors, and a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch: dict[str, torch.Tensor], clock: Clock) -> dict[str, torch.Tensor]:
        return {"loss": self.norm(batch["image"]).sum() + torch.rand(())}


def test_the_trial_leaves_no_trace() -> None:
    module, cpu, clock = Normed().eval(), torch.device("cpu"), Clock(0, 1, 1, 0)
    two = {"image": torch.randn(2, 3), "index": torch.arange(2)}
    before, drawn = {n: t.clone() for n, t in module.state_dict().items()}, torch.get_rng_state()
    refuse_one_value(module, two, clock, cpu, "float32", "")
    one = {name: value[:1] for name, value in two.items()}
    with pytest.raises(UserError, match="one value per channel") as caught:
        refuse_one_value(module, one, clock, cpu, "float32", "the cure")
    assert caught.value.hint == "the cure"
    assert not module.training
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_batch_halved_to_one_ends_as_memory_that_ran_out() -> None:
    one = {"image": torch.randn(1, 3), "index": torch.arange(1)}
    with pytest.raises(OutOfMemory, match="one image at once leaves batch norm one value"):
        accumulated(Normed(), [one], Clock(3, 9, 3, 0), torch.device("cpu"), "float32")


@pytest.mark.slow
def test_one_image_for_each_of_two_processes(photos: Path) -> None:
    words = [
        "pretrain",
        photos,
        "-b",
        "resnet18",
        "--size",
        32,
        "--epochs",
        1,
        "--devices",
        2,
        "--batch-size",
        2,
    ]
    words += ["--batch-size", 2, "--workers", 0, "--device", "cpu", "-q", "--out", photos.parent / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    error = "error: one image at once leaves batch norm one value per channel"
    assert (done.returncode, done.stderr) == (2, f"{error}\nhint: --batch-size 4 or more\n")
