"""Frozen features: every image through an encoder once; raw pixels are the baseline nobody should lose to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import SILENT, Console
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.errors import UserError
from sslkit.data.audit.likeness import LIKENESS, Looks, look_at
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.probe.readout import ReadFunction

PIXEL_SIDE = 32
_BATCH = 128


@dataclass(frozen=True)
class Features:
    """What one model makes of one set; images that could not be read are missing from all of these."""

    vectors: dict[str, Tensor]  # name of a read-out → float32 [N, D], on the CPU
    labels: Tensor  # int64 [N]
    kept: Tensor  # int64 [N]: positions in the image set, ascending
    looks: Looks | None = None  # [N], where they were asked for

    def take(self, rows: Tensor) -> Features:
        """The images at `rows`, bool [N] or int64 [n]."""
        vectors = {name: values[rows] for name, values in self.vectors.items()}
        looks = None if self.looks is None else self.looks[rows.numpy()]
        return replace(self, vectors=vectors, labels=self.labels[rows], kept=self.kept[rows], looks=looks)


@dataclass(frozen=True)
class CropAndLook:
    """The central crop and, behind it, the bytes of `look_at` of the whole image: both from one decoding."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3 · size² + 97]."""
        look = torch.from_numpy(np.frombuffer(look_at(image).tobytes(), np.uint8).copy())
        return torch.cat([CenterCrop(self.size)(image).flatten(), look])

    def parts(self, views: Tensor) -> tuple[Tensor, Looks]:
        """A batch [B, 3 · size² + 97] as crops [B, 3, size, size] and looks [B]."""
        crops, looks = views[:, : -LIKENESS.itemsize], views[:, -LIKENESS.itemsize :]
        return crops.reshape(-1, 3, self.size, self.size), looks.contiguous().numpy().view(LIKENESS)[:, 0]


def extract(
    read: ReadFunction,
    images: ImageSet,
    size: int,
    *,
    device: torch.device,
    precision: Precision = "float32",
    workers: int = 0,
    looks: bool = False,
    label: str = "features",
    console: Console = SILENT,
) -> Features:
    """One vector per read-out and readable image, from its central crop of `size` pixels a side.

    Args:
        read: the model, already on `device` and in evaluation mode.
        images: a labelled set.
        looks: also what near duplicates are found by.
        label: what the progress bar is called.

    Raises:
        UserError: not one image could be read.
        ValueError: the set has no labels.
    """
    if images.labels is None:
        raise ValueError(f"extract: labelled images expected, {images.name} has no labels")
    both = CropAndLook(size)
    vectors, kept, seen = defaultdict(list), [], []
    with torch.inference_mode(), console.bar(label, len(images)) as bar:
        for batch, _, index in evaluation_loader(
            images, both if looks else CenterCrop(size), _BATCH, workers
        ):
            views = batch
            if looks:
                views, look = both.parts(batch)
                seen.append(look)
            with autocast(device, precision):
                output = read(to_device({"image": views}, device)["image"])
            for name, values in output.items():
                vectors[name].append(values.float().cpu())
            kept.append(index)
            bar.advance(len(index))
    if not kept:
        raise UserError(f"{images.name}: none of {len(images)} images can be read")
    index = torch.cat(kept)
    return Features(
        {name: torch.cat(parts) for name, parts in vectors.items()},
        torch.tensor(images.labels)[index],
        index,
        np.concatenate(seen) if looks else None,
    )


def pixels(images: Tensor) -> dict[str, Tensor]:
    """Raw pixels as a feature: [B, 3, h, w] → [B, 3·h·w]. The kNN's own centring removes their mean."""
    return {"pixels": images.flatten(1)}
