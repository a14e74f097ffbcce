"""What a classifier's probabilities are worth: accuracy, macro-F1, calibration, the worst classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Of the calibration error (Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017)."""


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in (low, high]; accuracy and mean confidence in [0, 1], 0 without images."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class ClassScore:
    """One class in percent; `mistaken_for` is the class that most of its lost images were called, or ""."""

    name: str
    count: int
    recall: float
    precision: float
    f1: float
    mistaken_for: str


@dataclass(frozen=True)
class Scores:
    """In percent, but for the calibration error, which is in [0, 1]."""

    top1: float
    top5: float | None  # None with five classes or fewer
    macro_f1: float
    balanced: float  # mean of the classes' recalls
    calibration_error: float
    worst: tuple[tuple[str, float, int], ...]  # (class, percent found, images), worst first
    count: int


def scores(probabilities: Tensor, labels: Tensor, classes: tuple[str, ...], worst: int = 5) -> Scores:
    """Scores of probabilities [N, C] for labels int64 [N]; classes without images are left out of means."""
    confidence, predicted = probabilities.max(dim=1)
    right = predicted == labels
    top5 = None
    if len(classes) > 5:
        top5 = 100 * float((probabilities.topk(5).indices == labels[:, None]).any(dim=1).double().mean())
    counts = confusion(predicted, labels, len(classes))
    present = counts.sum(dim=1) > 0
    recall = counts.diagonal() / counts.sum(dim=1).clamp_min(1)
    order = [i for i in recall.argsort(stable=True).tolist() if present[i]][:worst]
    return Scores(
        top1=100 * float(right.double().mean()),
        top5=top5,
        macro_f1=100 * float(f1(counts)[present].mean()),
        balanced=100 * float(recall.double()[present].mean()),
        calibration_error=calibration_error(confidence, right),
        worst=tuple((classes[i], 100 * float(recall[i]), int(counts[i].sum())) for i in order),
        count=len(labels),
    )


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: how many images of class (row) were called class (column)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def f1(counts: Tensor) -> Tensor:
    """F1 of each class from the confusion matrix, float64 [C]: 2·TP / (2·TP + FP + FN); 0 if all are 0."""
    hits = counts.diagonal().double()
    return 2 * hits / (counts.sum(dim=0) + counts.sum(dim=1)).clamp_min(1)


def class_scores(counts: Tensor, classes: tuple[str, ...]) -> tuple[ClassScore, ...]:
    """Every class of a confusion matrix, in the order of the classes; without images all is 0."""
    recall = 100 * counts.diagonal().double() / counts.sum(dim=1).clamp_min(1)
    precision = 100 * counts.diagonal().double() / counts.sum(dim=0).clamp_min(1)
    lost = counts - counts.diagonal().diag()
    harmonic = 100 * f1(counts)
    most, whose = lost.max(dim=1)
    return tuple(
        ClassScore(
            name=name,
            count=int(counts[i].sum()),
            recall=float(recall[i]),
            precision=float(precision[i]),
            f1=float(harmonic[i]),
            mistaken_for=classes[int(whose[i])] if most[i] else "",
        )
        for i, name in enumerate(classes)
    )


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """Accuracy beside confidence in equal bins (low, high], of confidences [N] and bool [N]."""
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(number, minlength=bins)
    zeros = torch.zeros(bins, dtype=torch.float64)
    accuracy = zeros.index_add(0, number, right.double()) / count.clamp_min(1)
    mean = zeros.index_add(0, number, confidence.double()) / count.clamp_min(1)
    return tuple(
        Bin(i / bins, (i + 1) / bins, int(count[i]), float(accuracy[i]), float(mean[i])) for i in range(bins)
    )


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: Σ over equal bins of (share of images) · |accuracy - mean confidence|."""
    found = reliability(confidence, right, bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in found) / len(confidence)
