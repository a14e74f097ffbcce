"""Runs that are stopped at a step, and what of them must be equal in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.training.loop.signals import Interrupted
from sslkit.training.pretrain.pretrain import pretrain

# The last two look back over the steps of one process.
TIMED = ("images_per_s", "wait", "saving", "rank", "std")


class Stopper(Console):
    """A console at which something happens when a step is reported."""

    def __init__(self, step: int, happens: Callable[[], Any]) -> None:
        super().__init__(quiet=True)
        self.step, self.happens = step, happens

    def event(self, document: Any) -> None:
        if document["step"] == self.step:
            self.happens()


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def assert_same_end(run: Path, other: Path) -> None:
    """Weights, the optimizer's state and the reported losses, bit for bit."""
    last = f"checkpoints/step-{metrics(other)[-1]['step']:08d}"
    for file in ("encoder.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        ours, theirs = load_file(run / file), load_file(other / file)
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), f"{file}: {name}"
    assert metrics(run) == metrics(other)
    assert status(run) == "completed"


def run_until(config: PretrainConfig, step: int, happens: Callable[[], Any]) -> Path:
    with pytest.raises((Interrupted, KeyError)):
        pretrain(config, Stopper(step, happens))
    return Path(config.run.out)
