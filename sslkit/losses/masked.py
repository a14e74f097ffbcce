"""Errors on what was hidden, whatever was predicted elsewhere.

Targets are float32, so differences are too, whatever autocast says of the prediction.
"""

from __future__ import annotations

from torch import Tensor


def masked_mean(values: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the hidden ones of the batch, a scalar: values [B, N], bool [B, N]."""
    return (values * hidden).sum() / hidden.sum()


def masked_mse(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden patches: [B, N, K] twice, bool [B, N] → scalar.

    MAE (He et al., CVPR 2022), section 3, "Reconstruction target".
    """
    return masked_mean((prediction - target).square().mean(-1), hidden)


def masked_l1(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error over hidden pixels: [B, C, H, W] twice, bool [B, 1, H, W] → scalar.

    SimMIM (Xie et al., CVPR 2022), equation 1; the 1e-5 is the official code's.
    """
    error = (prediction - target).abs() * hidden
    return error.sum() / (hidden.sum() + 1e-5) / target.shape[1]
