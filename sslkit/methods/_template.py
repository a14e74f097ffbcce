"""Sharpening: see an image without its high frequencies, predict all of it. An example, not a paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sslkit.frequency import low_pass
from sslkit.methods.base import (
    Batch,
    Clock,
    Encoder,
    Info,
    Method,
    RandomResizedCrop,
    Transform,
    Views,
    setting,
)


class Sharpen(Method):
    """Predict an image from its low frequencies."""

    family = "frequency"
    paper = "none"
    year = 2026
    backbones = ("vit", "cnn", "swin")

    @dataclass(frozen=True)
    class Config:
        radius: float = setting(4.0, "frequencies that the input keeps, bins", above=0)

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        channels = 3 * encoder.stride**2
        self.head = nn.Sequential(nn.Conv2d(encoder.width, channels, 1), nn.PixelShuffle(encoder.stride))

    def transform(self) -> Transform:
        return Views(image=RandomResizedCrop(self.info.size))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = batch["image"]
        features = self.encoder.maps(low_pass(images, self.config.radius))[0]
        error = self.head(features).float() - self.encoder.normalize(images)
        return {"loss": error.square().mean(), "embedding": features.detach().mean((2, 3))}
