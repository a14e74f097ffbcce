"""Fine-tuning before and after: its result, what it tells people, the files it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.core.config import build as configuration
from sslkit.core.console import Console, command, counted, named, nearby
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.metrics.scores import ClassScore, Scores, class_scores, confusion, reliability
from sslkit.evaluation.metrics.significance import of_images
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.finetuning.classifier_files import write_classifier
from sslkit.finetuning.config import FinetuneConfig
from sslkit.finetuning.prepare import FinetunePlan
from sslkit.finetuning.splits import Splits, write_splits, write_table
from sslkit.methods.base import Info
from sslkit.training.run.folder import RunFolder, describe
from sslkit.training.run.progress import facts_of, tell_reasons
from sslkit.version import __version__


@dataclass(frozen=True)
class FinetuneResult:
    """The scores on the validation images, and where everything lies."""

    folder: Path
    scores: Scores
    counts: dict[str, int]  # train, held_out, validation, classes, unreadable
    scratch: bool  # the source gave only its architecture
    source: str = ""
    seed: int = 0
    best: dict[str, float] | None = None  # with `--keep best`: epoch, and percent on the held-out images
    robustness: RobustnessResult | None = None

    @property
    def top1(self) -> float:
        """Percent of the validation images that were named right."""
        return self.scores.top1

    @property
    def runs(self) -> tuple[FinetuneResult, ...]:
        """Itself alone; a comparison has several."""
        return (self,)

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: getattr(self, name) for name in _names(self, "scores", "robustness")}
        robust = {"robustness": self.robustness.to_document()} if self.robustness else {}
        return {**own, "folder": str(self.folder), **asdict(self.scores), **robust}

    @classmethod
    def of_document(cls, document: Mapping[str, Any], folder: Path) -> FinetuneResult:
        """The inverse of `to_document`, for a run that may have moved; KeyError if it isn't one."""
        values = {field.name: document[field.name] for field in fields(Scores)}
        values["worst"] = tuple((name, percent, count) for name, percent, count in values["worst"])
        own = {name: document[name] for name in _names(cls, "folder", "scores", "robustness")}
        return cls(folder, Scores(**values), **own)


def _names(kind: FinetuneResult | type[FinetuneResult], *but: str) -> list[str]:
    return [field.name for field in fields(kind) if field.name not in but]


def announce_finetuning(plan: FinetunePlan, console: Console) -> None:
    """Everything resolved, before the first step."""
    config, found, parts = plan.config, plan.found, plan.parts
    unused = len(plan.encoder.model.state_dict()) - found.taken
    source = nearby(config.model.source)
    console.say(f"sslkit {__version__} finetune: {plan.encoder.name} from {source}")
    console.facts(
        {
            "data": _told(parts, config),
            "weights": f"{found.taken} tensors loaded, {len(plan.new)} new, {unused} not used"
            + (" (from scratch)" if found.taken == 0 else f"; new: {', '.join(plan.new)}"),
            "learns": "the head alone; the encoder is frozen" if config.model.freeze else "the whole network",
            **facts_of(config, len(parts.training) // config.run.batch_size),
        }
    )
    for line in parts.training.left_out.lines():
        console.say(f"  {line}")
    tell_reasons(config, plan.reasons, console)
    for note in parts.notes:
        console.warn(note)


def _told(parts: Splits, config: FinetuneConfig) -> str:
    """The images in words."""
    training, validation = parts.training, parts.validation
    told = f"{len(training):,} training and {counted(len(validation), 'validation image')}"
    told += f", {counted(len(training.classes), 'class', 'classes')}"
    if parts.unused is not None:
        told += f"; {len(parts.unused):,} not used"
    if parts.held_out is not None:
        told += f"; {len(parts.held_out):,} held out to choose the epoch"
    return f"{told}, views of {config.data.size} px" + ("; balanced softmax" if config.data.balance else "")


def write_beginning(plan: FinetunePlan, run: RunFolder) -> None:
    """What stands in the run's folder before the first step: run.json, config.toml, splits.csv."""
    config, training = plan.config, plan.parts.training
    source, data = config.model.source, config.data.source
    repeat = command("sslkit", "finetune", source, data, "-c", run.path / "config.toml")
    header = f"sslkit {__version__}: `{repeat}` repeats this run"
    (run.path / "config.toml").write_text(configuration.dump(config, header), encoding="utf-8")
    write_splits(run.path / "splits.csv", plan.parts)
    facts = describe(training, Info(len(training), config.data.size, plan.encoder.size), plan.device)
    own = {"kind": "finetune", "status": "running", "source": source}
    run.update(**{**facts, **own}, validation=image_facts(plan.parts.validation))


def image_facts(images: ImageSet) -> dict[str, Any]:
    """What a run remembers of its images, to know them again."""
    return {"count": len(images), "fingerprint": images.fingerprint}


def write_product(model: nn.Module, plan: FinetunePlan, folder: Path) -> None:
    """The classifier as timm opens it."""
    config = plan.config
    metadata = {"sslkit": __version__, "source": config.model.source, "data": config.data.source}
    folder.mkdir(exist_ok=True)
    write_classifier(model, plan.encoder, config.data.size, plan.parts.training.classes, folder, metadata)


def write_tables(folder: Path, images: ImageSet, kept: Tensor, probabilities: Tensor) -> None:
    """predictions.csv, confusion.csv, classes.csv and calibration.csv, of the readable validation images.

    Args:
        kept: int64 [N], their positions in `images`.
        probabilities: float32 [N, C].
    """
    confidence, predicted = probabilities.max(dim=1)
    labels = torch.tensor(images.labels, dtype=torch.int64)[kept]
    classes = images.classes
    write_table(
        folder / "predictions.csv",
        ["path", "label", "predicted", "confidence"],
        (
            (images.paths[index], classes[label], classes[number], f"{value:.4f}")
            for index, label, number, value in zip(
                kept.tolist(), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True
            )
        ),
    )
    counts = confusion(predicted, labels, len(classes))
    rows = ((name, *row) for name, row in zip(classes, counts.tolist(), strict=True))
    write_table(folder / "confusion.csv", ["label \\ predicted", *classes], rows)
    write_table(
        folder / "classes.csv",
        [field.name for field in fields(ClassScore)],
        ((_short(value) for value in asdict(one).values()) for one in class_scores(counts, classes)),
    )
    write_table(
        folder / "calibration.csv",
        ["low", "high", "images", "accuracy", "confidence"],
        ((_short(v) for v in asdict(one).values()) for one in reliability(confidence, predicted == labels)),
    )


def _short(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


def report(result: FinetuneResult, console: Console) -> None:
    """The figures, for people."""
    found = result.scores
    rows = {"top-1": f"{found.top1:.2f} % of {of_images(found.count)}"}
    if found.top5 is not None:
        rows["top-5"] = f"{found.top5:.2f} %"
    rows["macro-F1"] = f"{found.macro_f1:.2f} %, balanced accuracy {found.balanced:.2f} %"
    rows["calibration"] = f"error {found.calibration_error:.3f} (expected, 15 bins)"
    rows["worst"] = ", ".join(
        f"{named(name)} {percent:.0f} % of {count}" for name, percent, count in found.worst
    )
    if result.best is not None:
        best = result.best
        rows["weights"] = (
            f"of epoch {best['epoch']:.0f}, {best['held_out']:.2f} % on held-out training images"
        )
    console.facts(rows)
    if result.counts["unreadable"]:
        unread = counted(result.counts["unreadable"], "image")
        console.warn(f"{unread} could not be read", f"see {result.folder}")
