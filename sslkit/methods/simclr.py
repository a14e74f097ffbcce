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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.augmentations.photometric import Photometry, View, photographed
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.distributed import collectives
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import BatchNorm1d, mlp
from sslkit.models.encoder import Encoder


class SimCLR(Method):
    """SimCLR (ICML 2020): contrast two views of an image with all other images of the batch."""

    family = "contrastive"
    paper = "A Simple Framework for Contrastive Learning of Visual Representations"
    year = 2020
    link = "https://arxiv.org/abs/2002.05709"
    backbones = ("vit", "cnn", "swin", "transformer")
    status = "tested"
    minimum_batch = 2
    couples_images = True

    @dataclass(frozen=True)
    class Config:
        temperature: float = setting(
            0.1, "of the softmax over similarities (official: 0.1; CIFAR-10: 0.5)", above=0
        )
        projection: int = setting(128, "width of the vectors that are compared (official: 128)", low=1)
        hidden: int = setting(0, "width of the head's middle layer; 0: the encoder's (official)", low=0)
        strength: float = setting(
            AUTO, "of the colour jitter; auto: 1, or 0.5 up to 64 px (official)", low=0, high=2.5, auto=True
        )
        blur: float = setting(
            AUTO, "probability of blur; auto: 0.5, or 0 up to 64 px (official)", low=0, high=1, auto=True
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

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        width, hidden = encoder.width, config.hidden or encoder.width
        self.head = nn.Sequential(
            mlp([width, hidden, config.projection], batch_norm=True), BatchNorm1d(config.projection)
        )
        self.head[1].bias.requires_grad_(False)  # the official last norm scales and does not shift
        strength = config.strength
        self.photometry = Photometry(
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            blur=config.blur,
        )

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        small = info.size <= 64
        reason = f"the paper's for {'small' if small else 'large'} images: {info.size} px"
        augmentation = {
            "strength": (0.5 if small else 1.0, reason),
            "blur": (0.0 if small else 0.5, reason),
        }
        if family != "cnn":
            return augmentation
        sgd = "usual for a CNN and small batches; recipes hold the paper's LARS"
        return {**augmentation, "optim.name": ("sgd", sgd), "optim.lr": (0.12, sgd)}

    def transform(self) -> Transform:
        crop = RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip)
        return Views(first=crop, second=crop)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        crops = [View(self.photometry, batch[name], f"simclr.{name}") for name in ("first", "second")]
        views = photographed(crops, batch["index"], clock.seed, clock.epoch)
        vectors = self.encoder.vector(torch.cat(views))  # [2 B, D]
        logits, partner = similarities(self.head(vectors), self.config.temperature)
        loss = F.cross_entropy(logits, partner)
        return {
            "loss": loss,
            "chance": loss.detach() / math.log(logits.shape[1] - 1),
            "accuracy": (logits.argmax(1) == partner).float().mean(),
            "embedding": vectors.detach(),
        }

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """The image and two draws of what happens to its colours; crops are the workers' business."""
        image, index = batch["image"], batch["index"]
        drawn = {name: self.photometry(image, index, 0, 0, f"simclr.{name}") for name in ("first", "second")}
        return {"image": image, **drawn}


def similarities(vectors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each view against the views of all processes: logits [2 B, 2 W B] and the column of its partner [2 B].

    vectors: [2 B, d], first the B first views, then the second views in the same order. A view is never
    compared with itself: that logit is -inf. In float32, as exp(1 / 0.1) is near float16's end.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.float(), dim=1)
        first, second = unit.chunk(2)
        every = torch.cat([collectives.gather_with_gradient(first), collectives.gather_with_gradient(second)])
        logits = unit @ every.T / temperature
    count = len(first)
    mine = collectives.rank() * count + torch.arange(count, device=vectors.device)
    own = torch.cat([mine, mine + len(every) // 2])
    return logits.scatter(1, own[:, None], -torch.inf), own.roll(count)
