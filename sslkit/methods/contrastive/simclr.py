"""SimCLR: two views of an image must find each other among the views of all other images in the batch.

Chen, Kornblith, Norouzi and Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*,
ICML 2020, https://arxiv.org/abs/2002.05709

No memory and no teacher: the other images of the batch are the negatives, so the batch should be large. The
loss is the mean over all 2 B views, half of the sum that the official code returns.

Differs from the official default: the images' sides decide the kernel of the blur as there, but the colour
strength is 0.5 and the blur is off for images up to 64 px, as the paper does on CIFAR-10; small batches get
SGD, because LARS at its rate for 4,096 images hardly moves (the recipes hold the paper's); a ViT, which the
paper does not have, gets AdamW. Images are normalised as ImageNet's; contrast, crops and blur are
torchvision's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sslkit.augmentations import settings
from sslkit.augmentations.multi_view import SMALL, one_crop, two_views
from sslkit.augmentations.photometric import Photometry
from sslkit.core.config.setting import AUTO, setting
from sslkit.losses.contrastive import batch_logits
from sslkit.methods.base import AFTER_WARMUP, Batch, Choices, Clock, Encoder, Info, Method, Outputs, optimizer
from sslkit.models.heads import mlp
from sslkit.models.norm import BatchNorm1d


class SimCLR(Method):
    """SimCLR (ICML 2020): contrast two views of an image with all other images of the batch."""

    minimum_batch = 2
    couples_images = True
    defaults = AFTER_WARMUP | {"optim.reference_batch": 256}

    @dataclass(frozen=True)
    class Config:
        temperature: float = setting(0.1, "of the softmax (official: 0.1; CIFAR-10: 0.5)", above=0)
        projection: int = setting(128, "width of the vectors that are compared (official: 128)", low=1)
        hidden: int = setting(0, "width of the head's middle layer; 0: the encoder's (official)", low=0)
        strength: float = setting(
            AUTO, "of the colour jitter; auto: 1, or 0.5 up to 64 px (official)", low=0, high=2.5
        )
        blur: float = settings.share(AUTO, "probability of blur; auto: 0.5, or 0 up to 64 px (official)")
        crop_scale: tuple[float, float] = settings.crop_scale(0.08)
        flip: float = settings.flip()

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        widths = [encoder.width, config.hidden or encoder.width, config.projection]
        self.head = nn.Sequential(mlp(widths, batch_norm=True), BatchNorm1d(config.projection))
        self.head[1].bias.requires_grad_(False)  # the official last norm scales and does not shift
        contrast, hue = 0.8 * config.strength, 0.2 * config.strength
        colours = Photometry(contrast, contrast, contrast, hue, blur=config.blur)
        self.views = two_views("simclr", one_crop(config, info.size), colours)

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        small = info.size <= SMALL
        reason = f"the paper's for {'small' if small else 'large'} images: {info.size} px"
        choices: Choices = {
            "strength": (0.5 if small else 1.0, reason),
            "blur": (0.0 if small else 0.5, reason),
        }
        if family != "cnn":
            return choices
        sgd = "usual for a CNN and small batches; recipes hold the paper's LARS"
        return choices | optimizer(sgd, name="sgd", lr=0.12)

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        views = self.views.of(batch)
        vectors = self.encoder.vector(torch.cat(views))  # [2 B, D]
        logits, partner = batch_logits(self.head(vectors), self.config.temperature)
        loss = F.cross_entropy(logits, partner)
        return {
            "loss": loss,
            "chance": loss.detach() / math.log(logits.shape[1] - 1),
            "accuracy": (logits.argmax(1) == partner).float().mean(),
            "embedding": vectors.detach(),
        }
