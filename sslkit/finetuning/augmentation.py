"""timm's training augmentation with keyed randomness.

timm draws from Python's, NumPy's and torch's global generators. Here they are seeded for one image of one
epoch (or one step, for mixing) and put back, so that results depend neither on the number of workers nor on
anything else that draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup, create_transform
from torch import Tensor

from sslkit.core import rng
from sslkit.data.images.picture import Picture
from sslkit.finetuning.config import Augment
from sslkit.models.encoder import IMAGENET_MEAN, IMAGENET_STD


@contextmanager
def seeded(generator: np.random.Generator) -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generators seeded from `generator`, and put back afterwards."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = generator.integers(1 << 32, size=3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    # torch.manual_seed would also reach for the accelerators.
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)


@dataclass(frozen=True)
class TrainingView:
    """Random crop, flip, RandAugment and random erasing, bicubic, as timm's `create_transform` does them."""

    size: int
    augment: Augment

    @cached_property
    def _transform(self) -> Any:
        return create_transform(
            self.size,
            is_training=True,
            scale=self.augment.crop_scale,
            hflip=self.augment.flip,
            color_jitter=0.0,
            auto_augment=self.augment.rand_augment or None,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            re_prob=self.augment.erasing,
            re_mode="pixel",
        )

    def __call__(self, picture: Picture, generator: np.random.Generator) -> Mapping[str, Tensor]:
        """{"image": float [3, size, size]}, [0, 1] but for erased rectangles.

        Those are noise of unit variance around the mean in normalised units, hence timm normalises first and
        it is undone here: nobody but the model normalises in sslkit.
        """
        with seeded(generator):
            normalised: Tensor = self._transform(picture.rgb())
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        return {"image": normalised * std + mean}


class Mixing:
    """Mixup or cutmix of a batch, one draw per step; always label smoothing.

    Zhang et al., *mixup*, ICLR 2018; Yun et al., *CutMix*, ICCV 2019; both by timm.
    """

    def __init__(self, augment: Augment, classes: int) -> None:
        self.enabled = augment.mix_probability > 0 and max(augment.mixup, augment.cutmix) > 0
        self.classes, self.smoothing = classes, augment.smoothing
        self.mixup = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mix_probability,
            switch_prob=0.5,
            label_smoothing=augment.smoothing,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """(images [B, 3, H, W], changed in place; labels int64 [B]) → images, soft targets [B, C].

        Raises:
            ValueError: B is odd; images are mixed in pairs.
        """
        if not self.enabled:
            return images, self._smoothed(labels)
        if len(images) % 2:
            raise ValueError(f"Mixing: an even batch expected, got {len(images)}")
        with seeded(rng.generator(seed, 0, step, "mixing")):
            mixed: tuple[Tensor, Tensor] = self.mixup(images, labels)
        return mixed

    def _smoothed(self, labels: Tensor) -> Tensor:
        """Label smoothing alone: [B] → [B, C]."""
        hard = F.one_hot(labels, self.classes).float()
        return hard * (1 - self.smoothing) + self.smoothing / self.classes
