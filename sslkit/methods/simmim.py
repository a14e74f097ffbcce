"""SimMIM: cover squares of the image with a mask token, predict their raw pixels by one linear layer.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai and Hu, *SimMIM: A Simple Framework for Masked Image Modeling*, CVPR 2022,
https://arxiv.org/abs/2111.09886

Hidden patches enter the encoder as a learnt token, so a network with windows and stages such as Swin can be
trained too. One 1 × 1 convolution and PixelShuffle predict all pixels; the loss is the mean absolute error on
the hidden ones. Hidden squares are larger than a patch (32 px at 192 px), so that their neighbours don't tell
them.

Differs from the official code: its ViT has a shared relative position bias, LayerScale and drop path, timm's
plain ViT has a position embedding; views are bicubic (official: bilinear); the schedule is sslkit's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.errors import UserError
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import PixelDecoder, repeat_mask, shuffled
from sslkit.models.encoder import Encoder
from sslkit.models.factory import named_patch
from sslkit.models.init import initialize_vit_


class SimMIM(Method):
    """SimMIM (CVPR 2022): predict the raw pixels of squares that are covered by a mask token."""

    family = "masked image"
    paper = "SimMIM: A Simple Framework for Masked Image Modeling"
    year = 2022
    link = "https://arxiv.org/abs/2111.09886"
    backbones = ("vit", "swin")
    status = "tested"

    @dataclass(frozen=True)
    class Config:
        mask_ratio: float = setting(
            0.6, "share of the squares that is hidden (official: 0.6)", above=0, high=1
        )
        unit: int = setting(
            AUTO,
            "side of the squares that are hidden, pixels; auto: 32 at 192 and 224 px (official), 8 at 32 px",
            low=1,
            auto=True,
        )
        crop_scale: tuple[float, float] = setting(
            (0.67, 1.0), "area of the random crop, share of the image (official)", low=0, high=1, ordered=True
        )
        flip: float = setting(0.5, "probability of a horizontal flip (official: 0.5)", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.betas": (0.9, 0.999),
        "optim.weight_decay": 0.05,
        "optim.reference_batch": 512,
        "optim.clip": 5.0,
        "schedule.warmup_lr": 5e-7,
        "schedule.min_lr": 5e-6,
    }
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "*.pos_embed": {"weight_decay": 0.0},
        "*.cls_token": {"weight_decay": 0.0},
    }

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        _check(encoder)
        first = encoder.model.feature_info[0]  # of the stage before any merging of patches
        self.patch = int(first["reduction"])
        units_per_side(encoder.size, config, self.patch)
        if encoder.family == "vit":
            initialize_vit_(encoder.model)  # for Swin, timm's own is the official one
        self.mask_token = nn.Parameter(torch.zeros(first["num_chs"]))
        bound = 0.02 if encoder.family == "vit" else 2.0  # official: truncated at one deviation for the ViT
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-bound, b=bound)
        self.head = PixelDecoder(encoder.width, encoder.stride)

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        own = named_patch(info.backbone)
        # Patches of 14 px, where they are kept: two by two of them, if these fill the image.
        sides = (2 * own, own) if own and 32 % own and info.size // own >= 6 else (32, 16, 8, 4, 2, 1)
        unit = next((side for side in sides if info.size % side == 0 and info.size >= 4 * side), sides[-1])
        units = info.size // unit
        reason = f"{units} × {units} squares at {info.size} px; the paper's 32 px are 6 × 6 or 7 × 7"
        return {"unit": (unit, reason)}

    def transform(self) -> Transform:
        return Views(image=RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip))

    def mask(self, size: int, index: Tensor, clock: Clock) -> Tensor:
        """bool [B, size / p, size / p], True = hidden, on the grid of the encoder's patches of p pixels."""
        side = units_per_side(size, self.config, self.patch)
        order = shuffled(clock.seed, clock.epoch, index, side * side, "simmim.mask")
        hidden = order < hidden_count(side * side, self.config.mask_ratio)
        return repeat_mask(hidden.reshape(-1, side, side), self.config.unit // self.patch)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = batch["image"]
        mask = self.mask(images.shape[-1], batch["index"], clock)
        features = self.encoder.masked_map(images, mask, self.mask_token)
        hidden = repeat_mask(mask, self.patch)[:, None]
        loss = masked_error(self.head(features), self.encoder.normalize(images), hidden)
        return {"loss": loss, "embedding": features.detach().mean((2, 3))}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Image, visible squares, prediction, and the composite of visible and predicted squares.

        Visible squares are never supervised, so the raw prediction is free to be anything there.
        """
        images = batch["image"]
        mask = self.mask(images.shape[-1], batch["index"], Clock(step=0, steps=1, steps_per_epoch=1))
        predicted = self.head(self.encoder.masked_map(images, mask, self.mask_token)).float()
        prediction = self.encoder.denormalize(predicted).clamp(0, 1)
        hidden = repeat_mask(mask, self.patch)[:, None]
        return {
            "image": images,
            "visible": images.masked_fill(hidden, 0.5),
            "prediction": prediction,
            "composite": torch.where(hidden, prediction, images),
        }


def hidden_count(units: int, mask_ratio: float) -> int:
    """How many squares are hidden, rounded up as in the official code: 22 of 36 at 0.6."""
    return math.ceil(units * mask_ratio)


def masked_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error over the hidden pixels: [B, C, H, W] twice, bool [B, 1, H, W] → scalar.

    The 1e-5 is the official code's. The target is float32, so the difference is too, whatever autocast says.
    """
    error = (prediction - target).abs() * hidden
    return error.sum() / (hidden.sum() + 1e-5) / target.shape[1]


def units_per_side(size: int, config: SimMIM.Config, patch: int) -> int:
    """How many squares side by side make the image.

    Raises:
        UserError: they don't fill it, cut through patches, or are all hidden.
    """
    unit = config.unit
    if size % unit or unit % patch:
        fits = [side for side in range(patch, size // 2 + 1, patch) if size % side == 0]
        cure = (
            f"try -s method.unit={min(fits, key=lambda side: abs(side - unit))}" if fits else "larger images"
        )
        problem = f"method.unit: {unit} must divide the image ({size} px) and be a multiple of the patch"
        raise UserError(f"{problem} ({patch} px)", cure)
    units = (size // unit) ** 2
    if hidden_count(units, config.mask_ratio) == units:
        problem = f"method.unit: {unit} px at mask_ratio {config.mask_ratio} hides all {units} of {size} px"
        raise UserError(problem, "smaller squares or a smaller share: nothing is left to predict from")
    return size // unit


def _check(encoder: Encoder) -> None:
    """Refuse a backbone that no mask token can enter."""
    plain = isinstance(getattr(encoder.model, "patch_embed", None), PatchEmbed)
    if not encoder.hides_patches or not plain:
        problem = f"simmim puts a mask token in place of patches, and {encoder.name} has no patch embedding"
        raise UserError(problem, "-m mfm, or a ViT or Swin such as -b vit_small_patch16_224")
