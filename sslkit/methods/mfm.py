"""Masked Frequency Modeling: remove a part of an image's spectrum, learn to predict it.

Xie, Li, Zhan, Liu, Ong and Loy, *Masked Frequency Modeling for Self-Supervised Visual Pre-Training*,
ICLR 2023, https://arxiv.org/abs/2206.07706

Each image keeps either its low or its high frequencies (a disc around DC in the spectrum decides which
is which); the network sees the filtered image and predicts the missing bins. No mask token, no second
network, no colour augmentation; works for ViT and CNN alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sslkit.augment.geometry import RandomResizedCrop, Views
from sslkit.backbones import Encoder, initialize_vit_, require_maps
from sslkit.config import AUTO, setting
from sslkit.errors import UserError
from sslkit.frequency import corrupt, high_pass, low_pass, spectral_error
from sslkit.keyed import uniform
from sslkit.methods.base import Batch, Clock, Info, Method, Transform


class MFM(Method):
    """Masked Frequency Modeling (ICLR 2023): predict the removed part of the spectrum."""

    family = "frequency"
    paper = "Masked Frequency Modeling for Self-Supervised Visual Pre-Training"
    year = 2023
    link = "https://arxiv.org/abs/2206.07706"
    backbones = ("vit", "cnn", "swin")

    @dataclass(frozen=True)
    class Config:
        radius: float = setting(
            AUTO,
            "radius of the low-frequency disc, bins; auto: 16 · min(size, native side) / 224",
            above=0,
            auto=True,
        )
        low_share: float = setting(
            AUTO,
            "share of the inputs that keep the low frequencies; auto: 0.5 (ViT), 0.3 (CNN)",
            low=0,
            high=1,
            auto=True,
        )
        reduction: Literal["pooled", "per_sample", "balanced"] = setting(
            "pooled", "mean over all bins of the batch (official), per image first, or per task first"
        )
        clamp: Literal["official", "none", "half"] = setting(
            "official", "filtered images are clamped to [0, 1], or not, or high-pass ones get ½ added before"
        )
        gamma: float = setting(1.0, "power of the distance between complex bins", above=0)
        crop_scale: tuple[float, float] = setting(
            (0.2, 1.0), "area of the random crop, share of the image", low=0, high=1
        )
        flip: float = setting(0.5, "probability of a horizontal flip", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.betas": (0.9, 0.95),
        "optim.weight_decay": 0.05,
        "optim.clip": 3.0,
    }
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "*.pos_embed": {"weight_decay": 0.0},
        "*.cls_token": {"weight_decay": 0.0},
    }

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        require_maps(encoder)
        low, high = config.crop_scale
        if low > high:
            raise UserError(f"method.crop_scale: {low} is not <= {high}", "smallest share of the image first")
        if config.radius**2 > 2 * (encoder.size // 2) ** 2:
            problem = f"method.radius: {config.radius} keeps every bin of {encoder.size} px"
            raise UserError(f"{problem}, nothing is masked", "-s method.radius=auto suits the size")
        if encoder.family == "vit":
            initialize_vit_(encoder.model)
        # One 1×1 convolution and PixelShuffle is the whole decoder; the convolution keeps torch's own
        # initialisation, as the official code does. Channel order is (colour, row, column).
        self.head = nn.Sequential(
            nn.Conv2d(encoder.width, 3 * encoder.stride**2, kernel_size=1), nn.PixelShuffle(encoder.stride)
        )

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        side = min(info.size, info.native)
        return {
            "radius": (round(16 * side / 224, 2), f"16 bins at 224 px, scaled to {side} px"),
            "low_share": (0.3 if family == "cnn" else 0.5, f"the paper's for a {family}"),
        }

    def transform(self) -> Transform:
        return Views(image=RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip))

    def keep_low(self, index: Tensor, clock: Clock) -> Tensor:
        """bool [B]: True = this image's input keeps its low frequencies, and the high ones are predicted."""
        draw = uniform(clock.seed, clock.epoch, index, "mfm.keep_low")
        return draw < float(self.config.low_share)

    def corrupt(self, images: Tensor, keep_low: Tensor) -> Tensor:
        """What the encoder gets to see of images [B, 3, H, W] in [0, 1]."""
        if self.config.clamp == "official":
            return corrupt(images, keep_low, self.config.radius)
        filtered = corrupt(images, keep_low, self.config.radius, clamp=False)
        if self.config.clamp == "none":
            return filtered
        # A high-pass image has mean zero: the official clamp loses its negative half, ½ keeps both.
        return (filtered + 0.5 * ~keep_low[:, None, None, None]).clamp(0, 1)

    def predict(self, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        """Filtered images [B, 3, H, W] in [0, 1] → predicted normalised images, final map [B, D, h, w]."""
        features = self.encoder.maps(corrupted)[0]
        return self.head(features), features

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images, radius = batch["image"], self.config.radius
        keep_low = self.keep_low(batch["index"], clock)
        prediction, features = self.predict(self.corrupt(images, keep_low))
        target = self.encoder.normalize(images)
        error = spectral_error(prediction, target, keep_low, radius, self.config.gamma)
        tasks = {f"loss_{task}": value for task, value in error.by_task().items()}
        return {
            "loss": error.reduce(self.config.reduction),
            **tasks,
            "embedding": features.detach().mean((2, 3)),
        }

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Input, corrupted, prediction, and the composite of kept bins and predicted bins.

        The composite is the fair picture: kept bins are never supervised, so the raw prediction is
        free to be anything there. The first half of the batch shows the low-pass task.
        """
        images, radius = batch["image"], self.config.radius
        keep_low = torch.arange(len(images), device=images.device) < (len(images) + 1) // 2
        corrupted = self.corrupt(images, keep_low)
        prediction = self.encoder.denormalize(self.predict(corrupted)[0].float())
        flag = keep_low[:, None, None, None]
        lows = low_pass(torch.where(flag, images, prediction), radius)
        highs = high_pass(torch.where(flag, prediction, images), radius)
        return {
            "image": images,
            "corrupted": corrupted.clamp(0, 1),
            "prediction": prediction.clamp(0, 1),
            "composite": (lows + highs).clamp(0, 1),
        }
