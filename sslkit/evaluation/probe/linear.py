"""Linear probe: multinomial logistic regression on frozen, standardised features, fitted to its optimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.core import rng

STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Candidates for the L2 penalty, strongest first: each fit starts from the one before."""

SPLIT = 0.2
"""Share of the training set on which penalty and read-out are chosen."""

_TOLERANCE = 1e-6  # largest entry of the gradient at which a fit counts as done
_PATIENCE = 2  # weaker penalties in a row that are no better end the search; the weakest are the slowest fits
_ITERATIONS = 200  # weak penalties on separable features have their optimum far away, and need not reach it


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier of feature vectors."""

    mean: Tensor  # [D]
    scale: Tensor  # [D]
    weight: Tensor  # [D, C]
    bias: Tensor  # [C]
    strength: float

    def logits(self, vectors: Tensor) -> Tensor:
        """float [M, D] → [M, C], differentiable."""
        x = _standard(vectors, self.mean, self.scale).to(self.weight.dtype)
        return _logits(x, self.weight, self.bias)

    def predict(self, vectors: Tensor) -> Tensor:
        """float [M, D] → class numbers, int64 [M]."""
        return self.logits(vectors).argmax(dim=1)


def fit_best(
    readouts: Mapping[str, Tensor], labels: Tensor, *, classes: int, seed: int = 0
) -> tuple[str, LinearProbe]:
    """Choose read-out and L2 strength on a stratified fifth of the training set, then fit on all of it.

    Of read-outs the one that is most often right on that fifth, of equal ones the first.

    Args:
        readouts: name → float [N, D]; labels: int64 [N].
        seed: of the fifth.
    """
    fit, held = stratified_split(labels, SPLIT, seed)
    best, best_correct, best_strength = "", -1, 0.0
    for name, vectors in readouts.items():
        x = _standard(vectors, *_mean_and_scale(vectors))
        strength, correct = _best_strength(x, labels, fit, held, classes)
        if correct > best_correct:
            best, best_correct, best_strength = name, correct, strength
    return best, _fitted(readouts[best], labels, best_strength, classes)


def fit_split(vectors: Tensor, labels: Tensor, split: tuple[Tensor, Tensor], *, classes: int) -> LinearProbe:
    """As `fit_best`, where rows are not independent and the caller knows what may be held out.

    Args:
        split: positions (rest, held) of the rows.
    """
    x = _standard(vectors, *_mean_and_scale(vectors))
    strength, _ = _best_strength(x, labels, *split, classes)
    return _fitted(vectors, labels, strength, classes)


def _fitted(vectors: Tensor, labels: Tensor, strength: float, classes: int) -> LinearProbe:
    mean, scale = _mean_and_scale(vectors)
    weight, bias = solve(_standard(vectors, mean, scale), labels, classes=classes, strength=strength)
    return LinearProbe(mean, scale, weight, bias, strength)


def _mean_and_scale(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Of every feature; a constant one keeps its scale."""
    mean, scale = vectors.mean(dim=0), vectors.std(dim=0, correction=0)
    return mean, torch.where(scale > 1e-6 * scale.max().clamp_min(1e-30), scale, torch.ones_like(scale))


def _standard(vectors: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (vectors - mean) / scale


def _best_strength(x: Tensor, labels: Tensor, fit: Tensor, held: Tensor, classes: int) -> tuple[float, int]:
    """The penalty with the least cross-entropy on the held-out part, and how often it is right there.

    By accuracy, on uneven classes, fits that are too weak to do more than name the most frequent class look
    as good as the first that have learned something, and the search would end with them.
    """
    best, least, right, start = 0, torch.inf, 0, None
    for number, strength in enumerate(STRENGTHS):
        start = solve(x[fit], labels[fit], classes=classes, strength=strength, start=start)
        logits = _logits(x[held], *start)
        loss = float(F.cross_entropy(logits, labels[held]))
        if loss < least:
            best, least = number, loss
            right = int((logits.argmax(dim=1) == labels[held]).sum())
        elif number - best == _PATIENCE:
            break
    return STRENGTHS[best], right


def solve(
    x: Tensor,
    labels: Tensor,
    *,
    classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight [D, C] and bias [C] that minimise `objective`, by L-BFGS over the full batch."""
    if 2 * len(x) <= x.shape[1]:  # the optimum lies in the span of the few rows: solve for it there
        basis, rows = torch.linalg.qr(x.T)  # [D, N], [N, N]
        inside = None if start is None else (basis.T @ start[0], start[1])
        weight, bias = solve(rows.T, labels, classes=classes, strength=strength, start=inside)
        return basis @ weight, bias
    zeros = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    weight, bias = (part.clone().requires_grad_() for part in start or zeros)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(x, labels, weight, bias, strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def objective(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    """Mean cross-entropy + strength / 2 · |weight|²; the bias is free."""
    return F.cross_entropy(_logits(x, weight, bias), labels) + strength / 2 * weight.square().sum()


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight + bias


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (rest, held): from every class `share` of its members, at least one of two or more."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    labels = labels.cpu()  # once, and not for every class
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) > 1:
            order = rng.generator(seed, 0, label, "linear split").permutation(len(members))
            held[members[torch.from_numpy(order)[: max(1, round(share * len(members)))]]] = True
    if not held.any():  # one image a class: choosing on the training images beats not choosing
        held[:] = True
        return torch.arange(len(labels)), torch.arange(len(labels))
    return (~held).nonzero().flatten(), held.nonzero().flatten()
