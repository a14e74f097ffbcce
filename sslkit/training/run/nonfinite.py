"""Steps whose loss or gradients were not finite: listed with their images; too many of them end the run."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from sslkit.core.errors import UserError
from sslkit.training.loop.engine import Step
from sslkit.training.run.folder import RunFolder, rounded

_FILE = "nonfinite.jsonl"
IN_A_ROW = 3
_SHARE = 0.001


class NonFinite:
    """The steps of one run that `engine.train` left out.

    On the CPU each step is looked at at once. Elsewhere that would make the host wait for the device in
    every step, so the flags stay there until `settle`, at the end of a log interval.

    Args:
        images: the indices of a step's images.
    """

    def __init__(self, run: RunFolder, steps: int, images: Callable[[Step], list[int]]) -> None:
        self._run, self._images = run, images
        self._allowed = max(IN_A_ROW, int(_SHARE * steps))
        file = run.path / _FILE
        self.count = len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0
        self._row = 0
        self._pending: list[Step] = []

    def add(self, step: Step) -> None:
        """Note a step. Raises UserError: too many were not finite."""
        self._pending.append(step)
        if step.finite.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Read the flags that have gathered. Raises UserError: too many were not finite."""
        if not self._pending:
            return
        flags = torch.stack([step.finite for step in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for step, finite in zip(pending, flags, strict=True):
            self._row = 0 if finite else self._row + 1
            if not finite:
                self._note(step)

    def _note(self, step: Step) -> None:
        self.count += 1
        done = step.clock.step + 1
        figures = rounded({"loss": float(step.metrics["loss"]), "grad_norm": float(step.grad_norm)})
        self._run.append(_FILE, json.dumps({"step": done, **figures, "images": self._images(step)}))
        if self._row >= IN_A_ROW or self.count > self._allowed:
            often = f"{self._row} times in a row" if self._row >= IN_A_ROW else f"in {self.count} steps"
            raise UserError(
                f"step {done}: loss or gradients not finite {often}",
                f"look at the images of {self._run.path / _FILE}, or resume with a smaller optim.lr "
                f"in {self._run.path / 'config.toml'}",
                code=1,
            )
