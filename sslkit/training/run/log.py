"""What a run writes down on its way: figures, unreadable images, steps that were not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from sslkit.core.console import Bar, Console
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import world_size
from sslkit.methods.base import Clock
from sslkit.training.loop.engine import Step
from sslkit.training.loop.health import Interval, advice, averaged
from sslkit.training.loop.out_of_memory import note_at_once
from sslkit.training.run.folder import RunFolder, rounded
from sslkit.training.run.loggers import Loggers
from sslkit.training.run.nonfinite import NonFinite
from sslkit.training.run.progress import less_at_once, note
from sslkit.training.run.skipped import Skipped


class RunLog:
    """Log of one run: metrics, unreadable images, non-finite steps; rank 0 writes it.

    Args:
        config: a PretrainConfig or FinetuneConfig without auto.
        width: of the embeddings that the steps bring, if they do.
        count: images of the set.
        indices: the images of a step.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Any,
        width: int,
        clock: Clock,
        count: int,
        console: Console,
        indices: Callable[[Step], list[int]],
    ) -> None:
        self.run, self.config, self.width, self.console = run, config, width, console
        self.skipped = Skipped(run, count, config.data.max_bad)
        self.nonfinite = NonFinite(run, clock.steps, indices)
        self.micro_batch = config.run.micro_batch
        self.saving = 0.0  # seconds since the last line of figures
        self.unread: list[tuple[str, str]] = []  # of this process, not told to the others yet
        self.figures, self.began = Interval(), time.monotonic()
        self.warned = self.full = False
        self.loggers = Loggers(run, config, console)

    @contextmanager
    def opened(self, start: int) -> Iterator[None]:
        """The run's loggers are told of what happens inside."""
        with self.loggers.opened(start):
            self.began = time.monotonic()  # they may take seconds to begin
            yield

    def note(self, write: Callable[..., object], *given: Any, **named: Any) -> None:
        """Bookkeeping never ends a run: where the disk refuses, that is said once, and training goes on."""
        try:
            write(*given, **named)
        except OSError as problem:
            if not self.full:
                self.console.warn(
                    f"{self.run.path}: {problem.strerror or problem}; training goes on", "make room"
                )
            self.full = True

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What happens inside is no training: rates leave its time out."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began

    def add(self, step: Step, bar: Bar, more: Mapping[str, float]) -> None:
        """One step; at the end of a log interval, or where there are `more` figures, they become a line.

        Raises what NonFinite raises.
        """
        self.unread += step.bad
        if self.unread and world_size() == 1:  # several processes tell each other with their other wishes
            self.tell_unread()
        self.figures.add(step)
        self.note(self.nonfinite.add, step)
        self._look_at_memory(step)
        if more or step.clock.every(self.config.run.log_every):
            self.close(step, bar, more)

    def close(self, step: Step, bar: Bar, more: Mapping[str, float] = MappingProxyType({})) -> None:
        """End the log interval with its line, if it holds steps: the clock may end a run within one."""
        if not self.figures.steps:
            return
        line = self._line(step, time.monotonic() - self.began, more)
        bar.advance(self.figures.steps, note=note(line))
        self.figures, self.began, self.saving = Interval(), time.monotonic(), 0.0

    def tell_unread(self) -> None:
        """List the unreadable images of all processes. Raises UserError: there are too many."""
        told, self.unread = processes.all_gather_objects(self.unread), []
        self.note(self.skipped.add, [entry for entries in told for entry in entries])

    def _line(self, step: Step, seconds: float, more: Mapping[str, float]) -> dict[str, Any]:
        """One line of metrics.jsonl, checked for sanity."""
        numbers, wait = averaged(processes.all_gather_objects((self.figures.figures(), self.figures.wait)))
        done = step.clock.step + 1
        line = {
            "step": done,
            "epoch": round(done / step.clock.steps_per_epoch, 4),
            "lr": step.lr,
            **numbers,
            "images_per_s": self.figures.steps * self.config.run.batch_size / seconds,
            "wait": wait / seconds,
            "saving": self.saving / seconds,
            "skipped": len(self.skipped),
            **more,
        }
        if self.micro_batch:
            line["micro_batch"] = self.micro_batch
        self.note(self.nonfinite.settle)
        if self.nonfinite.count:
            line["nonfinite"] = self.nonfinite.count
        problem = advice(numbers, self.width, done / step.clock.steps)
        if problem and not self.warned:
            self.console.warn(f"step {done}: {problem}")
        self.warned = self.warned or problem is not None
        self.note(self.run.log, line)
        logged = rounded(line)
        self.console.event(logged)
        self.loggers.log(logged)
        return logged

    def _look_at_memory(self, step: Step) -> None:
        if step.micro_batch != self.micro_batch:
            self.take(step.micro_batch)
            cure = f"--micro-batch {step.micro_batch} avoids the attempt"
            self.console.warn(less_at_once(step, self.config.run.batch_size), cure)

    def take(self, micro_batch: int) -> None:
        """Use this micro-batch size from now on."""
        self.micro_batch = micro_batch
        self.note(note_at_once, self.run, self.config.run.micro_batch, micro_batch)
