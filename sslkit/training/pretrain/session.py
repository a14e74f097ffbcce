"""The session of pre-training: pictures on the way, and an encoder in the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sslkit.core.console import Console
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import rank
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import short_name
from sslkit.training.loop.engine import Step
from sslkit.training.loop.job import Job
from sslkit.training.loop.session import Session
from sslkit.training.pretrain.auto import USUAL_WARMUP
from sslkit.training.pretrain.pictures import due, write_panels
from sslkit.training.run.folder import RunFolder
from sslkit.version import __version__


class PretrainSession(Session):
    """One process's work on one pre-training.

    Args:
        images: the set itself, of which pictures are made.
    """

    command, label, usual_warmup = "pretrain", "training", USUAL_WARMUP

    def __init__(self, job: Job, images: ImageSet, run: RunFolder, console: Console) -> None:
        super().__init__(job, run, console, job.network.encoder.width)
        self.images, self.fingerprint = images, run.facts["data"]["fingerprint"]

    def train(self, start: int) -> Path:
        """Train from `start` on; returns the run's folder, with its encoder."""
        path: Path = super().train(start)
        return path

    def after(self, step: Step) -> dict[str, float]:
        """The method's panels for the first images of the set, when they are due."""
        if rank() == 0 and due(step.clock, self.config.run.pictures):
            file = self.run.path / "pictures" / f"step-{step.clock.step + 1:08d}.png"
            with self.log.untimed():
                self.log.note(write_panels, self.network, self.images, self.config, self.device, file)
        return {}

    def state(self) -> dict[str, Any]:
        return {"data": self.fingerprint}

    def finish(self) -> Path:
        """The encoder, written by the first process."""
        if rank() == 0:
            self._write_encoder()
        processes.wait()
        return self.run.path

    def _write_encoder(self) -> None:
        """Raises UserError: the disk refuses, now or a moment ago."""
        cure = f"make room, then: {self.cure}"
        if self.writer.failures:
            raise UserError(f"{self.run.path}: the last step is done and not saved", cure, code=1)
        method = short_name(self.config.method_name)
        self.network.eval()
        try:
            self.run.finish(
                self.network.encoder, {"sslkit": __version__, "method": method, "data": self.fingerprint}
            )
        except (OSError, RuntimeError, SafetensorError) as problem:
            raise UserError(
                f"{self.run.path}: the encoder can't be written: {problem}", cure, code=1
            ) from None
        self.run.update(
            status="completed", step=self.clock.steps, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z")
        )
