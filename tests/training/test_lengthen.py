"""Runs that get another length, and runs that have not ended as SOURCE."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Called, write_stripes
from resuming import Stopper, assert_same_end, metrics, run_until
from safetensors.torch import load_file

from sslkit import api
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.exporting import export
from sslkit.models.weights import architecture, load_encoder
from sslkit.training.loop.signals import Interrupted
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run.folder import RunFolder, load_method, read_configuration
from sslkit.training.run.lock import LOCK_FILE

Tiny = Callable[..., PretrainConfig]


class Listener(Console):
    """Remembers what people read."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[str] = []

    def say(self, text: str = "") -> None:
        self.told.append(text)


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


# ---------------------------------------------------------------------------------------- other lengths


def test_a_complete_run_goes_on_along_the_longer_schedule(tiny: Tiny) -> None:
    """The rates are those of a run of that length; the first steps were made at the shorter one's."""
    whole = pretrain(tiny("whole", **{"schedule.epochs": 5}))
    run, listener = pretrain(tiny("run")), Listener()
    short = {line["step"]: line["lr"] for line in metrics(run)}
    long = {line["step"]: line["lr"] for line in metrics(whole)}
    assert resume(run, listener, epochs=5) == run
    rates = {line["step"]: line["lr"] for line in metrics(run)}
    assert rates == {step: (short if step <= 12 else long)[step] for step in range(1, 21)}
    assert rates[13] > rates[12]
    settings = read_configuration(run / "config.toml")
    assert (settings.schedule.epochs, settings.schedule.warmup_epochs) == (5, 1.0)
    assert RunFolder.open(run).facts["status"] == "completed"
    text = "\n".join(listener.told)
    assert f"{run}: 5 epochs now, instead of 3 epochs" in text
    assert f"goes on at {long[13]:.2e}, from {short[12]:.2e}" in text
    assert "near, but not equal to, that of 5 epochs from the start" in text
    encoder, checkpoint = (
        load_file(run / file)
        for file in ("encoder.safetensors", "checkpoints/step-00000020/model.safetensors")
    )
    for name, tensor in encoder.items():
        assert torch.equal(tensor, checkpoint[f"encoder.model.{name}"])


def test_a_longer_run_that_is_stopped_ends_where_an_undisturbed_one_ends(tiny: Tiny) -> None:
    one, other = pretrain(tiny("one")), pretrain(tiny("other"))
    resume(one, epochs=5)
    with pytest.raises(Interrupted):
        resume(other, Stopper(14, stop), epochs=5)
    resume(other)
    assert_same_end(other, one)


def test_a_stopped_run_may_become_longer_or_shorter(tiny: Tiny) -> None:
    for name, epochs in (("longer", 4), ("shorter", 2)):
        run = run_until(tiny(name), 5, stop)
        resume(run, epochs=epochs)
        assert metrics(run)[-1]["step"] == 4 * epochs
        assert read_configuration(run / "config.toml").schedule.epochs == epochs


def test_what_is_no_longer_run_is_refused_and_its_cure_works(tiny: Tiny) -> None:
    run = pretrain(tiny("run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for epochs in (1, 2, 3):
        with pytest.raises(UserError) as caught:
            resume(run, epochs=epochs)
        assert caught.value.message == f"--epochs {epochs}: {run} has made 12 steps already, 3 epochs"
        assert caught.value.hint == "--epochs 4 or more"
    with pytest.raises(UserError, match=">= 1"):
        resume(run, epochs=0)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} <= {run / "log.txt"}
    assert set(after) == set(before)
    resume(run, epochs=4)
    stopped = run_until(tiny("stopped"), 5, stop)
    with pytest.raises(UserError, match=r"has made 5 steps already, 1\.25 epochs") as caught:
        resume(stopped, epochs=1)
    assert caught.value.hint == "--epochs 2 or more"
    resume(stopped, epochs=2)


def test_a_run_by_the_clock_gets_epochs(tiny: Tiny) -> None:
    run = run_until(tiny("run", **{"run.max_time": "1h"}), 5, stop)
    resume(run, epochs=2)
    settings = read_configuration(run / "config.toml")
    assert (settings.run.max_time, settings.schedule.epochs, metrics(run)[-1]["step"]) == ("", 2, 8)


def test_results_of_the_shorter_run_are_set_aside(tiny: Tiny, command: Callable[..., Called]) -> None:
    run = pretrain(tiny("run"))
    (run / "probe.json").write_text("{}")
    code, out, told = command("pretrain", "--resume", "run")
    assert (code, out) == (2, "")
    hint = next(line for line in told.splitlines() if line.startswith("hint: "))
    more = hint.removeprefix("hint: ").split(" trains on")[0]
    assert more == "sslkit pretrain --resume run --epochs 6"
    code, out, told = command(*more.split()[1:])
    assert (code, out) == (0, "run\n")
    assert "probe.json is about the encoder of step 12: now probe-of-step-12.json" in told
    assert not (run / "probe.json").exists()
    code, _, told = command("pretrain", "--resume", "run", "--epochs", 9, "--lr", 1)
    assert (code, told.splitlines()[0].startswith("error: --resume goes alone")) == (2, True)


# ------------------------------------------------------------------------------- before a run has ended


def test_a_stopped_run_gives_its_newest_checkpoint(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    for number, model in enumerate(({}, {"model.backbone": "test_resnet", "model.patch_size": 0})):
        run, listener = run_until(tiny(f"run-{number}", **model), 5, stop), Listener()
        encoder, expected = load_encoder(run, console=listener), load_method(run).encoder
        told = f"{run} has not ended: the weights are those of its newest checkpoint, step 5"
        assert listener.told == [told]
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(encoder.vector(images), expected.vector(images))
        assert not encoder.training
        assert architecture(str(run)).name == encoder.name
        made = export(run, tmp_path / f"exported-{number}")
        assert made.compared == "8 of the run's images"
        assert torch.equal(load_encoder(made.folder).vector(images), encoder.vector(images))
        api.embed(run, photos, tmp_path / f"{number}.npz")
        with np.load(tmp_path / f"{number}.npz") as vectors:
            assert str(vectors["sha256"]) == sha256(run / "checkpoints/step-00000005/model.safetensors")
        resume(run)
        listener.told.clear()
        finished = load_encoder(run, console=listener)
        assert listener.told == []
        assert not torch.equal(finished.vector(images), encoder.vector(images))


def test_verbs_of_a_stopped_run(tiny: Tiny, command: Callable[..., Called]) -> None:
    run = run_until(tiny("run"), 5, stop)
    labelled = write_stripes(Path("data"), {"checks": 6, "rows": 6})
    quick = ["--workers", 0, "--device", "cpu", "--precision", "float32"]
    told = "run has not ended: the weights are those of its newest checkpoint, step 5"
    for words in (
        ["probe", "run", labelled, *quick],
        ["finetune", "run", labelled, "--epochs", 1, "--batch-size", 4, *quick],
        ["export", "run"],
        ["embed", "run", labelled, *quick],
        ["visualize", "run", "--kind", "recon"],
        ["pretrain", "photos", "--init", "run", "--epochs", 1, "--batch-size", 8, "-o", "next", *quick],
    ):
        code, _, said = command(*words)
        assert (code, told in said) == (0, True), said
    assert json.loads((run / "probe.json").read_text())
    assert RunFolder.open(run).facts["status"] == "interrupted"
    assert not (run / LOCK_FILE).exists()


def test_a_run_that_has_saved_nothing(tiny: Tiny) -> None:
    run = run_until(tiny("run"), 5, stop)
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(UserError, match="has no encoder yet"):
        load_encoder(run)


def test_a_longer_run_that_is_stopped_gives_its_newest_weights(tiny: Tiny) -> None:
    run, images = pretrain(tiny("run")), torch.rand(2, 3, 32, 32)
    complete = load_encoder(run).vector(images)
    with pytest.raises(Interrupted):
        resume(run, Stopper(14, stop), epochs=5)
    assert (run / "encoder.safetensors").is_file()
    assert not torch.equal(load_encoder(run).vector(images), complete)
    assert torch.equal(load_encoder(run).vector(images), load_method(run).encoder.vector(images))


def test_settings_that_are_another_networks(tiny: Tiny) -> None:
    run = run_until(tiny("run"), 5, stop)
    text: Any = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('backbone = "test_vit"', 'backbone = "test_resnet"'))
    with pytest.raises(UserError) as caught:
        load_encoder(run)
    assert "\n" not in caught.value.message
