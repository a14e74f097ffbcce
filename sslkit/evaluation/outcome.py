"""Fine-tuning before and after: its plan, its result, what it tells people, its predictions."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sslkit
from sslkit.backbones import Encoder
from sslkit.console import Console
from sslkit.data.sources import ImageSet
from sslkit.evaluation.recipe import FinetuneConfig
from sslkit.evaluation.scores import Scores
from sslkit.training.optim import learning_rate
from sslkit.training.progress import tell_reasons
from sslkit.weights import Loaded


@dataclass(frozen=True)
class FinetuneResult:
    """The scores on the validation images, after the last epoch, and where everything lies."""

    folder: Path
    scores: Scores
    counts: dict[str, int]  # train, validation, classes, unreadable
    scratch: bool  # the source gave only its architecture

    @property
    def top1(self) -> float:
        """Percent of the validation images that were named right."""
        return self.scores.top1

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"folder": str(self.folder), "scratch": self.scratch, "counts": self.counts}
        return {**facts, **asdict(self.scores)}


@dataclass(frozen=True)
class Plan:
    """What will be done, and with what: everything that is known before the first step."""

    config: FinetuneConfig  # without auto
    reasons: dict[str, str]  # of what was auto
    encoder: Encoder
    model: nn.Module  # with the encoder's weights
    found: Loaded
    new: tuple[str, ...]  # tensors that start afresh
    train_set: ImageSet
    validation: ImageSet
    device: torch.device
    scratch: bool  # the source gave only its architecture


def announce(plan: Plan, console: Console) -> None:
    """Everything resolved, before the first step."""
    config, train_set, found = plan.config, plan.train_set, plan.found
    batch, optim, schedule = config.run.batch_size, config.optim, config.schedule
    unused = len(plan.encoder.model.state_dict()) - found.taken
    peak = learning_rate(optim.lr, batch, optim.reference_batch)
    warmup = f"{schedule.warmup_epochs:g} of warm-up"
    console.say(f"sslkit {sslkit.__version__} finetune: {plan.encoder.name} from {config.model.source}")
    console.facts(
        {
            "data": f"{len(train_set):,} training and {len(plan.validation):,} validation images, "
            f"{len(train_set.classes)} classes, views of {config.data.size} px",
            "weights": f"{found.taken} tensors loaded, {len(plan.new)} new, {unused} not used"
            + (" (from scratch)" if found.taken == 0 else f"; new: {', '.join(plan.new)}"),
            "device": f"{config.run.device}, {config.run.precision}, {config.data.workers} workers reading",
            "schedule": f"{schedule.epochs} epochs × {len(train_set) // batch} steps, {warmup}",
            "lr": f"{optim.lr:g} per {optim.reference_batch} images → {peak:.3g} at batch {batch}",
            "run": config.run.out,
        }
    )
    tell_reasons(config, plan.reasons, console)


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
