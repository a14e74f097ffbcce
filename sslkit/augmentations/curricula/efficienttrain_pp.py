"""EfficientTrain++: smaller images first, in stages of equal compute.

Wang, Yue, Lu, Han, Song and Huang, *EfficientTrain++: Generalized Curriculum Learning for Efficient Visual
Backbone Training*, TPAMI 2024, https://arxiv.org/abs/2405.08768

Ten stages, each with a tenth of the compute: stage i of side b makes (E / 10) (N / b)² epochs of a run that
is as long as E epochs at full size N, and RandAugment has the magnitude i of 9. With E = 200 and the sides 2
× 96, 4 × 160, 4 × 224 that is 454.6 epochs. The learning rate follows the share of the compute, not of the
epochs.

Differs from the official default: views shrink on the device by the exact low-frequency crop of the first
paper, where the code lets a worker resize by Lanczos; sides are whole strides of the backbone; there is no
replay buffer, which is for readers that are slower than the device, and drop path is not scaled by E.
"""

from __future__ import annotations

from dataclasses import dataclass

from sslkit.augmentations.curricula.curriculum import Curriculum, by_compute, stages_of
from sslkit.core.config.setting import setting


class EfficientTrainPP(Curriculum):
    """EfficientTrain++ (TPAMI 2024): smaller images and weak augmentation first, stages of equal compute."""

    @dataclass(frozen=True)
    class Config:
        sizes: tuple[float, ...] = setting(
            (96 / 224,) * 2 + (160 / 224,) * 4 + (1.0,) * 4,
            "sides in stages of equal compute, share of the full side (official: 2 × 96, 4 × 160, 4 × 224 of "
            "224; DeiT-S: 2 × 96, 4 × 160, 2 × 192, 2 × 224; ConvNeXt: 6 × 160, 4 × 224)",
            above=0,
            high=1,
        )

    def __init__(self, config: Config) -> None:
        strengths = [stage / max(1, len(config.sizes) - 1) for stage in range(len(config.sizes))]
        self.parts = by_compute(stages_of(config.sizes, strengths))
