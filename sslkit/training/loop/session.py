"""One process's work on one run: the loop over steps, and what happens at its intervals."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from sslkit.core import rng
from sslkit.core.console import Bar, Console, command
from sslkit.core.device import idle_within
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import rank, world_size
from sslkit.core.errors import UserError
from sslkit.data.loading.workers import WorkersLost
from sslkit.methods.base import Clock
from sslkit.training.loop import loss_scaling
from sslkit.training.loop.cached_loader import cached_loader
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.intervals import interval, seconds_of
from sslkit.training.loop.job import Job
from sslkit.training.loop.launch import say_training, say_writing
from sslkit.training.loop.out_of_memory import OutOfMemory, images_at_once
from sslkit.training.loop.signals import Interrupted, Requests, handle_signals
from sslkit.training.loop.time_limit import Deadline
from sslkit.training.run import checkpoint
from sslkit.training.run.checkpoint_writer import Writer, save_due
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.log import RunLog
from sslkit.training.run.resume_check import settings_of

_LAST_STEP = 20.0
"""Seconds for a GPU to end its last step when another process is gone."""


class Session:
    """One process's work on one run: the loop, and what happens at its intervals.

    Several processes walk through the same steps and make the same decisions; the first one alone writes.
    A training says in its subclass what follows a step (`after`), what its checkpoints hold beside weights
    (`state`, `restore_progress`) and what it leaves in the end (`finish`).

    Args:
        width: of the embeddings that the network's steps bring.
        whole: the folder that `--resume` is given: the run's own, or that of the comparison it belongs to.
    """

    command: ClassVar[str]  # that continues the run
    label: ClassVar[str]  # of the bar
    usual_warmup: ClassVar[int]  # one of so many steps is warm-up where the clock ends a run

    def __init__(
        self, job: Job, run: RunFolder, console: Console, width: int, whole: Path | None = None
    ) -> None:
        config = job.config
        self.job, self.config, self.network, self.device = job, config, job.network, job.device
        self.run, self.console, self.whole = run, console, whole or run.path
        self.clock, count = job.clock, len(job.images)
        self.optimizer, self.schedule = job.optimisation(self.clock)
        self.deadline = Deadline(seconds_of(config.run.max_time)) if config.run.max_time else None
        self.scaler = loss_scaling.scaler_for(config.run.precision, self.device)
        self.save_every, self.saved = interval(config.run.save_every), time.monotonic()
        self.log = RunLog(run, config, width, self.clock, count, console, self._indices)
        self.writer = Writer(run.path / "checkpoints", self.device.type != "cpu", console)
        self.requests = Requests()

    # ------------------------------------------------------------------------- what a training says of itself

    def after(self, step: Step) -> dict[str, float]:
        """What follows a step: pictures, a look at other images. Figures for the log end its interval."""
        return {}

    def state(self) -> dict[str, Any]:
        """What checkpoints hold of this training beside weights, for JSON."""
        return {}

    def finish(self) -> Any:
        """Leave the product; called in every process when the last step is saved."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------- a run's beginning

    def restore(self, found: Path | None, state: Mapping[str, Any]) -> int:
        """Take up a checkpoint, if there is one, with its state.json; returns the steps that are done.

        Raises:
            UserError: the network is not the run's.
        """
        self.restore_progress(state)
        return 0 if found is None else int(checkpoint.restore(found, self.network, self.optimizer)["step"])

    def restore_progress(self, state: Mapping[str, Any]) -> None:
        """What a checkpoint knows beside weights: images at once, float16's scale, the time that was used."""
        loss_scaling.restore_(self.scaler, state)
        self.log.micro_batch = images_at_once(self.run, self.config.run.micro_batch, state)
        if self.deadline and state:
            self.deadline = Deadline(seconds_of(self.config.run.max_time), state["seconds"])
            self.clock = replace(self.clock, steps=state["steps"])

    def train(self, start: int) -> Any:
        """Run the loop from step `start`; returns what `finish` does.

        Raises:
            Interrupted: a signal asked for it; the run is saved.
        """
        with handle_signals() as self.requests, self.log.opened(start):
            say_training()
            try:
                self._loop(start)
                self._save(self.clock.steps)  # nothing is lost if what follows fails
                self.writer.settle()
                with processes.watched(lambda: self.clock.steps):
                    return self.finish()
            except Interrupted:
                self.log.note(self.run.update, status="interrupted")
                raise
            except Exception:
                with suppress(UserError):  # a save in flight is finished; what went wrong is told already
                    self.writer.settle()
                self.log.note(self.run.update, status="failed")
                raise

    # ----------------------------------------------------------------------------------------------- the loop

    def _loop(self, start: int) -> None:
        done = start
        with (
            closing(self.batches(start)) as batches,  # ends its workers now, not when garbage goes
            self.console.bar(self.label, self.clock.steps, start, each=True) as bar,
        ):
            try:
                with processes.watched(lambda: done):
                    for step in self._steps(batches, start):
                        done = step.clock.step + 1
                        self._take(step, done, bar)
            except (WorkersLost, processes.Lost, OutOfMemory) as problem:
                if isinstance(problem, OutOfMemory) and problem.at_once:
                    processes.post("images at once", problem.at_once)
                if at_once := processes.read_post("images at once"):
                    self.log.take(at_once)
                say_writing()
                self._keep(done)
                raise

    def _steps(self, batches: Iterator[dict[str, Any]], start: int) -> Iterator[Step]:
        config = self.config
        return train(
            self.network,
            batches,
            self.optimizer,
            self.schedule,
            self._clocks(start),
            device=self.device,
            precision=config.run.precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            micro_batch=self.log.micro_batch,
            scaler=self.scaler,
            around=self.job.around,
        )

    def batches(self, start: int) -> Generator[dict[str, Any], None, None]:
        """The run's, from step `start` on."""
        return cached_loader(
            self.config.data.cache,
            self.device,
            self.job.images,
            self.job.transform,
            batch_size=self.config.run.batch_size,
            seed=self.config.run.seed,
            start_step=start,
            steps=sys.maxsize if self.deadline else self.clock.steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=self.config.data.workers,
            console=self.console,
            share=(rank(), world_size()),
            stop=lambda: bool(self.requests.stop),
        )

    def _clocks(self, start: int) -> Iterator[Clock]:
        """One clock a step; how many steps there are may change on the way, by `--max-time`."""
        number = start
        while number < self.clock.steps:
            yield self.clock.at(number)
            number += 1

    def _take(self, step: Step, done: int, bar: Bar) -> None:
        """What happens between two steps."""
        self.log.add(step, bar, self.after(step))
        stop, save = self._agreed(step.clock)
        bar.total = self.clock.steps
        if done == self.clock.steps:
            self.log.close(step, bar)
        if stop:
            self._interrupted(stop, done)
        self.writer.settle(wait=False)
        if save:
            self._save(done)

    def _agreed(self, clock: Clock) -> tuple[int, bool]:
        """(signal to stop with or 0, whether to save): what any process wants, and all then do.

        Unreadable images and the plan for `--max-time` travel along.
        """
        done = clock.step + 1
        planned = self.deadline.planned(done) if self.deadline and rank() == 0 else 0
        wanted = self.requests.save or save_due(self.save_every, self.saved, clock)
        mine = [self.requests.stop, wanted, bool(self.log.unread), planned]
        stop, save, unread, planned = processes.exchange(mine)
        if unread:
            self.log.tell_unread()
        if planned:
            self.clock = replace(self.clock, steps=max(planned, done))
            self.schedule.plan(self.clock.steps, self.clock.steps // self.usual_warmup)
        if save:
            self.requests.save = False
        return stop, bool(save)

    # ------------------------------------------------------------------------------------ saving and stopping

    def _save(self, step: int) -> None:
        if rank() > 0:
            return
        began = time.monotonic()
        state = {
            "images_seen": step * self.config.run.batch_size,
            "micro_batch": self.log.micro_batch,
            "config": settings_of(self.config),
            "world": world_size(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **loss_scaling.state_of(self.scaler),
            **self.state(),
        }
        if self.deadline:
            state |= {"seconds": self.deadline.used, "steps": self.clock.steps}
        self.log.note(self.log.nonfinite.settle)
        self.writer.save(step, self.network, self.optimizer, state)
        self.log.note(self.run.update, step=step)
        self.saved = time.monotonic()
        self.log.saving += self.saved - began

    def _keep(self, step: int) -> None:
        """Save before an end that is no fault of the weights.

        Not where the GPU still waits for a process that is gone: a copy would wait as well, without end.
        """
        if world_size() == 1 or idle_within(_LAST_STEP, self.device):
            self._save(step)
            self.writer.settle()
        elif rank() == 0:
            self.console.warn(f"step {step} is not saved: {self.device} waits for a process that is gone")

    def _interrupted(self, number: int, done: int) -> None:
        self._save(done)
        self.writer.settle()
        processes.wait()  # who ends first would look lost to the others
        self.leave(number, done)

    def leave(self, number: int, done: int) -> None:
        """End after a signal, at a step that was saved. Raises Interrupted."""
        saved = "and saved" if not self.writer.failures else "but not saved"
        self.console.say(f"stopped at step {done} {saved}; go on with: {self.cure}")
        raise Interrupted(128 + number)

    @property
    def cure(self) -> str:
        """What continues the run."""
        return command("sslkit", self.command, "--resume", self.whole)

    def _indices(self, step: Step) -> list[int]:
        """The images of a step, those of all processes."""
        if world_size() == 1 and step.index is not None:
            return [int(index) for index in step.index]
        clock, size = step.clock, self.config.run.batch_size
        first = clock.step % clock.steps_per_epoch * size
        return self.shown(clock, first, first + size)

    def shown(self, clock: Clock, start: int, stop: int) -> list[int]:
        """Images `start` … `stop` of the clock's epoch."""
        chosen = rng.permutation(len(self.job.images), clock.seed, clock.epoch, start, stop)
        return [int(index) for index in chosen]
