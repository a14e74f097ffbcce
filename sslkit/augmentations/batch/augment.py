"""What happens to a whole batch of views, on the device, between a method's colours and its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from sslkit.core import rng


class Moment(Protocol):
    """Where training stands, as a method's `Clock` says it."""

    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class BatchAugment(Protocol):
    """A file of this folder holds one, with a `Config` of its settings, from which it is made.

    It gets the batch as all micro-batches together, float32 [B, 3, S, S] in [0, 1], and gives new tensors of
    the same kind. What differs from image to image is drawn by (seed, epoch, image index, view), what is one
    for the batch by (seed, step, view): then it is the same in all processes. No process waits for its
    device.
    """

    wants: ClassVar[Mapping[str, Any]] = {}
    """What it asks of the method: values for settings of these names, where a method has them."""

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        """Views by name, and the images' positions in the data set, int64 [B] → the views, changed."""
        ...


def pictures(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those entries of a batch that are images: float [B, 3, H, W]. Others, such as boxes, are left alone."""
    return {
        name: view
        for name, view in views.items()
        if view.ndim == 4 and view.shape[1] == 3 and view.is_floating_point()
    }


def batch_draws(clock: Moment, stream: str) -> np.random.Generator:
    """Random numbers that a whole batch shares, in all processes; `stream` says what for."""
    return rng.generator(clock.seed, 0, clock.step, stream)
