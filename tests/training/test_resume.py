"""A run that was stopped, by a signal or by force, ends bit for bit where an undisturbed one ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import Stopper, assert_same_end, metrics, run_until, status
from safetensors.torch import load_file

from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.training.loop.signals import Interrupted
from sslkit.training.pretrain.pretrain import pretrain, resume

Tiny = Callable[..., PretrainConfig]


def crash() -> None:
    raise KeyError("power cut")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_by_a_signal(tiny: Tiny, number: signal.Signals, workers: int) -> None:
    whole = pretrain(tiny("whole"))
    config = tiny("stopped", **{"data.workers": workers})
    with pytest.raises(Interrupted) as stopped:
        pretrain(config, Stopper(5, lambda: signal.raise_signal(number)))
    assert stopped.value.code == 128 + number
    run = Path(config.run.out)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005"]
    assert (status(run), json.loads((run / "run.json").read_text())["step"]) == ("interrupted", 5)
    assert not (run / "encoder.safetensors").exists()
    assert "sslkit pretrain --resume" in (run / "log.txt").read_text()
    assert resume(run) == run
    assert_same_end(run, whole)


def test_stopped_twice_and_on_the_last_step(tiny: Tiny) -> None:
    whole = pretrain(tiny("whole"))
    run = run_until(tiny("stopped"), 2, lambda: signal.raise_signal(signal.SIGTERM))
    for step in (7, 12):
        with pytest.raises(Interrupted):
            resume(run, Stopper(step, lambda: signal.raise_signal(signal.SIGTERM)))
    resume(run)
    assert_same_end(run, whole)


def test_a_second_signal_leaves_at_once(tiny: Tiny) -> None:
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run = run_until(tiny("stopped"), 5, impatient)
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_crash_loses_what_was_not_saved_and_no_more(tiny: Tiny, step: int) -> None:
    """Saved every three steps: from the newest checkpoint, or from the start where there is none yet."""
    whole = pretrain(tiny("whole"))
    run = run_until(tiny("crashed", **{"run.save_every": "3"}), step, crash)
    assert metrics(run)[-1]["step"] == step
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # cut off in the middle of a line
    resume(run)
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    assert_same_end(run, whole)


def test_a_damaged_checkpoint_costs_a_few_steps_only(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pretrain(tiny("whole"))
    run = run_until(tiny("crashed", **{"run.save_every": "3"}), 10, crash)
    file = run / "checkpoints/step-00000009/model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    resume(run, Console(quiet=True))
    assert "warning: checkpoint step-00000009 is damaged" in capsys.readouterr().err
    assert (run / "checkpoints/step-00000009.bad").is_dir()
    assert_same_end(run, whole)


def test_batch_norm_goes_on_too(tiny: Tiny) -> None:
    """Its running mean and its integer counter are state as well."""
    cnn = {"model.backbone": "test_resnet", "model.patch_size": 0, "data.size": 64}
    whole = pretrain(tiny("whole", **cnn))
    run = run_until(tiny("stopped", **cnn), 5, lambda: signal.raise_signal(signal.SIGTERM))
    resume(run)
    assert_same_end(run, whole)


# --------------------------------------------------------------------------------------------- refusals


def test_a_completed_run_is_left_alone(tiny: Tiny) -> None:
    run = pretrain(tiny("whole"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match="is already complete"):
        resume(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_images_are_refused(tiny: Tiny, photos: Path) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    picture = photos / "02.png"
    picture.rename(photos / "renamed.png")
    with pytest.raises(UserError, match=r"the images have changed since .* began: 16 then, 16 now"):
        resume(run)
    (photos / "renamed.png").unlink()
    with pytest.raises(UserError, match="16 then, 15 now"):
        resume(run)
    assert status(run) == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_run_json_is_told(tiny: Tiny, text: str) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    (run / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json can't be read"):
        resume(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        resume(tmp_path)


# --------------------------------------------------------------------------------------- real processes


def start(config: PretrainConfig, folder: Path) -> subprocess.Popen[str]:
    file = folder / "settings.toml"
    file.write_text(configuration.dump(config), encoding="utf-8")
    line = [sys.executable, "-m", "sslkit", "pretrain", "-c", str(file), "--out", config.run.out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip


def wait_for(place: Path, process: subprocess.Popen[str]) -> None:
    """Until a file or folder is there; a process that ends before is an error, shown."""
    while not place.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


LONG = {"schedule.epochs": 50, "run.save_every": "20"}  # 200 steps


@pytest.mark.slow
def test_sigterm_of_a_process_and_kill_minus_nine(tiny: Tiny, tmp_path: Path) -> None:
    whole = pretrain(tiny("whole", **LONG))

    config = tiny("stopped", **LONG, **{"data.workers": 2})
    with start(config, tmp_path) as process:
        wait_for(Path(config.run.out) / "metrics.jsonl", process)
        process.terminate()
        out, err = process.communicate(timeout=60)
    run = Path(config.run.out)
    assert process.returncode == 143, err
    assert out == ""
    assert err.splitlines()[-1].endswith(f"go on with: sslkit pretrain --resume {run}")
    assert status(run) == "interrupted"
    resume(run)
    assert_same_end(run, whole)

    config = tiny("killed", **LONG)
    with start(config, tmp_path) as process:
        wait_for(Path(config.run.out) / "checkpoints/step-00000040", process)
        process.kill()
    run = Path(config.run.out)
    assert status(run) == "running"  # it could not say otherwise
    resume(run)
    assert_same_end(run, whole)


# ---------------------------------------------------------------------------------- what else may happen


def test_sigusr1_saves_and_goes_on(tiny: Tiny) -> None:
    whole = pretrain(tiny("whole"))
    seen: list[list[str]] = []

    class Asking(Console):
        def event(self, document: Any) -> None:
            seen.append(sorted(path.name for path in (run / "checkpoints").iterdir()))
            if document["step"] == 5:
                signal.raise_signal(signal.SIGUSR1)

    config = tiny("saved")
    run = Path(config.run.out)
    pretrain(config, Asking(quiet=True))
    assert seen[4:7] == [[], ["step-00000005"], ["step-00000005"]]
    assert_same_end(run, whole)


def test_a_signal_while_the_last_step_is_saved_lets_it_finish(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.training.run import checkpoint

    write = checkpoint.commit

    def asked(*given: Any) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return write(*given)

    monkeypatch.setattr(checkpoint, "commit", asked)
    assert status(pretrain(tiny("run"))) == "completed"


@pytest.mark.parametrize("key", ["data.workers", "run.micro_batch"])
def test_workers_and_micro_batch_may_change(tiny: Tiny, key: str) -> None:
    """The order of images is the same: so are the weights, and with micro-batches nearly so."""
    whole = pretrain(tiny("whole"))
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    file = run / "config.toml"
    section, name = key.split(".")
    text = file.read_text()
    assert f"\n{name} = 0 " in text
    file.write_text(text.replace(f"\n{name} = 0 ", f"\n{name} = 2 "))
    resume(run)
    if key == "data.workers":
        assert_same_end(run, whole)
    ours, theirs = (load_file(path / "encoder.safetensors") for path in (run, whole))
    for tensor, name in ((ours[name], name) for name in ours):
        assert torch.allclose(tensor, theirs[name], atol=1e-3), (section, name)


def test_changed_settings_are_listed(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("\nlr = 0.05", "\nlr = 0.01"))
    resume(run, Console(quiet=True))
    assert "config.toml has changed since step 5: optim.lr 0.05 → 0.01" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('backbone = "test_vit"', 'backbone = "test_vit2"', "model.backbone test_vit → test_vit2"),
        ("\nsize = 32", "\nsize = 64", "data.size 32 → 64"),
        ('name = "adamw"', 'name = "sgd"', "optim.name adamw → sgd"),
    ],
)
def test_another_network_is_refused_with_the_difference(tiny: Tiny, old: str, new: str, message: str) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    text = (run / "config.toml").read_text()
    assert old in text
    (run / "config.toml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        resume(run)
    assert error.value.code == 2
    (run / "config.toml").write_text(text)
    resume(run)


def test_changed_images_are_named_and_may_be_allowed(
    tiny: Tiny, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    (photos / "02.png").rename(photos / "new.png")
    (photos / "03.png").unlink()
    with pytest.raises(
        UserError, match=r"16 then, 15 now: \+1 \(new\.png\) −2 \(02\.png, 03\.png\)"
    ) as error:
        resume(run)
    assert "--allow-data-change" in error.value.hint
    resume(run, Console(quiet=True), allow_data_change=True)
    assert "warning: the images have changed" in capsys.readouterr().err
    assert status(run) == "completed"
    assert json.loads((run / "run.json").read_text())["data"]["count"] == 15


def test_a_moved_folder_is_the_same_images(tiny: Tiny, photos: Path) -> None:
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    moved = photos.rename(photos.with_name("moved"))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(str(photos), str(moved)))
    (moved / "04.png").unlink()
    with pytest.raises(UserError, match=r"now: \+0 −1 \(04\.png\)"):
        resume(run)


def test_a_run_of_the_first_format_goes_on(tiny: Tiny) -> None:
    """Without settings in state.json, and without a list of images."""
    whole = pretrain(tiny("whole"))
    run = run_until(tiny("stopped"), 5, lambda: signal.raise_signal(signal.SIGTERM))
    (run / "images.jsonl.gz").unlink()
    folder = run / "checkpoints/step-00000005"
    (folder / "state.json").write_text(json.dumps({"format": 1, "step": 5, "images_seen": 20}))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "state.json").read_bytes()
    manifest["files"]["state.json"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest["format"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    resume(run)
    assert_same_end(run, whole)
