"""One process's work on one run: the loop over steps, and what happens at its intervals."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

import sslkit
from sslkit.augment.geometry import CenterCrop
from sslkit.console import Bar, Console
from sslkit.data.decode import UnreadableImage
from sslkit.data.loader import pretraining_loader
from sslkit.data.sources import ImageSet
from sslkit.data.workers import WorkersLost
from sslkit.errors import UserError
from sslkit.methods import short_name
from sslkit.methods.base import Batch, Clock, Method
from sslkit.training.changes import settings_of
from sslkit.training.device import autocast, to_device
from sslkit.training.engine import Step, train
from sslkit.training.health import Interval, advice
from sslkit.training.nonfinite import NonFinite
from sslkit.training.optim import CosineSchedule, build_optimizer, learning_rate, parameter_groups
from sslkit.training.progress import note
from sslkit.training.resolve import Resolved, interval
from sslkit.training.run import RunFolder, rounded
from sslkit.training.signals import Interrupted, Wishes, listening
from sslkit.training.skipped import Skipped
from sslkit.training.writer import Writer

PICTURED = 8
"""Images of the set that every picture of a run shows."""


class Session:
    """One process's work on one run: the loop, and what happens at its intervals."""

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
        optim, batch = config.optim, config.run.batch_size
        groups = parameter_groups(method, optim.weight_decay, method.overrides)
        scale = learning_rate(1.0, batch, optim.reference_batch)
        self.optimizer = build_optimizer(groups, optim, optim.lr * scale)
        warmup = min(round(config.schedule.warmup_epochs * per_epoch), self.clock.steps - 1)
        self.schedule = CosineSchedule(
            self.optimizer,
            self.clock.steps,
            warmup,
            config.schedule.warmup_lr * scale,
            config.schedule.min_lr * scale,
            optim.weight_decay_end,
        )
        self.skipped = Skipped(run, len(self.images), config.data.max_bad)
        self.save_every = interval(config.run.save_every)
        self.saved = time.monotonic()
        self.warned = self.full = False
        self.nonfinite = NonFinite(run, self.clock.steps)
        self.writer = Writer(run.path / "checkpoints", device.type != "cpu", console)
        self.micro_batch = config.run.micro_batch
        self.fingerprint = run.facts["data"]["fingerprint"]

    def go(self, start: int) -> Path:
        """Run the loop from `start`, and leave the product."""
        with listening() as wishes:
            try:
                self._loop(start, wishes)
                return self._finish()
            except Interrupted:
                self._note(self.run.update, status="interrupted")
                raise
            except Exception:
                with suppress(UserError):  # a save in flight is finished; what went wrong is told already
                    self.writer.settle()
                self._note(self.run.update, status="failed")
                raise

    def _batches(self, start: int) -> Generator[dict[str, Any], None, None]:
        return pretraining_loader(
            self.images,
            self.method.transform(),
            batch_size=self.config.run.batch_size,
            seed=self.config.run.seed,
            start_step=start,
            steps=self.clock.steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=self.config.data.workers,
            console=self.console,
        )

    def _loop(self, start: int, wishes: Wishes) -> None:
        config, done = self.config, start
        with (
            self.console.bar("training", self.clock.steps, start, each=True) as bar,
            closing(self._batches(start)) as batches,  # ends its workers now, not when garbage is collected
        ):
            steps = train(
                self.method,
                batches,
                self.optimizer,
                self.schedule,
                self.clock.at(start),
                device=self.device,
                precision=config.run.precision,
                clip=config.optim.clip,
                clip_by=config.optim.clip_by,
                micro_batch=self.micro_batch,
            )
            try:
                for step in self._logged(steps, bar):
                    done = step.clock.step + 1
                    if self._picture_due(step.clock):
                        self._note(self._picture, step.clock)
                    if wishes.stop:
                        self._interrupted(wishes.stop, done)
                    self.writer.settle(wait=False)
                    if wishes.save or self._save_due(step.clock):
                        wishes.save = False
                        self._save(done)
            except WorkersLost:
                self._save(done)  # what was learned is kept; nothing is wrong with it
                self.writer.settle()
                raise

    def _logged(self, steps: Iterator[Step], bar: Bar) -> Iterator[Step]:
        """The steps, with figures written at each log interval."""
        figures, began = Interval(), time.monotonic()
        for step in steps:
            figures.add(step)
            self._note(self.skipped.add, step.bad)
            self._note(self.nonfinite.add, step)
            self._look_at_memory(step)
            if step.clock.every(self.config.run.log_every):
                seconds = time.monotonic() - began
                line = self._line(step, figures, seconds)
                bar.advance(figures.steps, note=note(line))
                figures, began = Interval(), time.monotonic()
            yield step

    def _line(self, step: Step, figures: Interval, seconds: float) -> dict[str, Any]:
        """One line of metrics.jsonl, checked for sanity."""
        numbers = figures.figures()
        done = step.clock.step + 1
        line = {
            "step": done,
            "epoch": round(done / step.clock.steps_per_epoch, 4),
            "lr": step.lr,
            **numbers,
            "images_per_s": figures.steps * self.config.run.batch_size / seconds,
            "wait": figures.wait / seconds,
            "skipped": len(self.skipped),
        }
        if self.micro_batch:
            line["micro_batch"] = self.micro_batch
        self._note(self.nonfinite.settle)
        if self.nonfinite.count:
            line["nonfinite"] = self.nonfinite.count
        problem = advice(numbers, self.method.encoder.width, done / step.clock.steps)
        if problem and not self.warned:
            self.console.warn(f"step {done}: {problem}")
        self.warned = self.warned or problem is not None
        self._note(self.run.log, line)
        logged = rounded(line)
        self.console.event(logged)
        return logged

    def _look_at_memory(self, step: Step) -> None:
        if step.micro_batch != self.micro_batch:
            self.micro_batch = step.micro_batch
            self.console.warn(
                f"step {step.clock.step + 1}: out of memory; from here on {step.micro_batch} of "
                f"{self.config.run.batch_size} images at once, the batch of a step stays",
                f"--micro-batch {step.micro_batch} avoids the attempt",
            )

    def _note(self, write: Callable[..., object], *given: Any, **named: Any) -> None:
        """Bookkeeping never ends a run: where the disk refuses, that is said once, and training goes on."""
        try:
            write(*given, **named)
        except OSError as problem:
            if not self.full:
                self.console.warn(
                    f"{self.run.path}: {problem.strerror or problem}; training goes on", "make room"
                )
            self.full = True

    def _save_due(self, clock: Clock) -> bool:
        number, unit = self.save_every
        if unit == "seconds":
            return time.monotonic() - self.saved >= number
        return clock.every(max(1, round(number * clock.steps_per_epoch if unit == "epochs" else number)))

    def _save(self, step: int) -> None:
        state = {
            "images_seen": step * self.config.run.batch_size,
            "micro_batch": self.micro_batch,
            "config": settings_of(self.config),
            "data": self.fingerprint,
            "world": 1,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        self._note(self.nonfinite.settle)
        self.writer.save(step, self.method, self.optimizer, state)
        self._note(self.run.update, step=step)
        self.saved = time.monotonic()

    def _picture_due(self, clock: Clock) -> bool:
        """True `run.pictures` times, evenly, the last time on the last step."""
        wanted = self.config.run.pictures
        return (clock.step + 1) * wanted // clock.steps > clock.step * wanted // clock.steps

    def _picture(self, clock: Clock) -> None:
        """The method's panels for the first images of the set, one row per image, as a PNG."""
        batch = pictured_batch(self.images, self.config.data.size, self.device)
        self.method.eval()
        with torch.no_grad(), autocast(self.device, self.config.run.precision):
            panels = self.method.panels(batch)
        self.method.train()
        columns = [panel.float().cpu() for panel in panels.values()]
        if columns:
            grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
            pixels = (grid.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(self.run.path / "pictures" / f"step-{clock.step + 1:08d}.png")

    def _interrupted(self, number: int, done: int) -> None:
        self._save(done)
        self.writer.settle()
        saved = "and saved" if not self.writer.failures else "but not saved"
        cure = f"sslkit pretrain --resume {self.run.path}"
        self.console.say(f"stopped at step {done} {saved}; go on with: {cure}")
        raise Interrupted(128 + number)

    def _finish(self) -> Path:
        self._save(self.clock.steps)
        self.writer.settle()
        cure = f"make room, then: sslkit pretrain --resume {self.run.path}"
        if self.writer.failures:
            raise UserError(f"{self.run.path}: the last step is done and not saved", cure, code=1)
        facts = {
            "sslkit": sslkit.__version__,
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
        return self.run.path


def pictured_batch(images: ImageSet, size: int, device: torch.device) -> Batch:
    """The first readable images of the set as evaluation views, on the device."""
    view, views = CenterCrop(size), {}
    for index in range(len(images)):
        try:
            views[index] = view(images.read(index))
        except UnreadableImage:
            continue
        if len(views) == PICTURED:
            break
    return to_device({"image": torch.stack(list(views.values())), "index": torch.tensor(list(views))}, device)
