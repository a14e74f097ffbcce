"""finetune: a classifier of labelled images that starts from a source's weights, scored once at the end."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sslkit
from sslkit import config as configuration
from sslkit.augment.geometry import CenterCrop
from sslkit.backbones import Encoder
from sslkit.config import AUTO
from sslkit.console import SILENT, Bar, Console
from sslkit.data.labels import open_labelled
from sslkit.data.loader import evaluation_loader, pretraining_loader
from sslkit.errors import UserError
from sslkit.evaluation.augmentation import Mixing, TrainingView
from sslkit.evaluation.classifier import Classifier, build_model, finetune_groups, write_classifier
from sslkit.evaluation.outcome import FinetuneResult, Plan, announce, report, write_predictions
from sslkit.evaluation.recipe import FinetuneConfig, Given, finetune_config, resolve
from sslkit.evaluation.scores import scores
from sslkit.methods.base import Clock, Info
from sslkit.paths import make_folder, next_folder
from sslkit.training.device import autocast, pick_device, pick_precision, to_device
from sslkit.training.engine import Step, train
from sslkit.training.optim import CosineSchedule, build_optimizer, learning_rate
from sslkit.training.run import RunFolder, describe
from sslkit.training.skipped import Skipped
from sslkit.weights import load_encoder

EVALUATION_BATCH = 128


def finetune(
    source: str,
    data: str,
    *,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    console: Console = SILENT,
    **flags: Any,
) -> FinetuneResult:
    """Train a classifier of `data`, the whole network, starting from the weights of `source`.

    Args:
        source: a run, an exported folder, a .safetensors file, timm/NAME, or random/NAME (from scratch).
        data: class folders, `train/` and `val/` with class folders, a .csv with path,label, or fractal:N.
        config: a TOML file or a recipe's name.
        settings: "section.key=value" texts, as after --set.
        flags: the words of recipe.FLAGS, e.g. `epochs=50, seed=1, scratch=True`; None means not given.

    Raises:
        UserError: what was asked for can't work; nothing was written.
    """
    wanted = finetune_config(source, data, None if config is None else str(config), settings, flags)
    plan = make_plan(wanted, console)
    run = RunFolder(make_folder(Path(plan.config.run.out)))
    with console.copied_to(run.path / "log.txt"):
        announce(plan, console)
        return _Session(plan, run, console).go()


def make_plan(wanted: FinetuneConfig, console: Console = SILENT) -> Plan:
    """Everything resolved, opened and built; nothing is written. Raises UserError."""
    device = pick_device(wanted.run.device)
    train_set, validation = open_labelled(wanted.data.source, wanted.data.split_seed)
    size = None if wanted.data.size == AUTO else wanted.data.size
    encoder = load_encoder(wanted.model.source, size, wanted.run.seed, console=console)
    scratch = wanted.model.scratch or wanted.model.source.startswith("random/")
    given = Given(len(train_set), encoder.family, encoder.size, scratch, device.type == "cpu")
    config, reasons = resolve(wanted, given)
    config = _placed(config, encoder, device)
    model, found, new = build_model(
        encoder,
        len(train_set.classes),
        config.data.size,
        scratch=scratch,
        drop_path=config.model.drop_path,
        seed=config.run.seed,
    )
    return Plan(config, reasons, encoder, model, found, new, train_set, validation, device, scratch)


def _placed(config: FinetuneConfig, encoder: Encoder, device: torch.device) -> FinetuneConfig:
    """The machine's choices: device, precision, and a folder that does not exist yet."""
    out = config.run.out
    if out == AUTO:
        out = str(next_folder(Path("runs"), f"finetune-{encoder.name.split('.')[0]}"))
    precision = pick_precision(config.run.precision, device)
    return replace(config, run=replace(config.run, device=str(device), precision=precision, out=out))


class _Session:
    """One fine-tuning: the loop, then one look at the validation images."""

    def __init__(self, plan: Plan, run: RunFolder, console: Console) -> None:
        self.plan, self.config, self.run, self.console = plan, plan.config, run, console
        self.train_set, self.validation, self.device = plan.train_set, plan.validation, plan.device
        self.skipped = Skipped(run, len(self.train_set), self.config.data.max_bad)
        mixing = Mixing(self.config.augment, len(self.train_set.classes))
        labels = torch.tensor(self.train_set.labels, dtype=torch.int64)
        self.classifier = Classifier(plan.model, plan.encoder, labels, mixing).to(self.device)
        per_epoch = len(self.train_set) // self.config.run.batch_size
        self.clock = Clock(0, self.config.schedule.epochs * per_epoch, per_epoch, self.config.run.seed)
        self.optimizer, self.schedule = optimisation(plan.model, self.config, self.clock)

    def go(self) -> FinetuneResult:
        """Train, score, write."""
        config = self.config
        self._begin()
        torch.manual_seed(config.run.seed)  # of drop path
        batches = pretraining_loader(
            self.train_set,
            TrainingView(config.data.size, config.augment),
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            start_step=0,
            steps=self.clock.steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=config.data.workers,
        )
        steps = train(
            self.classifier,
            batches,
            self.optimizer,
            self.schedule,
            self.clock,
            device=self.device,
            precision=self.config.run.precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            micro_batch=config.run.micro_batch,
        )
        try:
            with closing(batches), self.console.bar("fine-tuning", self.clock.steps, each=True) as bar:
                self._follow(steps, bar)
            return self._finish()
        except BaseException as problem:
            stopped = isinstance(problem, KeyboardInterrupt)
            self.run.update(status="interrupted" if stopped else "failed")
            raise

    def _begin(self) -> None:
        info = Info(len(self.train_set), self.config.data.size, self.plan.encoder.size)
        facts = describe(self.train_set, info, self.device)
        validation = {"count": len(self.validation), "fingerprint": self.validation.fingerprint}
        self.run.update(
            **{**facts, "kind": "finetune", "status": "running", "source": self.config.model.source},
            validation=validation,
        )
        source, data = self.config.model.source, self.config.data.source
        repeat = shlex.join(["sslkit", "finetune", source, data, "-c", str(self.run.path / "config.toml")])
        header = f"sslkit {sslkit.__version__}: `{repeat}` repeats this run"
        text = configuration.dump(self.config, header)
        (self.run.path / "config.toml").write_text(text, encoding="utf-8")

    def _follow(self, steps: Iterator[Step], bar: Bar) -> None:
        """Walk through the steps; figures at each log interval."""
        losses: list[Tensor] = []
        wait, began = 0.0, time.monotonic()
        for step in steps:
            losses.append(step.metrics["loss"])
            wait += step.wait
            self.skipped.add(step.bad)
            if step.clock.every(self.config.run.log_every):
                seconds = time.monotonic() - began
                line = self._line(step, torch.stack(losses), seconds, wait)
                bar.advance(
                    len(losses),
                    f"epoch {line['epoch']:.2f}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
                    f"{line['images_per_s']:.0f} images/s  waiting {line['wait']:.0%}",
                )
                losses, wait, began = [], 0.0, time.monotonic()

    def _line(self, step: Step, losses: Tensor, seconds: float, wait: float) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        done = step.clock.step + 1
        line = {
            "step": done,
            "epoch": round(done / step.clock.steps_per_epoch, 4),
            "loss": float(losses.mean()),
            "lr": step.lr,
            "grad_norm": float(step.grad_norm),
            "images_per_s": len(losses) * self.config.run.batch_size / seconds,
            "wait": wait / seconds,
            "skipped": len(self.skipped),
        }
        if not math.isfinite(line["loss"]):
            raise UserError(f"step {done}: the loss is {line['loss']}", "try a smaller --lr", code=1)
        logged = self.run.log(line)
        self.console.event(logged)
        return logged

    def _finish(self) -> FinetuneResult:
        """The product, then one look at the validation images, then the figures."""
        config, classes = self.config, self.train_set.classes
        metadata = {"sslkit": sslkit.__version__, "source": config.model.source, "data": config.data.source}
        model = self.classifier.model.eval()
        write_classifier(model, self.plan.encoder, config.data.size, classes, self.run.path, metadata)
        probabilities, labels, kept = self._predict()
        found = scores(probabilities, labels, classes)
        write_predictions(self.run.path / "predictions.csv", self.validation, kept, probabilities)
        unreadable = len(self.skipped) + len(self.validation) - len(kept)
        counts = {
            "train": len(self.train_set),
            "validation": len(self.validation),
            "classes": len(classes),
            "unreadable": unreadable,
        }
        result = FinetuneResult(self.run.path, found, counts, self.plan.scratch)
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.run.update(status="completed", step=self.clock.steps, finished=finished, result=asdict(found))
        report(result, self.console)
        return result

    def _predict(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities float32 [N, C], labels [N] and positions [N] of the readable validation images."""
        self.classifier.eval()
        probabilities, targets, kept = [], [], []
        batches = evaluation_loader(
            self.validation, CenterCrop(self.config.data.size), EVALUATION_BATCH, self.config.data.workers
        )
        with torch.inference_mode():
            for views, labels, index in batches:
                with autocast(self.device, self.config.run.precision):
                    logits = self.classifier.logits(to_device({"image": views}, self.device)["image"])
                probabilities.append(logits.float().softmax(dim=1).cpu())
                kept.append(index)
                if labels is not None:
                    targets.append(labels)
        if not kept:
            raise UserError(f"{self.validation.name}: no validation image can be read", code=1)
        return torch.cat(probabilities), torch.cat(targets), torch.cat(kept)


def optimisation(
    model: nn.Module, config: FinetuneConfig, clock: Clock
) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """The optimizer with layer decay, and the schedule as the official code counts it."""
    optim, schedule = config.optim, config.schedule
    scale = learning_rate(1.0, config.run.batch_size, optim.reference_batch)
    groups = finetune_groups(model, optim.weight_decay, optim.layer_decay)
    optimizer = build_optimizer(groups, optim, optim.lr * scale)
    warmup = min(round(schedule.warmup_epochs * clock.steps_per_epoch), clock.steps - 1)
    return optimizer, CosineSchedule(
        optimizer,
        clock.steps,
        warmup,
        schedule.warmup_lr * scale,
        schedule.min_lr * scale,
        optim.weight_decay_end,
    )
