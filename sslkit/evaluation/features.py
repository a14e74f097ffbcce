"""Frozen features: every image through an encoder once; raw pixels are the baseline nobody should lose to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.augment.geometry import CenterCrop
from sslkit.console import SILENT, Console
from sslkit.data.loader import evaluation_loader
from sslkit.data.sources import ImageSet
from sslkit.errors import UserError
from sslkit.training.device import Precision, autocast, to_device

VectorFunction = Callable[[Tensor], Tensor]
"""float [B, 3, H, W] in [0, 1] → [B, D]; `Encoder.vector` is one."""

PIXEL_SIDE = 32
BATCH = 128


@dataclass(frozen=True)
class Features:
    """What one model makes of one set; images that could not be read are missing from all three."""

    vectors: Tensor  # float32 [N, D], on the CPU
    labels: Tensor  # int64 [N]
    kept: Tensor  # int64 [N]: positions in the image set, ascending


def extract(
    vector: VectorFunction,
    images: ImageSet,
    size: int,
    *,
    device: torch.device,
    precision: Precision = "float32",
    workers: int = 0,
    label: str = "features",
    console: Console = SILENT,
) -> Features:
    """One vector per readable image, from its central crop of `size` pixels a side.

    Args:
        vector: the model, already on `device` and in evaluation mode.
        images: a labelled set.
        label: what the progress bar is called.

    Raises:
        UserError: not one image could be read.
        ValueError: the set has no labels.
    """
    if images.labels is None:
        raise ValueError(f"extract: labelled images expected, {images.name} has no labels")
    vectors, labels, kept = [], [], []
    with torch.inference_mode(), console.bar(label, len(images)) as bar:
        for views, targets, index in evaluation_loader(images, CenterCrop(size), BATCH, workers):
            with autocast(device, precision):
                output = vector(to_device({"image": views}, device)["image"])
            vectors.append(output.float().cpu())
            labels.append(targets)
            kept.append(index)
            bar.advance(len(index))
    if not vectors:
        raise UserError(f"{images.name}: none of {len(images)} images can be read")
    return Features(torch.cat(vectors), torch.cat([t for t in labels if t is not None]), torch.cat(kept))


def pixels(images: Tensor) -> Tensor:
    """Raw pixels as a feature: [B, 3, h, w] → [B, 3·h·w]. The kNN's own centring removes their mean."""
    return images.flatten(1)
