"""Precision and memory format that a few steps decide: where, by which rule, and what a run notices of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sslkit.core import device
from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.core.console import SILENT
from sslkit.core.device import cpu_bfloat16
from sslkit.methods import TEMPLATE, card
from sslkit.training.pretrain import fastest
from sslkit.training.pretrain.auto import Resolved, resolve
from sslkit.training.pretrain.bench import prepare_job
from sslkit.training.pretrain.fastest import Trial, decided, open_ways
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.pretrain.timed import FEW, Way, timed

CPU = torch.device("cpu")
LAST, PLAIN = "channels_last", "contiguous"
F, B = "float32", "bfloat16"
ALL = [(F, LAST), (F, PLAIN), (B, LAST), (B, PLAIN)]
SWIN = "swin_tiny_patch4_window7_224"
Tiny = Callable[..., PretrainConfig]


def resolved(backbone: str, method: str = "mfm", **own: Any) -> Resolved:
    known = card(method)
    values = {
        **known.facts["defaults"],
        "model.backbone": backbone,
        "data.size": 64,
        "run.batch_size": 4,
        "run.out": "nowhere",
        **own,
    }
    return resolve(build_pretrain(method, known.Config, values), 64, 64, CPU)


def on_a_chip(can: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says it multiplies bfloat16, or does not, or says nothing."""
    for module in (fastest, device):
        monkeypatch.setattr(module, "cpu_bfloat16", lambda: can)


# ------------------------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 avx2\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("vendor_id : GenuineIntel\nflags\t\t: fpu avx2 avx512f\nbugs : none\n", False),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", None),  # of an ARM: torch may have no kernel for it
        (None, None),
    ],
)
def test_what_a_chip_says_of_bfloat16(told: str | None, expected: bool | None, tmp_path: Path) -> None:
    if told is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(told)
    assert cpu_bfloat16(tmp_path) is expected


@pytest.mark.parametrize(
    ("backbone", "can", "own", "expected"),
    [
        ("test_vit", True, {}, []),
        ("test_resnet", True, {}, []),
        ("test_convnext", True, {}, ALL),
        ("fastvit_t8", True, {}, [(F, PLAIN), (B, PLAIN)]),  # a CPU can't train it in channels_last
        ("test_convnext", False, {}, []),
        ("test_vit", False, {}, []),
        ("test_vit", None, {}, [(F, PLAIN), (B, PLAIN)]),
        ("test_resnet", None, {}, [(F, LAST), (B, LAST)]),
        (SWIN, True, {}, [(F, PLAIN), (B, PLAIN)]),
        ("test_convnext", True, {"run.precision": B}, []),
        ("test_convnext", True, {"model.memory_format": PLAIN}, [(F, PLAIN), (B, PLAIN)]),
        ("test_convnext", True, {"model.memory_format": LAST}, [(F, LAST), (B, LAST)]),
        ("test_convnext", True, {"run.compile": True}, []),
    ],
)
def test_only_what_no_table_knows_is_open(
    backbone: str, can: bool | None, own: dict[str, Any], expected: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_chip(can, monkeypatch)
    found = open_ways(resolved(backbone, **own), CPU)
    assert found == expected if expected else len(found) == 1


def test_a_gpu_is_known() -> None:
    assert len(open_ways(resolved("test_convnext"), torch.device("cuda"))) == 1


# ---------------------------------------------------------------------------------------------- by which rule


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([100, 100, 91, 91], (F, LAST)),  # not clearly faster
        ([100, 100, 90, 90], (B, LAST)),
        ([100, 80, 79, 70], (B, PLAIN)),
        ([100, 80, 79, 75], (F, PLAIN)),  # the best of float32 is what counts
        ([100, 95, 300, 300], (F, LAST)),
        ([300, 300, 100, 91], (B, LAST)),
    ],
)
def test_the_usual_is_left_for_what_is_clearly_faster(milliseconds: list[int], expected: Way) -> None:
    trial = Trial(8, {way: ms / 1000 for way, ms in zip(ALL, milliseconds, strict=True)})
    config = decided(resolved("test_convnext"), ALL, trial).config
    assert (config.run.precision, config.model.memory_format) == expected


def test_both_figures_are_told() -> None:
    times = [0.041, 0.039, 0.078, 1.234]
    reasons = decided(resolved("test_convnext"), ALL, Trial(8, dict(zip(ALL, times, strict=True)))).reasons
    assert reasons["run.precision"] == "a step of 8 images took 41 ms of processor time, 78 ms in bfloat16"
    assert (
        reasons["model.memory_format"]
        == "a step of 8 images took 41 ms of processor time, 39 ms in contiguous"
    )


def test_without_figures_the_table_stays() -> None:
    before = resolved("test_convnext")
    after = decided(before, ALL, Trial(problem="no such file"))
    assert after.config == before.config
    assert after.reasons["run.precision"] == "what the chip multiplies fastest; not measured: no such file"


class Machine:
    """Steps that move a clock by what they cost, twice that for the first one of each size and way.

    Args:
        busy: how many times as long they take by the clock as by the processor's, one number a step.
    """

    def __init__(self, an_image: dict[Way, float], busy: Sequence[float] = (1,)) -> None:
        self.an_image, self.busy = an_image, busy
        self.now = self.work = 0.0
        self.seen: list[tuple[Way, int]] = []

    def step(self, way: Way, count: int) -> None:
        own = self.an_image[way] * count * (1 if (way, count) in self.seen else 2)
        self.now += own * self.busy[len(self.seen) % len(self.busy)]
        self.work += own
        self.seen.append((way, count))

    def timed(self, images: int, limit: float, fewest: int = 1) -> tuple[int, dict[Way, float]]:
        ways = list(self.an_image)
        return timed(self.step, ways, images, fewest, limit, lambda: self.now, lambda: self.work)


@pytest.mark.parametrize(
    ("an_image", "images", "expected"),
    [
        (0.001, 64, 64),  # a fast machine: the real step
        (0.001, 4, 4),
        (0.020, 64, 47),  # 8 images take 0.16 s, at first 0.32: 7.52 s are left for 4 turns of both ways
        (0.800, 64, FEW),
    ],
)
def test_as_many_images_as_there_is_time_for(an_image: float, images: int, expected: int) -> None:
    machine = Machine({(F, LAST): an_image, (B, LAST): an_image})
    count, found = machine.timed(images, 8.0)
    assert count == expected
    assert found == pytest.approx(dict.fromkeys(found, an_image * count))
    assert machine.now < 8.0 or count == FEW
    assert Machine({(F, LAST): 9.0, (B, LAST): 9.0}).timed(64, 8.0, fewest=32)[0] == 32


def test_what_other_programs_do_does_not_count() -> None:
    machine = Machine({(F, LAST): 0.01, (B, LAST): 0.005}, busy=(1, 3, 2, 9, 1, 4, 2))
    _, found = machine.timed(8, 50.0)
    assert found == pytest.approx({(F, LAST): 0.08, (B, LAST): 0.04})


# ------------------------------------------------------------------------------ the run notices nothing


@pytest.mark.slow
def test_a_run_that_measured_is_the_one_with_the_same_by_hand(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are really tried; resuming and repeating do not try again, whatever it would say."""
    on_a_chip(True, monkeypatch)
    own = {"model.backbone": "test_convnext", "model.patch_size": 0, "schedule.epochs": 1}
    asked = tiny("measured", **own, **{"run.precision": "auto", "schedule.warmup_epochs": 0.5})
    run = pretrain(asked)
    written = (run / "config.toml").read_text()
    monkeypatch.setattr(fastest, "tried", lambda *_: pytest.fail("tried again"))
    chosen = {
        key: written.split(f"{key.partition('.')[2]} = ")[1].split('"')[1]
        for key in ("run.precision", "model.memory_format")
    }
    assert (chosen["run.precision"], chosen["model.memory_format"]) in ALL
    by_hand = pretrain(tiny("by hand", **own, **chosen, **{"schedule.warmup_epochs": 0.5}))
    ours, theirs = (load_file(one / "encoder.safetensors") for one in (run, by_hand))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    resume(run, epochs=2)
    assert [line for line in (run / "config.toml").read_text().splitlines() if "precision" in line] == [
        line for line in written.splitlines() if "precision" in line
    ]


def test_a_rehearsal_tells_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_chip(True, monkeypatch)
    found = Trial(4, dict(zip(ALL, [0.2, 0.1, 0.3, 0.3], strict=True)))
    monkeypatch.setattr(fastest, "tried", lambda *_: found)
    own = {"model.backbone": "test_convnext", "model.patch_size": 0, "run.precision": "auto"}
    config = prepare_job(tiny("run", **own), SILENT).config
    assert (config.run.precision, config.model.memory_format) == (F, PLAIN)


@pytest.mark.slow
def test_a_way_that_ends_its_process_is_left_out(tmp_path: Path) -> None:
    """As FastViT did in channels_last: here by a method that dies in bfloat16."""
    text = TEMPLATE.read_text(encoding="utf-8")
    fatal = '        if torch.is_autocast_enabled("cpu"):\n            os.abort()\n'
    old = '        images = batch["image"]\n'
    assert old in text
    text = text.replace(old, fatal + old).replace("from dataclasses", "import os\nfrom dataclasses", 1)
    own = tmp_path / "fatal.py"
    own.write_text(text.replace("from torch import", "import torch\nfrom torch import", 1), encoding="utf-8")
    ready = resolved("test_convnext", str(own))
    trial = fastest.tried(ready, [(F, LAST), (B, LAST)], SILENT)
    assert list(trial.seconds) == [(F, LAST)], trial.problem
    after = decided(ready, [(F, LAST), (B, LAST)], trial)
    assert after.config.run.precision == F
    assert after.reasons["run.precision"].endswith("; the other one ended the process that tried it")


def test_what_can_t_be_tried_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    trial = fastest.tried(resolved("test_convnext"), ALL, SILENT)
    assert not trial.seconds
    assert "No such file" in trial.problem


# ------------------------------------------------------------------------------------------------ all agree


ONE_OF_TWO = """
import sys, torch
from sslkit.core.distributed import environment as place
from sslkit.core.distributed import processes
from sslkit.core.config.build import (build_pretrain)
from sslkit.core.console import SILENT
from sslkit.methods import card
from sslkit.training.pretrain import fastest
from sslkit.training.pretrain.auto import resolve

known, cpu = card("mfm"), torch.device("cpu")
own = {"model.backbone": "test_convnext", "data.size": 64, "run.batch_size": 4, "run.out": "nowhere"}
ready = resolve(build_pretrain("mfm", known.Config, {**known.facts["defaults"], **own}), 64, 64, cpu)
fastest.cpu_bfloat16 = lambda: True
times = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]][place.number()]  # alone, each would choose another way
fastest.tried = lambda ready, ways, console: fastest.Trial(8, dict(zip(ways, times, strict=True)))
with processes.joined(cpu, 60):
    config = fastest.measured(ready, cpu, SILENT).config
print(config.run.precision, config.model.memory_format)
"""


@pytest.mark.slow
def test_processes_that_train_together_choose_alike() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-c", ONE_OF_TWO]
        environment = {**os.environ, **meeting, **place}
        both.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    assert [one.communicate(timeout=120)[0] for one in both] == [f"{F} {LAST}\n"] * 2
