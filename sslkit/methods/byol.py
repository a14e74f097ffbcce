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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.augmentations.photometric import Photometry, View, photographed
from sslkit.core.config.setting import AUTO, setting
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import mlp, momentum_copy, momentum_update_, rising_momentum
from sslkit.models.encoder import Encoder


class BYOL(Method):
    """Bootstrap Your Own Latent (NeurIPS 2020): predict a slow copy's answer to another view."""

    family = "self-distillation"
    paper = "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning"
    year = 2020
    link = "https://arxiv.org/abs/2006.07733"
    backbones = ("vit", "cnn", "swin", "transformer")
    status = "tested"
    minimum_batch = 2
    couples_images = True

    @dataclass(frozen=True)
    class Config:
        momentum: float = setting(
            0.99,
            "of the target at the start, then it rises to 1 (official: 0.97, 0.99, 0.99, 0.996 for 40, 100, "
            "300, 1000 epochs); starts at most 1 - 5 / steps, for short runs (ours)",
            low=0,
            high=1,
        )
        hidden: int = setting(4096, "width of projector and predictor (official: 4096)", low=1)
        projection: int = setting(256, "width of what is predicted (official: 256)", low=1)
        jitter: tuple[float, float, float] = setting(
            (0.4, 0.4, 0.2), "of brightness, contrast and saturation (official)", low=0
        )
        hue: float = setting(0.1, "jitter of the hue, turns (official: 0.1)", low=0, high=0.5)
        jitter_share: float = setting(0.8, "probability of colour jitter (official: 0.8)", low=0, high=1)
        grayscale: float = setting(0.2, "probability of grey views (official: 0.2)", low=0, high=1)
        blur: tuple[float, float] = setting(
            AUTO,
            "probability of blur in the two views; auto: 1 and 0.1 (official), or 0 up to 64 px",
            low=0,
            high=1,
            auto=True,
        )
        solarize: tuple[float, float] = setting(
            (0.0, 0.2), "probability of solarisation in the two views (official)", low=0, high=1
        )
        crop_scale: tuple[float, float] = setting(
            (0.08, 1.0),
            "area of the random crops, share of the image (official)",
            above=0,
            high=1,
            ordered=True,
        )
        flip: float = setting(0.5, "probability of a horizontal flip (official: 0.5)", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.reference_batch": 256,
        "schedule.warmup_lr": 0.0,
        "schedule.min_lr": 0.0,
        "schedule.cosine_after_warmup": True,
    }
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "*.pos_embed": {"weight_decay": 0.0},
        "*.cls_token": {"weight_decay": 0.0},
    }

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        self.projector = mlp([encoder.width, config.hidden, config.projection], batch_norm=True)
        self.predictor = mlp([config.projection, config.hidden, config.projection], batch_norm=True)
        self.target_encoder, self.target_projector = momentum_copy(encoder), momentum_copy(self.projector)
        self.photometry = {"first": self._photometry(0), "second": self._photometry(1)}

    def _photometry(self, view: int) -> Photometry:
        brightness, contrast, saturation = self.config.jitter
        return Photometry(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=self.config.hue,
            jitter=self.config.jitter_share,
            grayscale=self.config.grayscale,
            blur=self.config.blur[view],
            solarize=self.config.solarize[view],
        )

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        small = info.size <= 64
        blur = ((0.0, 0.0), f"images have {info.size} px") if small else ((1.0, 0.1), "the paper's")
        if family != "cnn":
            return {"blur": blur, "optim.name": ("adamw", f"usual for a {family}; the paper has CNNs only")}
        authors = "the authors' for Imagenette; recipes hold the paper's for ImageNet"
        return {
            "blur": blur,
            "optim.name": ("lars", "the paper's for a CNN"),
            "optim.lr": (2.0, authors),
            "optim.weight_decay": (1e-6, authors),
        }

    def transform(self) -> Transform:
        crop = RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip)
        return Views(first=crop, second=crop)

    def prepare(self, images: ImageSet) -> None:
        """The encoder may have started from given weights: its follower starts there too."""
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    def momentum(self, clock: Clock) -> float:
        """Rises from the setting to 1; from less in a run too short for the target to forget its start."""
        start = min(float(self.config.momentum), max(0.0, 1 - 5 / clock.steps))
        return rising_momentum(start, clock.step, clock.steps)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        crops = [View(photometry, batch[n], f"byol.{n}") for n, photometry in self.photometry.items()]
        views = photographed(crops, batch["index"], clock.seed, clock.epoch)
        # View by view, as the paper: batch norm's statistics are those of one view.
        vectors = [self.encoder.vector(view) for view in views]
        projections = [self.projector(vector) for vector in vectors]
        first, second = (self.predictor(projection) for projection in projections)
        with torch.no_grad():
            targets = [self.target_projector(self.target_encoder.vector(view)) for view in views]
        loss = (distance(first, targets[1]) + distance(second, targets[0])).mean()
        return {
            "loss": loss,
            "projection_std": spread(projections[0].detach()),
            "momentum": loss.new_full((), self.momentum(clock)),
            "embedding": vectors[0].detach(),
        }

    def after_step(self, clock: Clock) -> None:
        momentum = self.momentum(clock)
        momentum_update_(self.target_encoder, self.encoder, momentum)
        momentum_update_(self.target_projector, self.projector, momentum)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """The image and what may happen to the colours of either view; crops are the workers' business."""
        image, index = batch["image"], batch["index"]
        drawn = {
            name: photometry(image, index, 0, 0, f"byol.{name}")
            for name, photometry in self.photometry.items()
        }
        return {"image": image, **drawn}


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """‖p/|p| - z/|z|‖² = 2 - 2 cos(p, z), float32 [B] in [0, 4], of two [B, d] (the paper's equation 2)."""
    return 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)


def spread(vectors: Tensor) -> Tensor:
    """Deviation over the rows of the unit vectors of [B, d], mean over d: about 1/√d, and 0 in a collapse.

    A collapse shows in what the loss compares long before it reaches the encoder's vectors.
    """
    return F.normalize(vectors.float(), dim=1).std(dim=0, correction=0).mean()
