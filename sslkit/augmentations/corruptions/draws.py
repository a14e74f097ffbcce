"""What is random in a corruption: each image's own draws, the same in any batch and on any machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslkit.core import rng


@dataclass(frozen=True)
class Draws:
    """Draws for a batch, keyed by (seed, image, stream, use).

    Args:
        index: int64 [B], the images' positions in the data set, on the device of the draws.
        stream: what the draws are for; every method's `use` names one of several under it.
    """

    seed: int
    index: Tensor
    stream: str

    def normal(self, use: str, *shape: int) -> Tensor:
        """N(0, 1), float32 [B, *shape]."""
        return rng.normal(self.seed, 0, self.index, shape, f"{self.stream}.{use}")

    def uniform(self, use: str, *shape: int) -> Tensor:
        """U[0, 1), float32 [B, *shape]."""
        count = math.prod(shape)
        counters = self.index[:, None] * count + torch.arange(count, device=self.index.device)
        return rng.uniform(self.seed, 0, counters, f"{self.stream}.{use}").reshape(-1, *shape)

    def generators(self, use: str) -> Iterator[np.random.Generator]:
        """A NumPy generator for each image, for distributions that have no closed form."""
        for image in self.index.tolist():
            yield rng.generator(self.seed, 0, image, f"{self.stream}.{use}")
