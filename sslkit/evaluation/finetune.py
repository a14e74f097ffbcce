"""finetune: a classifier of labelled images that starts from a source's weights, scored once at the end."""

from __future__ import annotations

import csv
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from sslkit.data.sources import ImageSet
from sslkit.errors import UserError
from sslkit.evaluation.augmentation import Mixing, TrainingView
from sslkit.evaluation.classifier import Classifier, build_model, finetune_groups, write_classifier
from sslkit.evaluation.probe import open_encoder
from sslkit.evaluation.recipe import FinetuneConfig, Given, finetune_config, resolve
from sslkit.evaluation.scores import Scores, scores
from sslkit.methods.base import Clock, Info
from sslkit.training.device import Precision, autocast, pick_device, pick_precision, to_device
from sslkit.training.engine import Step, train
from sslkit.training.optim import CosineSchedule, build_optimizer, learning_rate
from sslkit.training.run import RunFolder, describe, next_folder
from sslkit.weights import Loaded

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class FinetuneResult:
    """The scores on the validation images, after the last epoch, and where everything lies."""

    folder: Path
    scores: Scores
    counts: dict[str, int]  # train, validation, classes, unreadable

    @property
    def top1(self) -> float:
        """Percent of the validation images that were named right."""
        return self.scores.top1

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        return {"folder": str(self.folder), **asdict(self.scores), "counts": self.counts}


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
    return _prepare(wanted, console).go()


def _prepare(wanted: FinetuneConfig, console: Console) -> _Session:
    """Everything checked, built and printed; the folder made last."""
    device = pick_device(wanted.run.device)
    precision = pick_precision(wanted.run.precision, device)
    train_set, validation = open_labelled(wanted.data.source, wanted.data.split_seed)
    size = None if wanted.data.size == AUTO else wanted.data.size
    encoder = _open(wanted.model.source, size, wanted.run.seed)
    scratch = wanted.model.scratch or wanted.model.source.startswith("random/")
    given = Given(len(train_set), encoder.family, encoder.size, scratch)
    config, reasons = resolve(wanted, given)
    out = Path(config.run.out) if config.run.out != AUTO else next_folder(Path("runs"), _stem(encoder))
    config = replace(config, run=replace(config.run, device=str(device), precision=precision, out=str(out)))
    model, found, new = build_model(
        encoder,
        len(train_set.classes),
        config.data.size,
        scratch=scratch,
        drop_path=config.model.drop_path,
        seed=config.run.seed,
    )
    folder = _make_folder(out)
    console = Console(quiet=console.quiet, json=console.json, log=out / "log.txt")
    session = _Session(config, encoder, model, train_set, validation, folder, device, console)
    announce(config, reasons, encoder, found, new, (train_set, validation), console)
    return session


def _open(source: str, size: int | None, seed: int) -> Encoder:
    """The source's encoder at its own size (a ViT is resampled later), random ones at the wanted size."""
    return open_encoder(source, size if source.startswith(("timm/", "random/")) else None, seed)


def _stem(encoder: Encoder) -> str:
    return f"finetune-{encoder.name.split('.')[0]}"


def _make_folder(out: Path) -> RunFolder:
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{out} exists", "choose another --out; nothing is overwritten") from None
    except OSError as problem:
        raise UserError(f"can't create {out}: {problem.strerror}", "choose another --out") from None
    return RunFolder(out)


class _Session:
    """One fine-tuning: the loop, then one look at the validation images."""

    def __init__(
        self,
        config: FinetuneConfig,
        encoder: Encoder,
        model: nn.Module,
        train_set: ImageSet,
        validation: ImageSet,
        run: RunFolder,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config, self.encoder, self.run = config, encoder, run
        self.train_set, self.validation = train_set, validation
        self.device, self.console = device, console
        self.precision: Precision = "bfloat16" if config.run.precision == "bfloat16" else "float32"
        self.skipped: set[str] = set()
        labels = torch.tensor(train_set.labels, dtype=torch.int64)
        self.classifier = Classifier(model, labels, Mixing(config.augment, len(train_set.classes))).to(device)
        per_epoch = len(train_set) // config.run.batch_size
        self.clock = Clock(0, config.schedule.epochs * per_epoch, per_epoch, config.run.seed)
        self.optimizer, self.schedule = optimisation(model, config, self.clock)

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
            precision=self.precision,
            clip=config.optim.clip,
            micro_batch=config.run.micro_batch,
        )
        with self.console.bar("fine-tuning", self.clock.steps) as bar:
            self._follow(steps, bar)
        return self._finish()

    def _begin(self) -> None:
        info = Info(len(self.train_set), self.config.data.size, self.encoder.size)
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
            self._skip(step.bad)
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
            self.run.update(status="failed")
            raise UserError(f"step {done}: the loss is {line['loss']}", "try a smaller --lr", code=1)
        self.run.log(line)
        self.console.event(line)
        return line

    def _skip(self, bad: list[tuple[str, str]]) -> None:
        new = [(path, reason) for path, reason in dict(bad).items() if path not in self.skipped]
        if new:
            self.skipped |= {path for path, _ in new}
            self.run.skip(new)

    def _finish(self) -> FinetuneResult:
        """The product, then one look at the validation images, then the figures."""
        config, classes = self.config, self.train_set.classes
        metadata = {"sslkit": sslkit.__version__, "source": config.model.source, "data": config.data.source}
        model = self.classifier.model.eval()
        write_classifier(model, self.encoder, config.data.size, classes, self.run.path, metadata)
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
        result = FinetuneResult(self.run.path, found, counts)
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.run.update(status="completed", step=self.clock.steps, finished=finished, result=asdict(found))
        report(result, self.console)
        return result

    def _predict(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities float32 [N, C], labels [N] and positions [N] of the readable validation images."""
        self.classifier.eval()
        parts = []
        batches = evaluation_loader(
            self.validation, CenterCrop(self.config.data.size), EVALUATION_BATCH, self.config.data.workers
        )
        with torch.inference_mode():
            for views, labels, index in batches:
                with autocast(self.device, self.precision):
                    logits = self.classifier.logits(to_device({"image": views}, self.device)["image"])
                parts.append((logits.float().softmax(dim=1).cpu(), labels, index))
        if not parts:
            raise UserError(f"{self.validation.name}: no validation image can be read", code=1)
        probabilities, labels, kept = zip(*parts, strict=True)
        return torch.cat(probabilities), torch.cat(labels), torch.cat(kept)


def optimisation(
    model: nn.Module, config: FinetuneConfig, clock: Clock
) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """AdamW with layer decay, and the schedule as the official code counts it."""
    optim, schedule = config.optim, config.schedule
    scale = learning_rate(1.0, config.run.batch_size, optim.reference_batch)
    groups = finetune_groups(model, optim.weight_decay, optim.layer_decay)
    optimizer = build_optimizer(groups, optim, optim.lr * scale)
    warmup = min(round(schedule.warmup_epochs * clock.steps_per_epoch), clock.steps - 1)
    return optimizer, CosineSchedule(
        optimizer, clock.steps, warmup, schedule.warmup_lr * scale, schedule.min_lr * scale
    )


def announce(
    config: FinetuneConfig,
    reasons: dict[str, str],
    encoder: Encoder,
    found: Loaded,
    new: tuple[str, ...],
    sets: tuple[ImageSet, ImageSet],
    console: Console,
) -> None:
    """Everything resolved, before the first step."""
    batch, optim, schedule = config.run.batch_size, config.optim, config.schedule
    train_set, validation = sets
    unused = len(encoder.model.state_dict()) - found.taken
    peak = learning_rate(optim.lr, batch, optim.reference_batch)
    per_epoch = len(train_set) // batch
    console.say(f"sslkit {sslkit.__version__} finetune: {encoder.name} from {config.model.source}")
    console.facts(
        {
            "data": f"{len(train_set):,} training and {len(validation):,} validation images, "
            f"{len(train_set.classes)} classes, views of {config.data.size} px",
            "weights": f"{found.taken} tensors loaded, {len(new)} new, {unused} not used"
            + (" (from scratch)" if found.taken == 0 else f"; new: {', '.join(new)}"),
            "device": f"{config.run.device}, {config.run.precision}, {config.data.workers} workers reading",
            "schedule": f"{schedule.epochs} epochs × {per_epoch} steps, {schedule.warmup_epochs:g} of warm-up",
            "lr": f"{optim.lr:g} per {optim.reference_batch} images → {peak:.3g} at batch {batch}",
            "run": config.run.out,
        }
    )
    for key, reason in reasons.items():
        section, _, name = key.partition(".")
        console.say(f"  {key} = {getattr(getattr(config, section), name)}  ({reason})")


def write_predictions(path: Path, images: ImageSet, kept: Tensor, probabilities: Tensor) -> None:
    """path,label,predicted,confidence of every readable validation image."""
    confidence, predicted = probabilities.max(dim=1)
    labels = images.labels or ()
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "predicted", "confidence"])
        for index, number, value in zip(kept.tolist(), predicted.tolist(), confidence.tolist(), strict=True):
            name = images.classes[labels[index]]
            table.writerow([images.paths[index], name, images.classes[number], f"{value:.4f}"])


def report(result: FinetuneResult, console: Console) -> None:
    """The figures, for people."""
    found = result.scores
    rows = {"top-1": f"{found.top1:.2f} % of {found.count} images"}
    if found.top5 is not None:
        rows["top-5"] = f"{found.top5:.2f} %"
    rows["macro-F1"] = f"{found.macro_f1:.2f} %"
    rows["calibration"] = f"error {found.calibration_error:.3f} (expected, 15 bins)"
    rows["worst"] = ", ".join(f"{name} {percent:.0f} % of {count}" for name, percent, count in found.worst)
    console.facts(rows)
    if result.counts["unreadable"]:
        console.warn(f"{result.counts['unreadable']} images could not be read", f"see {result.folder}")
