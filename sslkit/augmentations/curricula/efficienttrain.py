"""EfficientTrain: all images in every epoch, first only their low frequencies, weakly augmented.

Wang, Yue, Lu, Liu, Zhong, Song and Huang, *EfficientTrain: Exploring Generalized Curriculum Learning for
Training Visual Backbones*, ICCV 2023, https://arxiv.org/abs/2211.09703

Five stages of equally many epochs. A stage of bandwidth b keeps the wave numbers -b/2 … b/2 - 1 of a spectrum
on both axes, at b × b pixels with the brightness kept (section 4.1), and RandAugment has the magnitude 1, 3,
5, 7, 9 of 9. At b = 160, 160, 160, 192, 224 of 224 px a run costs 0.653 of what it would at full size: 1.53
times quicker.

Differs from the official default: the crop is centred on pixels, so that it commutes with flips, where the
paper's is moved by (N / b - 1) / 2 source pixels; it leaves out a checkerboard of 1e-3 that the paper's real
part adds (docs/frequency.md); sides are whole strides of the backbone. Evaluation always has full size.
"""

from __future__ import annotations

from dataclasses import dataclass

from sslkit.augmentations.curricula.curriculum import Curriculum, by_steps, stages_of
from sslkit.core.config.setting import setting


class EfficientTrain(Curriculum):
    """EfficientTrain (ICCV 2023): low frequencies and weak augmentation first, in stages of equal length."""

    @dataclass(frozen=True)
    class Config:
        sizes: tuple[float, ...] = setting(
            (160 / 224, 160 / 224, 160 / 224, 192 / 224, 1.0),
            "sides in stages of equally many epochs, share of the full side (official: 160, 160, 160, 192, "
            "224 of 224)",
            above=0,
            high=1,
        )

    def __init__(self, config: Config) -> None:
        count = len(config.sizes)
        strengths = [(2 * stage + 1) / (2 * count - 1) for stage in range(count)]
        self.parts = by_steps(stages_of(config.sizes, strengths))
