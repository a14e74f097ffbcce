"""Processes that read images die or hang, and training hardly notices."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sslkit.core.console import Console
from sslkit.data.images.picture import Picture
from sslkit.data.loading import limits, workers
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.loading.workers import WorkersLost
from sslkit.data.sources.image_set import open_images

TROUBLE = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "bus error": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "hung": lambda: time.sleep(600),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


@dataclass(frozen=True)
class Trap:
    """Shows an image's first pixel; at the one that is `grey` there is trouble, `times` times in all."""

    kind: str
    grey: int
    times: int
    folder: Path

    def __call__(self, image: Picture, random: np.random.Generator) -> Mapping[str, Tensor]:
        value = image.rgb().getpixel((0, 0))[0]  # type: ignore[index]
        if value == self.grey:
            for number in range(self.times):
                try:
                    (self.folder / f"trouble-{number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                TROUBLE[self.kind]()
        return {"image": torch.full((1,), value, dtype=torch.uint8)}


def batches(folder: Path, kind: str, times: int, console: Console) -> list[Any]:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(16):
        Image.new("L", (16, 16), 10 * number).save(folder / f"images/{number:02}.png")
    trap = Trap(kind, 70, times, folder)
    loader = pretraining_loader(
        open_images([str(folder / "images")]), trap, batch_size=4, seed=0, start_step=1, steps=8,
        steps_per_epoch=4, workers=2, console=console,
    )  # fmt: skip
    return [(batch["index"].tolist(), batch["image"][:, 0].tolist()) for batch in loader]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    monkeypatch.setattr("sslkit.data.loading.loader.LOOK", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(TROUBLE))
def test_reading_goes_on_at_the_same_image(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = batches(tmp_path, kind, 0, Console(quiet=True))
    handler = signal.getsignal(signal.SIGCHLD)
    assert batches(tmp_path, kind, 2, Console(quiet=True)) == undisturbed
    assert len(undisturbed) == 7
    err = capsys.readouterr().err
    reason = "a process that reads images died" if kind in ("killed", "bus error") else "no batch came for"
    assert err.count("warning: ") in (1, 2)  # two workers may die together
    assert f"warning: {reason}" in err
    assert "reading starts again at the same batch (1 of 3)" in err
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert not multiprocessing.active_children()


def stopped(end: Any) -> None:
    end.send("stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_worker_that_stops_while_it_hands_a_batch_over_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the worker itself has no timeout: its end of a pipe stays open while it is stopped."""
    monkeypatch.setattr(workers, "LOOK", 0.1)
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=stopped, args=(theirs,))
    worker.start()
    theirs.close()
    assert ours.recv() == "stopped"
    with workers._Watchdog([worker]) as watchdog, pytest.raises(workers._Lost, match="no batch came for"):
        next(workers._patiently(iter(ours.recv, None), watchdog))
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


def test_a_worker_that_we_ended_ourselves_did_not_run_out_of_memory() -> None:
    text = "DataLoader worker (pid(s) 17) exited unexpectedly"
    assert workers._why_lost(text, 310.0, killed=True) == "no batch came for 310 s"
    assert workers._why_lost(text, 310.0, killed=False) == workers.DIED


@pytest.mark.slow
def test_after_three_restarts_it_ends_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(WorkersLost, match=r"failed 4 times at the same batch: a process .* died") as error:
        batches(tmp_path, "killed", 99, Console(quiet=True))
    assert "--workers" in error.value.hint
    assert error.value.code == 1


def test_small_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "unable to write to file </torch_17_4>: No space left on device (28)"
    assert (
        workers._why_lost(f"Caught RuntimeError in …\n{text}", 0.0, False)
        == f"images can't be handed over: {text}"
    )
    assert workers._why_lost("shapes differ", 0.0, False) is None
    usage = limits.shutil.disk_usage("/")
    monkeypatch.setattr(limits, "open_files", lambda: None)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda path: usage._replace(total=64 << 20))
    assert limits.shortage() == "; /dev/shm has only 64 MB (docker: --shm-size=2g)"
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda path: usage._replace(total=8 << 30))
    assert limits.shortage() == ""


@pytest.mark.slow
def test_a_run_saves_what_it_learned_when_reading_fails(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.methods.frequency.mfm import MFM
    from sslkit.training.pretrain.pretrain import pretrain, resume

    whole = pretrain(tiny("whole"))
    config = tiny("run", **{"data.workers": 1})
    run, honest = Path(config.run.out), MFM.transform
    monkeypatch.setattr(MFM, "transform", lambda self: Dying(honest(self), run))
    with pytest.raises(WorkersLost):
        pretrain(config, Console(quiet=True))
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0] > "step-00000003"
    monkeypatch.undo()
    resume(run)
    ours, theirs = (load_file(path / "encoder.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@dataclass(frozen=True)
class Dying:
    """A view of MFM; dies once three steps are in the metrics."""

    view: Any
    run: Path

    def __call__(self, image: Picture, random: np.random.Generator) -> Mapping[str, Tensor]:
        file = self.run / "metrics.jsonl"
        if file.is_file() and len(file.read_text().splitlines()) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        views: Mapping[str, Tensor] = self.view(image, random)
        return views
