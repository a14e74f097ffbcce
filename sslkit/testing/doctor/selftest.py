"""`sslkit doctor --train`: a small run is trained, killed, resumed, compared, exported and opened in timm.

Every step is the command a user would type, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sslkit.testing.doctor.finding import Finding

RUN = ["fractal:48", "-b", "vit_tiny_patch16_224", "--size", "32", "--batch-size", "8", "--epochs", "4"]
RUN += ["--workers", "0", "--device", "cpu", "--precision", "float32", "--pictures", "0", "--save-every", "4"]
"""24 steps of a ViT-Ti with a checkpoint after every fourth."""

_LIMIT = 300.0
"""Seconds after which a step has hung."""


class Failed(Exception):
    """A step of the self-test did not do what it should."""


def selftest_findings() -> Iterator[Finding]:
    """The steps in order, each with its seconds; the first that fails ends them."""
    with tempfile.TemporaryDirectory(prefix="sslkit-doctor-") as folder:
        steps: dict[str, Callable[[Path], str]] = {
            "train": _train,
            "kill -9": _kill,
            "resume": _resume,
            "compare": _compare,
            "export": _export,
            "reload": _reload,
        }
        for name, step in steps.items():
            began = time.monotonic()
            try:
                text = step(Path(folder))
            except (Failed, OSError, subprocess.TimeoutExpired) as problem:
                cure = "please report it with the whole output of sslkit doctor --train"
                yield Finding(name, "error", f"{problem} ({time.monotonic() - began:.1f} s)", cure)
                return
            yield Finding(name, "ok", f"{text} ({time.monotonic() - began:.1f} s)")


def _train(folder: Path) -> str:
    _sslkit(folder, "pretrain", *RUN, "-o", "whole", "-q")
    return "24 steps without a pause"


def _kill(folder: Path) -> str:
    """The same run in another folder, killed as soon as it has saved."""
    saved = folder / "killed" / "checkpoints"
    with (folder / "killed.txt").open("w") as log:
        child = subprocess.Popen(
            _command("pretrain", *RUN, "-o", "killed", "-q"), cwd=folder, stderr=log, env=_env()
        )
        try:
            deadline = time.monotonic() + _LIMIT
            while not any(saved.glob("step-*[0-9]/manifest.json")):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"ended before it saved: {_last((folder / 'killed.txt').read_text())}")
                time.sleep(0.02)
        finally:
            child.kill()
            child.wait()
    if (folder / "killed" / "encoder.safetensors").exists():
        raise Failed("the run was over before it could be killed")
    return f"after {max(saved.glob('step-*[0-9]')).name}"


def _resume(folder: Path) -> str:
    _sslkit(folder, "pretrain", "--resume", "killed", "-q")
    return "went on to the end"


def _compare(folder: Path) -> str:
    from safetensors.torch import load_file

    whole, killed = (load_file(folder / run / "encoder.safetensors") for run in ("whole", "killed"))
    different = [name for name in whole if name not in killed or not whole[name].equal(killed[name])]
    if different or len(whole) != len(killed):
        raise Failed(f"{len(different)} of {len(whole)} tensors differ, {different[:1]} first")
    return f"{len(whole)} tensors, equal bit for bit"


def _export(folder: Path) -> str:
    _sslkit(folder, "export", "killed", "exported", "-q")
    return "model.safetensors and config.json"


def _reload(folder: Path) -> str:
    """Plain timm, which knows nothing of sslkit, gives the features of the run."""
    import timm
    import torch

    from sslkit.models.weights import load_encoder

    model = timm.create_model(f"local-dir:{folder / 'exported'}", pretrained=True).eval()
    encoder, images = load_encoder(folder / "killed"), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        difference = float((model(encoder.normalize(images)) - encoder.vector(images)).abs().max())
    if not difference <= 1e-4:
        raise Failed(f"timm's features differ by {difference:.1e}")
    return f"timm's features differ by {difference:.0e}"


def _sslkit(folder: Path, *words: str) -> None:
    done = subprocess.run(
        _command(*words), cwd=folder, env=_env(), capture_output=True, text=True, timeout=_LIMIT
    )
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {_last(done.stderr)}")


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sslkit", *words]


def _env() -> dict[str, str]:
    """This sslkit, wherever it lies, on one thread: sums in one order."""
    home = str(Path(__file__).parents[3])
    path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _last(text: str) -> str:
    """The line that says most: the error, or the last one."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if line.startswith("error: ")), lines[-1])
