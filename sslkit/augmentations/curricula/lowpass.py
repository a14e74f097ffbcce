"""Low frequencies first: most of the epochs at half size, the rest at full size.

Zhang, Wang, Sun, Zou and Balestriero, *FastDINOv2: Frequency Based Curriculum Learning Improves Robustness
and Training Speed*, NeurIPS 2025, https://arxiv.org/abs/2507.03779

Three quarters of the epochs see global crops of 112 px and local ones of 48 px instead of 224 and 96; the
last quarter sees full size. Such a run costs 7/16 of one at full size, by pixels.

Differs from the official default: views shrink on the device by an exact low-frequency crop, where the paper
resizes by bicubic interpolation; its Gaussian noise on patches in the last quarter is an augmentation of its
own and is not part of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from sslkit.augmentations.curricula.curriculum import Curriculum, by_steps, stages_of
from sslkit.core.config.setting import setting


class LowPass(Curriculum):
    """FastDINOv2's schedule (NeurIPS 2025): three quarters of the epochs at half size."""

    @dataclass(frozen=True)
    class Config:
        share: float = setting(0.75, "of the epochs at the smaller size (official: 0.75)", low=0, high=1)
        size: float = setting(0.5, "the smaller side, share of the full one (official: 0.5)", above=0, high=1)

    def __init__(self, config: Config) -> None:
        stages = stages_of([config.size, 1.0], [1.0, 1.0])
        self.parts = by_steps(stages, [config.share, 1 - config.share])
