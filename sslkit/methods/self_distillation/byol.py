"""BYOL: from one view of an image, predict what a slowly moving copy of the network makes of the other view.

Grill, Strub, Altché, Tallec, Richemond and others, *Bootstrap Your Own Latent: A New Approach to
Self-Supervised Learning*, NeurIPS 2020, https://arxiv.org/abs/2006.07733

There are no negatives. A predictor on one side only, and a target that follows slowly, keep the network from
answering the same for every image. Loss: 2 - 2 cos(prediction, target), both ways, between 0 and 8.

Differs from the official code: the target starts as a copy of the online network (there from another draw;
its authors saw no difference); the last layer of projector and predictor has a bias, the first, before batch
norm, has none; brightness is multiplied, not shifted; the momentum starts lower in runs of a few hundred
steps; no blur up to 64 px, as usual on CIFAR-10; a CNN gets the authors' LARS for Imagenette, as their rate
for ImageNet at batch 4,096 hardly moves a small run (recipes hold it); a ViT, which the paper does not have,
gets AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sslkit.augmentations import settings
from sslkit.augmentations.multi_view import blur_of, one_crop, photometry, two_views
from sslkit.core.config.setting import AUTO, setting
from sslkit.losses.distillation import cosine, spread
from sslkit.methods.base import (
    AFTER_WARMUP,
    NO_DECAY,
    Batch,
    Choices,
    Clock,
    Encoder,
    Info,
    Method,
    Outputs,
    optimizer,
)  # fmt: skip
from sslkit.models.ema import momentum_copy, rising_momentum, short_run_momentum
from sslkit.models.heads import mlp


class BYOL(Method):
    """Bootstrap Your Own Latent (NeurIPS 2020): predict a slow copy's answer to another view."""

    minimum_batch = 2
    couples_images = True
    defaults = AFTER_WARMUP | {"optim.reference_batch": 256}
    overrides = NO_DECAY

    @dataclass(frozen=True)
    class Config:
        momentum: float = settings.share(
            0.99,
            "of the target at the start, then it rises to 1 (official: 0.97, 0.99, 0.99, 0.996 for 40, 100, "
            "300, 1000 epochs); starts at most 1 - 5 / steps, for short runs (ours)",
        )
        hidden: int = setting(4096, "width of projector and predictor (official: 4096)", low=1)
        projection: int = setting(256, "width of what is predicted (official: 256)", low=1)
        jitter: tuple[float, float, float] = settings.jitter(0.4, 0.4, 0.2)
        hue: float = settings.hue(0.1)
        jitter_share: float = settings.jitter_share(0.8)
        grayscale: float = settings.share(0.2, "probability of grey views (official: 0.2)")
        blur: tuple[float, float] = settings.share(
            AUTO, "probability of blur in the two views; auto: 1 and 0.1 (official), or 0 up to 64 px"
        )
        solarize: tuple[float, float] = settings.share(
            (0.0, 0.2), "probability of solarisation in the two views (official)"
        )
        crop_scale: tuple[float, float] = settings.crop_scale(0.08)
        flip: float = settings.flip()

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        self.projector = mlp([encoder.width, config.hidden, config.projection], batch_norm=True)
        self.predictor = mlp([config.projection, config.hidden, config.projection], batch_norm=True)
        self.target_encoder, self.target_projector = momentum_copy(encoder), momentum_copy(self.projector)
        colours = photometry(config, view=0), photometry(config, view=1)
        self.views = two_views("byol", one_crop(config, info.size), *colours)

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        blur: Choices = {"blur": blur_of(info.size, (1.0, 0.1))}
        if family != "cnn":
            return blur | optimizer(f"usual for a {family}; the paper has CNNs only", name="adamw")
        authors = "the authors' for Imagenette; recipes hold the paper's for ImageNet"
        lars = optimizer("the paper's for a CNN", name="lars")
        return blur | lars | optimizer(authors, lr=2.0, weight_decay=1e-6)

    def followers(self) -> dict[nn.Module, nn.Module]:
        return {self.target_encoder: self.encoder, self.target_projector: self.projector}

    def momentum(self, clock: Clock) -> float:
        """Rises from the setting to 1; from less in a run too short for the target to forget its start."""
        start = short_run_momentum(self.config.momentum, clock.steps)
        return rising_momentum(start, clock.step, clock.steps)

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        views = self.views.of(batch)
        # View by view, as the paper: batch norm's statistics are those of one view.
        vectors = [self.encoder.vector(view) for view in views]
        projections = [self.projector(vector) for vector in vectors]
        first, second = (self.predictor(projection) for projection in projections)
        with torch.no_grad():
            targets = [self.target_projector(self.target_encoder.vector(view)) for view in views]
        loss = (cosine(first, targets[1]) + cosine(second, targets[0])).mean()
        return {
            "loss": loss,
            "projection_std": spread(projections[0].detach()),
            "momentum": loss.new_full((), self.momentum(clock)),
            "embedding": vectors[0].detach(),
        }
