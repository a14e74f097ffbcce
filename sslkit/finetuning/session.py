"""One fine-tuning: the loop with its checkpoints, then one look at the validation images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.core.console import Bar, Console, command
from sslkit.core.errors import UserError
from sslkit.data.loading.workers import WorkersLost
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.metrics.scores import Scores, scores
from sslkit.finetuning.augmentation import Mixing, TrainingView
from sslkit.finetuning.classifier import Classifier, optimisation, predicted
from sslkit.finetuning.result import (
    FinetunePlan,
    FinetuneResult,
    image_facts,
    report,
    write_product,
    write_tables,
)
from sslkit.methods.base import Clock
from sslkit.training.loop import loss_scaling
from sslkit.training.loop.acceleration import search_convolutions
from sslkit.training.loop.cached_loader import cached_loader
from sslkit.training.loop.depthwise import take_fast_gradients_
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.out_of_memory import OutOfMemory, images_at_once, note_at_once
from sslkit.training.loop.signals import Interrupted, Requests, handle_signals
from sslkit.training.pretrain.auto import interval
from sslkit.training.run import checkpoint
from sslkit.training.run.checkpoint_writer import Writer, save_due
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.nonfinite import NonFinite
from sslkit.training.run.progress import less_at_once
from sslkit.training.run.skipped import Skipped


class FinetuneSession:
    """The work on one run's folder, from its first step or from a checkpoint.

    Args:
        whole: the folder that `--resume` is told: the run's own, or that of the comparison it belongs to.
    """

    def __init__(
        self, plan: FinetunePlan, run: RunFolder, console: Console, whole: Path | None = None
    ) -> None:
        self.plan, self.config, self.run, self.console = plan, plan.config, run, console
        self.parts, self.device, self.whole = plan.parts, plan.device, whole or run.path
        config, training = plan.config, plan.parts.training
        self.classifier = Classifier(
            plan.model,
            plan.encoder,
            torch.tensor(training.labels, dtype=torch.int64),
            Mixing(config.augment, len(training.classes)),
            frozen=config.model.freeze,
            balance=config.data.balance,
            keep_best=config.run.keep == "best",
        ).to(self.device)
        search_convolutions(self.device)
        if self.device.type == "cpu" and config.run.precision == "bfloat16":
            take_fast_gradients_(plan.model)
        per_epoch = len(training) // config.run.batch_size
        self.clock = Clock(0, config.schedule.epochs * per_epoch, per_epoch, config.run.seed)
        self.optimizer, self.schedule = optimisation(plan.model, config, self.clock)
        self.skipped = Skipped(run, len(training), config.data.max_bad)
        self.nonfinite = NonFinite(run, self.clock.steps, _indices)
        self.writer = Writer(run.path / "checkpoints", self.device.type != "cpu", console)
        self.save_every, self.saved = interval(config.run.save_every), time.monotonic()
        self.micro_batch = config.run.micro_batch
        self.scaler = loss_scaling.scaler_for(config.run.precision, self.device)
        self.best: dict[str, float] | None = None

    def restore(self) -> int:
        """Take up the newest whole checkpoint, if there is one; returns the steps that are done.

        Raises:
            UserError: the images or the network are not those of the run.
        """
        then = self.run.facts.get("data", {}).get("fingerprint"), self.run.facts.get("validation")
        if then != (self.parts.training.fingerprint, image_facts(self.parts.validation)):
            problem = f"the images have changed since {self.run.path} began"
            raise UserError(problem, "restore them, or begin anew")
        found, notices = checkpoint.newest(self.run.path / "checkpoints")
        for notice in notices:
            self.console.warn(notice)
        before = checkpoint.read_state(found) if found else {}
        self.micro_batch = images_at_once(self.run, self.micro_batch, before)
        if found is None:
            self.run.forget_after(0)
            return 0
        state = checkpoint.restore(found, self.classifier, self.optimizer)
        if state["step"] > self.clock.steps:
            problem = f"{self.run.path} is at step {state['step']} of now only {self.clock.steps}"
            raise UserError(problem, "more schedule.epochs")
        loss_scaling.restore_(self.scaler, state)
        self.best = state.get("best")
        self.run.forget_after(state["step"])
        return int(state["step"])

    def go(self, start: int = 0) -> FinetuneResult:
        """Train from `start` on, score, write. Raises Interrupted, after saving, if a signal asks for it."""
        if start == 0:
            torch.manual_seed(self.config.run.seed)  # of drop path; a checkpoint holds where it stood
        with handle_signals() as wishes:
            try:
                self._loop(start, wishes)
                return self._finish(wishes)
            except Interrupted:
                self.run.update(status="interrupted")
                raise
            except BaseException:
                with suppress(UserError):  # a save in flight is finished; what went wrong is told already
                    self.writer.settle()
                with suppress(OSError):
                    self.run.update(status="failed")
                raise

    def _loop(self, start: int, wishes: Requests) -> None:
        config, done = self.config, start
        batches = cached_loader(
            config.data.cache,
            self.device,
            self.parts.training,
            TrainingView(config.data.size, config.augment),
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            start_step=start,
            steps=self.clock.steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=config.data.workers,
            console=self.console,
            stop=lambda: bool(wishes.stop),
        )
        with closing(batches), self.console.bar("fine-tuning", self.clock.steps, start, each=True) as bar:
            steps = train(
                self.classifier,
                batches,
                self.optimizer,
                self.schedule,
                self.clock.at(start).rest(),
                device=self.device,
                precision=config.run.precision,
                clip=config.optim.clip,
                clip_by=config.optim.clip_by,
                micro_batch=self.micro_batch,
                scaler=self.scaler,
            )
            try:
                for step in self._logged(steps, bar):
                    done = step.clock.step + 1
                    if wishes.stop:
                        self._interrupted(wishes.stop, done)
                    self.writer.settle(wait=False)
                    if wishes.save or save_due(self.save_every, self.saved, step.clock):
                        wishes.save = False
                        self._save(done)
            except (WorkersLost, OutOfMemory):
                self._save(done)
                raise
        self._save(self.clock.steps)  # nothing is lost if what follows fails

    def _logged(self, steps: Iterator[Step], bar: Bar) -> Iterator[Step]:
        """The steps, with figures at each log interval and, with `--keep best`, each epoch's end."""
        losses: list[Tensor] = []
        wait, began = 0.0, time.monotonic()
        for step in steps:
            losses.append(step.metrics["loss"])
            wait += step.wait
            self.skipped.add(step.bad)
            self.nonfinite.add(step)
            self._look_at_memory(step)
            ended = self.parts.held_out is not None and step.clock.every(step.clock.steps_per_epoch)
            if ended or step.clock.every(self.config.run.log_every):
                seconds = time.monotonic() - began
                held_out = self._judged(step.clock) if ended else {}
                self.nonfinite.settle()
                line = self._line(step, torch.stack(losses), seconds, wait) | held_out
                self.console.event(self.run.log(line))
                bar.advance(len(losses), _note(line))
                losses, wait, began = [], 0.0, time.monotonic()
            yield step

    def _look_at_memory(self, step: Step) -> None:
        if step.micro_batch != self.micro_batch:
            self.micro_batch = step.micro_batch
            note_at_once(self.run, self.config.run.micro_batch, step.micro_batch)
            cure = f"--micro-batch {step.micro_batch} avoids the attempt"
            self.console.warn(less_at_once(step, self.config.run.batch_size), cure)

    def _line(self, step: Step, losses: Tensor, seconds: float, wait: float) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        done = step.clock.step + 1
        return {
            "step": done,
            "epoch": round(done / step.clock.steps_per_epoch, 4),
            "loss": float(losses.mean()),
            "lr": step.lr,
            "grad_norm": float(step.grad_norm),
            "images_per_s": len(losses) * self.config.run.batch_size / seconds,
            "wait": wait / seconds,
            "skipped": len(self.skipped),
        }

    def _judged(self, clock: Clock) -> dict[str, float]:
        """Percent on the held-out training images: top-1, or balanced accuracy where classes are balanced.

        The highest is kept, and of equal ones the latest, whose rate was lower.
        """
        assert self.parts.held_out is not None
        probabilities, labels, _ = self._predict(self.parts.held_out, None)
        found = scores(probabilities, labels, self.parts.training.classes)
        percent = found.balanced if self.config.data.balance else found.top1
        if self.best is None or percent >= self.best["held_out"]:
            self.best = {"epoch": clock.epoch + 1, "held_out": percent}
            self.classifier.note_best_()
        self.classifier.train()
        return {"held_out": percent}

    def _predict(self, images: ImageSet, wishes: Requests | None) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities float32 [N, C], labels [N] and positions [N] of the readable images.

        With `wishes` a signal ends it.
        """
        run, data = self.config.run, self.config.data
        self.classifier.eval()
        found = []
        for part in predicted(self.classifier, images, data.size, self.device, run.precision, data.workers):
            if wishes is not None and wishes.stop:
                self._leave(wishes.stop, self.clock.steps)
            found.append(part)
        if not found:
            raise UserError(f"{images.name}: no validation image can be read", code=1)
        probabilities, kept = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        return probabilities, torch.tensor(images.labels, dtype=torch.int64)[kept], kept

    def _save(self, step: int) -> None:
        known = {
            "config": {"run.micro_batch": self.config.run.micro_batch},
            **loss_scaling.state_of(self.scaler),
        }
        state = {**known, "micro_batch": self.micro_batch, "best": self.best}
        self.writer.save(step, self.classifier, self.optimizer, state)
        self.run.update(step=step)
        self.saved = time.monotonic()

    def _interrupted(self, number: int, done: int) -> None:
        self._save(done)
        self.writer.settle()
        self._leave(number, done)

    def _leave(self, number: int, done: int) -> None:
        saved = "and saved" if not self.writer.failures else "but not saved"
        cure = command("sslkit", "finetune", "--resume", self.whole)
        self.console.say(f"stopped at step {done} {saved}; go on with: {cure}")
        raise Interrupted(128 + number)

    def _finish(self, wishes: Requests) -> FinetuneResult:
        """One look at the validation images, then the product and the tables; checkpoints are done with."""
        self.writer.settle()
        if self.classifier.best is not None:
            write_product(self.classifier.model, self.plan, self.run.path / "last")
            self.classifier.model.load_state_dict(self.classifier.best.state_dict())
        probabilities, labels, kept = self._predict(self.parts.validation, wishes)
        write_product(self.classifier.model, self.plan, self.run.path)
        write_tables(self.run.path, self.parts.validation, kept, probabilities)
        found = scores(probabilities, labels, self.parts.training.classes)
        result = self._result(found, len(kept))
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        document = result.to_document()
        self.run.update(status="completed", step=self.clock.steps, finished=finished, result=document)
        shutil.rmtree(self.run.path / "checkpoints", ignore_errors=True)
        report(result, self.console)
        return result

    def _result(self, found: Scores, readable: int) -> FinetuneResult:
        parts, config = self.parts, self.config
        counts = {
            "train": len(parts.training),
            "held_out": len(parts.held_out or ()),
            "validation": len(parts.validation),
            "classes": len(parts.training.classes),
            "unreadable": len(self.skipped) + len(parts.validation) - readable,
        }
        return FinetuneResult(
            self.run.path, found, counts, self.plan.scratch, config.model.source, config.run.seed, self.best
        )


def _indices(step: Step) -> list[int]:
    """The images of a step."""
    return [] if step.index is None else [int(index) for index in step.index]


def _note(line: dict[str, Any]) -> str:
    held_out = f"  held out {line['held_out']:.1f} %" if "held_out" in line else ""
    return (
        f"epoch {line['epoch']:.2f}  loss {line['loss']:.4f}  lr {line['lr']:.2e}{held_out}  "
        f"{line['images_per_s']:.0f} images/s  waiting {line['wait']:.0%}"
    )
