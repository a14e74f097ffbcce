"""What the tests of augmentations of a batch begin with."""

from __future__ import annotations

from typing import NamedTuple

from sslkit.augmentations import batch
from sslkit.augmentations.batch.augment import BatchAugment
from sslkit.core.config.build import build


class At(NamedTuple):
    """A moment of training."""

    step: int = 3
    epoch: int = 1
    seed: int = 5


def made(name: str, **values: object) -> BatchAugment:
    """By its settings, as the command line gives them."""
    kind = batch.load(name)
    config = build(kind.Config, name, {f"{name}.{key}": value for key, value in values.items()})
    augment: BatchAugment = kind(config)
    return augment
