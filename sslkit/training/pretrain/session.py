"""One process's work on one run: the loop over steps, and what happens at its intervals."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sslkit.core import rng
from sslkit.core.console import Console, command
from sslkit.core.device import idle_within
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import rank, world_size
from sslkit.core.errors import UserError
from sslkit.data.loading.workers import WorkersLost
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import short_name
from sslkit.methods.base import Clock, Method
from sslkit.training.loop import loss_scaling
from sslkit.training.loop.cached_loader import cached_loader
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.optim import pretraining
from sslkit.training.loop.out_of_memory import OutOfMemory, images_at_once
from sslkit.training.loop.signals import Interrupted, Requests, handle_signals
from sslkit.training.loop.time_limit import Deadline
from sslkit.training.pretrain.auto import USUAL_WARMUP, Resolved, interval, seconds_of
from sslkit.training.pretrain.launch import say_training, say_writing
from sslkit.training.pretrain.pictures import due, write_panels
from sslkit.training.run.checkpoint_writer import Writer, save_due
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.log import RunLog
from sslkit.training.run.resume_check import settings_of
from sslkit.version import __version__

_LAST_STEP = 20.0
"""Seconds for a GPU to end its last step when another process is gone."""


class Session:
    """One process's work on one run: the loop, and what happens at its intervals.

    Several processes walk through the same steps and make the same decisions; the first one alone writes.
    """

    def __init__(
        self,
        ready: Resolved,
        method: Method,
        images: ImageSet,
        run: RunFolder,
        device: torch.device,
        console: Console,
    ) -> None:
        config = ready.config
        self.config, self.method, self.images = config, method, method.dataset(images)
        self.run, self.device, self.console = run, device, console
        per_epoch = len(self.images) // config.run.batch_size
        self.clock = Clock(0, config.schedule.epochs * per_epoch, per_epoch, config.run.seed)
        self.optimizer, self.schedule = pretraining(method, config, self.clock)
        self.deadline = Deadline(seconds_of(config.run.max_time)) if config.run.max_time else None
        self.scaler = loss_scaling.scaler_for(config.run.precision, device)
        self.save_every = interval(config.run.save_every)
        self.saved = time.monotonic()
        self.books = RunLog(run, config, method, self.clock, len(self.images), console, self._indices)
        self.writer = Writer(run.path / "checkpoints", device.type != "cpu", console)
        self.fingerprint = run.facts["data"]["fingerprint"]

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """What a checkpoint knows beside weights: images at once, float16's scale, the time that was used."""
        loss_scaling.restore_(self.scaler, state)
        self.books.micro_batch = images_at_once(self.run, self.config.run.micro_batch, state)
        if self.deadline and state:
            self.deadline = Deadline(seconds_of(self.config.run.max_time), state["seconds"])
            self.clock = replace(self.clock, steps=state["steps"])

    def go(self, start: int) -> Path:
        """Run the loop from `start`, and leave the product."""
        with handle_signals() as wishes, self.books.opened(start):
            say_training()
            try:
                self._loop(start, wishes)
                return self._finish()
            except Interrupted:
                self.books.note(self.run.update, status="interrupted")
                raise
            except Exception:
                with suppress(UserError):  # a save in flight is finished; what went wrong is told already
                    self.writer.settle()
                self.books.note(self.run.update, status="failed")
                raise

    def _batches(self, start: int, wishes: Requests) -> Generator[dict[str, Any], None, None]:
        return cached_loader(
            self.config.data.cache,
            self.device,
            self.images,
            self.method.transform(),
            batch_size=self.config.run.batch_size,
            seed=self.config.run.seed,
            start_step=start,
            steps=sys.maxsize if self.deadline else self.clock.steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=self.config.data.workers,
            console=self.console,
            share=(rank(), world_size()),
            stop=lambda: bool(wishes.stop),
        )

    def _clocks(self, start: int) -> Iterator[Clock]:
        """One clock a step; how many steps there are may change on the way, by `--max-time`."""
        number = start
        while number < self.clock.steps:
            yield self.clock.at(number)
            number += 1

    def _loop(self, start: int, wishes: Requests) -> None:
        config, done = self.config, start
        with (
            closing(self._batches(start, wishes)) as batches,  # ends its workers now, not when garbage goes
            self.console.bar("training", self.clock.steps, start, each=True) as bar,
        ):
            steps = train(
                self.method,
                batches,
                self.optimizer,
                self.schedule,
                self._clocks(start),
                device=self.device,
                precision=config.run.precision,
                clip=config.optim.clip,
                clip_by=config.optim.clip_by,
                micro_batch=self.books.micro_batch,
                scaler=self.scaler,
            )
            try:
                with processes.watched(lambda: done):
                    for step in steps:
                        done = step.clock.step + 1
                        self.books.add(step, bar)
                        if rank() == 0 and due(step.clock, config.run.pictures):
                            self.books.note(self._picture, done)
                        stop, save = self._agreed(wishes, step.clock)
                        bar.total = self.clock.steps
                        if done == self.clock.steps:
                            self.books.close(step, bar)
                        if stop:
                            self._interrupted(stop, done)
                        self.writer.settle(wait=False)
                        if save:
                            self._save(done)
            except (WorkersLost, processes.Lost, OutOfMemory) as problem:
                if isinstance(problem, OutOfMemory) and problem.at_once:
                    processes.post("images at once", problem.at_once)
                if at_once := processes.read_post("images at once"):
                    self.books.take(at_once)
                say_writing()
                self._keep(done)
                raise

    def _agreed(self, wishes: Requests, clock: Clock) -> tuple[int, bool]:
        """(signal to stop with or 0, whether to save): what any process wants, and all then do.

        Unreadable images and the plan for `--max-time` travel along.
        """
        done = clock.step + 1
        planned = self.deadline.planned(done) if self.deadline and rank() == 0 else 0
        wanted = wishes.save or save_due(self.save_every, self.saved, clock)
        mine = [wishes.stop, wanted, bool(self.books.unread), planned]
        stop, save, unread, planned = processes.exchange(mine)
        if unread:
            self.books.tell_unread()
        if planned:
            self.clock = replace(self.clock, steps=max(planned, done))
            self.schedule.plan(self.clock.steps, self.clock.steps // USUAL_WARMUP)
        if save:
            wishes.save = False
        return stop, bool(save)

    def _save(self, step: int) -> None:
        if rank() > 0:
            return
        began = time.monotonic()
        state = {
            "images_seen": step * self.config.run.batch_size,
            "micro_batch": self.books.micro_batch,
            "config": settings_of(self.config),
            "data": self.fingerprint,
            "world": world_size(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **loss_scaling.state_of(self.scaler),
        }
        if self.deadline:
            state |= {"seconds": self.deadline.used, "steps": self.clock.steps}
        self.books.note(self.books.nonfinite.settle)
        self.writer.save(step, self.method, self.optimizer, state)
        self.books.note(self.run.update, step=step)
        self.saved = time.monotonic()
        self.books.saving += self.saved - began

    def _keep(self, step: int) -> None:
        """Save before an end that is no fault of the weights.

        Not where the GPU still waits for a process that is gone: a copy would wait as well, without end.
        """
        if world_size() == 1 or idle_within(_LAST_STEP, self.device):
            self._save(step)
            self.writer.settle()
        elif rank() == 0:
            self.console.warn(f"step {step} is not saved: {self.device} waits for a process that is gone")

    def _picture(self, done: int) -> None:
        """The method's panels for the first images of the set."""
        file = self.run.path / "pictures" / f"step-{done:08d}.png"
        write_panels(self.method, self.images, self.config, self.device, file)

    def _interrupted(self, number: int, done: int) -> None:
        self._save(done)
        self.writer.settle()
        processes.wait()  # who ends first would look lost to the others
        saved = "and saved" if not self.writer.failures else "but not saved"
        cure = command("sslkit", "pretrain", "--resume", self.run.path)
        self.console.say(f"stopped at step {done} {saved}; go on with: {cure}")
        raise Interrupted(128 + number)

    def _finish(self) -> Path:
        if rank() == 0:
            self._leave_product()
        with processes.watched(lambda: self.clock.steps):
            processes.wait()
        return self.run.path

    def _leave_product(self) -> None:
        self._save(self.clock.steps)
        self.writer.settle()
        cure = f"make room, then: {command('sslkit', 'pretrain', '--resume', self.run.path)}"
        if self.writer.failures:
            raise UserError(f"{self.run.path}: the last step is done and not saved", cure, code=1)
        facts = {
            "sslkit": __version__,
            "method": short_name(self.config.method_name),
            "data": self.fingerprint,
        }
        self.method.eval()
        try:
            self.run.finish(self.method.encoder, facts)
        except (OSError, RuntimeError, SafetensorError) as problem:
            raise UserError(
                f"{self.run.path}: the encoder can't be written: {problem}", cure, code=1
            ) from None
        self.run.update(
            status="completed", step=self.clock.steps, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z")
        )

    def _indices(self, step: Step) -> list[int]:
        """The images of a step, those of all processes."""
        if world_size() == 1 and step.index is not None:
            return [int(index) for index in step.index]
        clock, size = step.clock, self.config.run.batch_size
        first = clock.step % clock.steps_per_epoch * size
        order = rng.permutation(len(self.images), clock.seed, clock.epoch, first, first + size)
        return [int(index) for index in order]
