"""Losses of agreeing with a target network, and figures that show a collapse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """‖p/|p| - z/|z|‖² = 2 - 2 cos(p, z), float32 [B] in [0, 4], of two [B, d].

    BYOL (Grill et al., NeurIPS 2020), equation 2.
    """
    return 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)


def pairs_ce(log_student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross-entropy -Σ p log q over images and pairs of two different crops.

    DINO (Caron et al., ICCV 2021), equation 3; official: T = 2 large crops, so 2 V - 2 pairs.

    Args:
        log_student: log q [V, B, K], those crops first that the teacher sees too.
        teacher: p [T, B, K] of these, T ≤ V.
    """
    others = log_student.sum(0) - log_student[: len(teacher)]
    return -(teacher * others).sum(2).mean() / (len(log_student) - 1)


def spread(vectors: Tensor) -> Tensor:
    """Standard deviation over the unit rows of [B, d], mean over d: about 1/√d, and 0 in a collapse.

    A collapse shows in what the loss compares long before it reaches the encoder's vectors.
    """
    return F.normalize(vectors.float(), dim=1).std(dim=0, correction=0).mean()
