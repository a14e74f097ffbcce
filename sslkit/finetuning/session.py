"""The session of fine-tuning: held-out accuracy on the way, one look at the validation images in the end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.core.console import Console
from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.metrics.scores import Scores, scores
from sslkit.finetuning.auto import USUAL_WARMUP
from sslkit.finetuning.classifier import predicted
from sslkit.finetuning.prepare import FinetunePlan, job_of
from sslkit.finetuning.result import FinetuneResult, report, write_product, write_tables
from sslkit.training.loop.engine import Step
from sslkit.training.loop.session import Session
from sslkit.training.run.folder import RunFolder


class FinetuneSession(Session):
    """One process's work on one fine-tuning, from its first step or from a checkpoint.

    Several processes share the images that are looked at as they share those of a step.
    """

    command, label, usual_warmup = "finetune", "fine-tuning", USUAL_WARMUP

    def __init__(
        self, plan: FinetunePlan, run: RunFolder, console: Console, whole: Path | None = None
    ) -> None:
        super().__init__(job_of(plan), run, console, plan.encoder.width, whole)
        self.plan, self.parts, self.classifier = plan, plan.parts, plan.classifier
        self.best: dict[str, float] | None = None  # epoch, and percent on the held-out images

    def train(self, start: int) -> FinetuneResult:
        """Train from `start` on, score, write; returns the scores."""
        if start == 0:
            torch.manual_seed(self.config.run.seed)  # of drop path; a checkpoint holds where it stood
        result: FinetuneResult = super().train(start)
        return result

    def restore_progress(self, state: Any) -> None:
        super().restore_progress(state)
        self.best = state.get("best")

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def after(self, step: Step) -> dict[str, float]:
        """At an epoch's end, percent on the held-out training images, if there are some.

        That is top-1, or balanced accuracy where classes are balanced. The highest is kept, and of equal ones
        the latest, whose rate was lower.
        """
        clock, last = step.clock, step.clock.step + 1 == self.clock.steps
        if self.parts.held_out is None or not (last or clock.every(clock.steps_per_epoch)):
            return {}
        with self.log.untimed():
            probabilities, labels, _ = self._predict(self.parts.held_out)
        found = scores(probabilities, labels, self.parts.training.classes)
        percent = found.balanced if self.config.data.balance else found.top1
        if self.best is None or percent >= self.best["held_out"]:
            self.best = {"epoch": clock.epoch + 1, "held_out": percent}
            self.classifier.note_best_()
        self.classifier.train()
        return {"held_out": percent}

    def finish(self) -> FinetuneResult:
        """One look at the validation images, then the product and the tables; checkpoints are done with."""
        model = self.classifier.model
        if self.classifier.best is not None:
            processes.run_on_first(lambda: write_product(model, self.plan, self.run.path / "last"))
            model.load_state_dict(self.classifier.best.state_dict())
        probabilities, labels, kept = self._predict(self.parts.validation, stoppable=True)

        def write() -> FinetuneResult:
            write_product(model, self.plan, self.run.path)
            write_tables(self.run.path, self.parts.validation, kept, probabilities)
            result = self._result(scores(probabilities, labels, self.parts.training.classes), len(kept))
            finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            document = result.to_document()
            self.run.update(status="completed", step=self.clock.steps, finished=finished, result=document)
            shutil.rmtree(self.run.path / "checkpoints", ignore_errors=True)
            return result

        result = processes.run_on_first(write)
        report(result, self.console)
        return result

    def _predict(self, images: ImageSet, stoppable: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities float32 [N, C], labels [N] and positions [N] of the readable images, in their order.

        Args:
            stoppable: a signal ends it.

        Raises:
            UserError: none can be read.
        """
        run, data = self.config.run, self.config.data
        rank, world = collectives.rank(), collectives.world_size()
        self.classifier.eval()
        for buffer in self.classifier.model.buffers():  # each process has batch statistics of its own
            collectives.broadcast_(buffer)
        mine = images.subset(range(rank, len(images), world)) if world > 1 else images
        found = [(torch.empty(0, len(images.classes)), torch.empty(0, dtype=torch.int64))]
        for part in predicted(self.classifier, mine, data.size, self.device, run.precision, data.workers):
            if stoppable and self.requests.stop:
                self.leave(self.requests.stop, self.clock.steps)
            found.append(part)
        shares = processes.all_gather_objects([torch.cat(tensors) for tensors in zip(*found, strict=True)])
        probabilities = torch.cat([share[0] for share in shares])
        kept, order = torch.cat([share[1] * world + i for i, share in enumerate(shares)]).sort()
        if not len(kept):
            raise UserError(f"{images.name}: no validation image can be read", code=1)
        return probabilities[order], torch.tensor(images.labels, dtype=torch.int64)[kept], kept

    def _result(self, found: Scores, readable: int) -> FinetuneResult:
        parts, config = self.parts, self.config
        counts = {
            "train": len(parts.training),
            "held_out": len(parts.held_out or ()),
            "validation": len(parts.validation),
            "classes": len(parts.training.classes),
            "unreadable": len(self.log.skipped) + len(parts.validation) - readable,
        }
        source, seed = config.model.source, config.run.seed
        return FinetuneResult(self.run.path, found, counts, self.plan.scratch, source, seed, self.best)
