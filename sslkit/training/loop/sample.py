"""A batch to try something with, before the first step."""

from __future__ import annotations

from contextlib import closing

import torch

from sslkit.data.loading.loader import ViewTransform, pretraining_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Batch


def sample(images: ImageSet, transform: ViewTransform, count: int) -> Batch:
    """A batch of the first image's views, again and again."""
    batches = pretraining_loader(
        images, transform, batch_size=1, seed=0, start_step=0, steps=1, steps_per_epoch=1, workers=0
    )
    with closing(batches):
        one = next(batches)
    views = {name: value for name, value in one.items() if name not in ("index", "bad")}
    return {
        **{name: view.repeat_interleave(count, 0) for name, view in views.items()},
        "index": torch.arange(count),
    }
