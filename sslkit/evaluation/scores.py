"""What a classifier's probabilities are worth: accuracy, macro-F1, calibration, the worst classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Of the calibration error (Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017)."""


@dataclass(frozen=True)
class Scores:
    """In percent, but for the calibration error, which is in [0, 1]."""

    top1: float
    top5: float | None  # None with five classes or fewer
    macro_f1: float
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


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: Σ over equal bins of (share of images) · |accuracy - mean confidence|."""
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # bins are (low, high]
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, number, right.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))
