"""Is it learning, or has it collapsed? Figures over one log interval, kept on the device until it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslkit.training.loop.engine import Step, mean

ROWS = 512
"""Embeddings kept for the health figures; the effective rank can't exceed the number of rows."""


def feature_std(embedding: Tensor) -> Tensor:
    """Standard deviation of L2-normalised rows [N, D], mean over D: healthy ≈ 1/√D, collapsed 0."""
    return torch.nn.functional.normalize(embedding.float(), dim=1).std(dim=0, correction=0).mean()


def effective_rank(embedding: Tensor) -> Tensor:
    """RankMe: exp of the entropy of the normalised singular values of [N, D]; between 1 and min(N, D).

    Garrido et al., *RankMe*, ICML 2023, https://arxiv.org/abs/2210.02885 (rows not centred, as there). On the
    CPU. NaN if any value is not finite or singular values don't converge: no figure about a run may end it.
    """
    rows = embedding.float().cpu()  # some devices have no such decomposition (older MPS)
    if not rows.isfinite().all():
        return torch.tensor(torch.nan)
    try:
        values = torch.linalg.svdvals(rows)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return torch.tensor(torch.nan)
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())


def advice(figures: Mapping[str, float], width: int, share: float) -> str | None:
    """What is wrong with figures that look wrong, and the cure; None if nothing does.

    Args:
        figures: of an interval; "chance" is a K-way loss divided by that of guessing, log K.
        width: of the embedding, D.
        share: of the training that is done, 0 to 1; every network begins with guessing.
    """
    healthy = width**-0.5
    if figures.get("std", 1.0) < 0.05 * healthy:
        return (
            f"all images get nearly the same features (std {figures['std']:.2g}, healthy: {healthy:.2g}): "
            "the network has collapsed; start again with a smaller optim.lr or a larger batch"
        )
    if figures.get("rank", 2.0) < 1.05:
        return "the features vary along one direction only (rank 1): start again with a smaller optim.lr"
    if share > 0.3 and figures.get("chance", 0.0) > 0.995:
        return (
            "the loss stands where guessing would be: nothing is learned yet; "
            "a smaller optim.lr, a longer warm-up or, for a teacher, a lower method.momentum may help"
        )
    return None


def averaged(told: Sequence[tuple[dict[str, float], float]]) -> tuple[dict[str, float], float]:
    """Figures of all processes as means, without those that had no such task (NaN); the longest wait."""
    figures = [numbers for numbers, _ in told]
    means = {}
    for name in figures[0]:
        values = [numbers[name] for numbers in figures]
        there = [value for value in values if not math.isnan(value)] if name.startswith("loss_") else values
        means[name] = sum(there) / len(there) if there else math.nan
    return means, max(wait for _, wait in told)


class Interval:
    """Sums over the steps since the last log line; rows kept for longer would differ after a resume."""

    def __init__(self) -> None:
        self.steps = 0
        self.wait = 0.0
        self._metrics: dict[str, list[tuple[int, Tensor]]] = {}  # (which step of the interval, value)
        self._rows: list[Tensor] = []
        self._finite: list[Tensor] = []

    def add(self, step: Step) -> None:
        self.wait += step.wait
        self._finite.append(step.finite)
        for name, value in {**step.metrics, "grad_norm": step.grad_norm}.items():
            self._metrics.setdefault(name, []).append((self.steps, value))
        self.steps += 1
        if step.embedding is not None:
            self._rows.append(step.embedding)
            while sum(map(len, self._rows[1:])) >= ROWS:
                self._rows.pop(0)

    def figures(self) -> dict[str, float]:
        """Means of the metrics, effective rank and feature std.

        Steps without a task are left out, and so are those whose update was, unless there is no other.
        """
        finite = torch.stack(self._finite).tolist() if self._finite else []
        means = {}
        for name, values in self._metrics.items():
            kept = [value for step, value in values if finite[step]]
            means[name] = mean(name, kept or [value for _, value in values])
        if sum(map(len, self._rows)) > 1:  # one image alone spreads nowhere, and that is no collapse
            rows = torch.cat(self._rows)[-ROWS:]
            means |= {"rank": effective_rank(rows), "std": feature_std(rows)}
        if not means:
            return {}
        numbers = torch.stack([value.float().cpu() for value in means.values()]).tolist()
        return dict(zip(means, numbers, strict=True))
