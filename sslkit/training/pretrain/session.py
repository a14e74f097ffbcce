"""The session of pre-training: pictures on the way, and an encoder in the end."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sslkit.core.console import Console
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import rank, world_size
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import short_name
from sslkit.methods.base import Clock
from sslkit.training.loop.cached_loader import pick_source
from sslkit.training.loop.engine import Step
from sslkit.training.loop.job import Job
from sslkit.training.loop.session import Session
from sslkit.training.pretrain.auto import USUAL_WARMUP
from sslkit.training.pretrain.pictures import due, write_panels
from sslkit.training.pretrain.prepare import look_at
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.products import write_products
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

    def batches(self, start: int) -> Generator[dict[str, Any], None, None]:
        """Of a method that plans its epochs one epoch at a time: no worker reads further than that."""
        if not self.network.plans_epochs():
            yield from super().batches(start)
            return
        data, run, per_epoch = self.config.data, self.config.run, self.clock.steps_per_epoch
        epochs = math.inf if self.deadline else (self.clock.steps - start) / per_epoch
        source = pick_source(
            data.cache,
            self.device,
            self.job.images,
            self.job.transform,
            epochs,
            data.workers,
            self.console,
            lambda: bool(self.requests.stop),
        )
        step = start
        while step < self.clock.steps:
            if step % per_epoch == 0:
                self._plan_epoch(self.clock.at(step))
            end = step - step % per_epoch + per_epoch
            order = self.network.epoch_order.images.cpu().numpy()
            batches = source.batches(
                data.workers,
                batch_size=run.batch_size,
                seed=run.seed,
                start_step=step,
                steps=end,
                steps_per_epoch=per_epoch,
                console=self.console,
                share=(rank(), world_size()),
                order=order if order[0] >= 0 else None,
            )
            with closing(batches):
                yield from batches
            step = end

    def _plan_epoch(self, clock: Clock) -> None:
        """What the method does between two epochs; its order is kept where checkpoints find it.

        Raises:
            UserError: the order is none, or too short.
        """
        items = self.job.images
        self.network.each_epoch(look_at(items, self.network, self.config, self.device, self.console), clock)
        self.network.train()
        order = processes.broadcast_object(self.network.order(clock))
        if order is None:
            self.network.epoch_order.fill(torch.empty(0, dtype=torch.int64))
            return
        count, needed = len(items), clock.steps_per_epoch * self.config.run.batch_size
        if not needed <= len(order) <= count or not 0 <= int(order.min()) <= int(order.max()) < count:
            problem = (
                f"{short_name(self.config.method_name)}: the order of epoch {clock.epoch} can't be followed"
            )
            raise UserError(problem, f"`order` gives {needed} to {count} numbers of 0 … {count - 1}", code=1)
        self.network.epoch_order.fill(order)

    def shown(self, clock: Clock, start: int, stop: int) -> list[int]:
        order = self.network.epoch_order.images if self.network.plans_epochs() else None
        if order is None or order[0] < 0:
            return super().shown(clock, start, stop)
        return [int(index) for index in order[start:stop].tolist()]

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
            write_products(self.network, self.run.path)
        except (OSError, RuntimeError, SafetensorError) as problem:
            raise UserError(
                f"{self.run.path}: the encoder can't be written: {problem}", cure, code=1
            ) from None
        self.run.update(
            status="completed", step=self.clock.steps, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z")
        )
