"""Attacks that know the classifier: FGSM and PGD within an L∞ ball, on images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.augmentations.corruptions.draws import Draws

Logits = Callable[[Tensor], Tensor]
"""float [B, 3, H, W] in [0, 1] → [B, C]: normalisation, encoder and head, in evaluation mode."""


def fgsm(logits: Logits, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step of `epsilon` / 255 along the gradient's sign (Goodfellow et al., ICLR 2015, arXiv 1412.6572).

    Args:
        logits: differentiable with respect to the images.
        images: float [B, 3, H, W] in [0, 1]; labels: int64 [B], the true ones.

    Returns:
        [B, 3, H, W] in [0, 1], at most `epsilon` / 255 from `images`.
    """
    return (images + epsilon / 255 * gradient(logits, images, labels).sign()).clamp(0, 1)


def pgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    epsilon: float,
    *,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Projected gradient ascent from a random start (Madry et al., ICLR 2018, arXiv 1706.06083).

    Steps of 2.5 · epsilon / steps, that paper's rule, so that any point of the ball can be reached. The last
    iterate is returned.

    Args:
        index: int64 [B], keys of the random starts.
        epsilon: half the width of the L∞ ball, in 1/255.
    """
    reach = epsilon / 255
    low, high = (images - reach).clamp(min=0), (images + reach).clamp(max=1)
    start = 2 * Draws(seed, index, "pgd").uniform("start", *images.shape[1:]) - 1
    attacked = (images + reach * start).clamp(low, high)
    for _ in range(steps):
        step = 2.5 * reach / steps * gradient(logits, attacked, labels).sign()
        attacked = (attacked + step).clamp(low, high)
    return attacked


def gradient(logits: Logits, images: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy with respect to the images: no image's depends on the others'."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(logits(images).float(), labels, reduction="sum")
        (found,) = torch.autograd.grad(loss, images)
    return found
