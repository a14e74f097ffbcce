"""One process's work on one run: the loop over steps, and what happens at its intervals."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sslkit
from sslkit.augment.geometry import CenterCrop
from sslkit.console import Bar, Console
from sslkit.data.decode import UnreadableImage
from sslkit.data.loader import pretraining_loader
from sslkit.data.sources import ImageSet
from sslkit.errors import UserError
from sslkit.methods import short_name
from sslkit.methods.base import Batch, Clock, Method
from sslkit.training import checkpoint
from sslkit.training.device import autocast, to_device
from sslkit.training.engine import Step, train
from sslkit.training.health import Interval, advice
from sslkit.training.optim import CosineSchedule, build_optimizer, learning_rate, parameter_groups
from sslkit.training.progress import note
from sslkit.training.resolve import Resolved, interval
from sslkit.training.run import RunFolder
from sslkit.training.skipped import Skipped

PICTURED = 8
"""Images of the set that every picture of a run shows."""


class Interrupted(SystemExit):
    """A run that was asked to stop, and saved; carries the exit code (130 or 143)."""


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
        self.warned = False

    def go(self, start: int) -> Path:
        """Run the loop from `start`, and leave the product."""
        try:
            self._loop(start)
            return self._finish()
        except Exception:
            self.run.update(status="failed")
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
        )

    def _loop(self, start: int) -> None:
        config, clock = self.config, self.clock.at(start)
        with (
            _stop_signals() as stop,
            self.console.bar("training", clock.steps, start, each=True) as bar,
            closing(self._batches(start)) as batches,  # ends its workers now, not when garbage is collected
        ):
            steps = train(
                self.method,
                batches,
                self.optimizer,
                self.schedule,
                clock,
                device=self.device,
                precision=config.run.precision,
                clip=config.optim.clip,
                clip_by=config.optim.clip_by,
                micro_batch=config.run.micro_batch,
            )
            for step in self._logged(steps, bar):
                if self._picture_due(step.clock):
                    self._picture(step.clock)
                if stop or self._save_due(step.clock):
                    self._save(step.clock.step + 1)
                if stop:
                    self._interrupted(stop[0], step.clock)

    def _logged(self, steps: Iterator[Step], bar: Bar) -> Iterator[Step]:
        """The steps, with figures written at each log interval."""
        figures, began = Interval(), time.monotonic()
        for step in steps:
            figures.add(step)
            self.skipped.add(step.bad)
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
        if not np.isfinite(numbers["loss"]):
            raise UserError(
                f"step {done}: the loss is {numbers['loss']}",
                f"resume with a smaller lr in {self.run.path / 'config.toml'}; checkpoints before are whole",
                code=1,
            )
        problem = advice(numbers, self.method.encoder.width, done / step.clock.steps)
        if problem and not self.warned:
            self.console.warn(f"step {done}: {problem}")
        self.warned = self.warned or problem is not None
        logged = self.run.log(line)
        self.console.event(logged)
        return logged

    def _save_due(self, clock: Clock) -> bool:
        number, unit = self.save_every
        if unit == "seconds":
            return time.monotonic() - self.saved >= number
        return clock.every(max(1, round(number * clock.steps_per_epoch if unit == "epochs" else number)))

    def _save(self, step: int) -> None:
        state = {"images_seen": step * self.config.run.batch_size}
        checkpoint.write(self.run.path / "checkpoints", step, self.method, self.optimizer, state)
        self.run.update(step=step)
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

    def _interrupted(self, number: int, clock: Clock) -> None:
        self.run.update(status="interrupted", step=clock.step + 1)
        cure = f"sslkit pretrain --resume {self.run.path}"
        self.console.say(f"stopped at step {clock.step + 1} and saved; go on with: {cure}")
        raise Interrupted(128 + number)

    def _finish(self) -> Path:
        self._save(self.clock.steps)
        facts = {
            "sslkit": sslkit.__version__,
            "method": short_name(self.config.method_name),
            "data": self.images.fingerprint,
        }
        self.method.eval()
        self.run.finish(self.method.encoder, facts)
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


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; a second one leaves at once."""
    seen: list[int] = []

    def receive(number: int, frame: object) -> None:
        if seen:
            raise Interrupted(128 + number)
        seen.append(number)

    try:
        old = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, e.g. inside a notebook server: signals are its business
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
