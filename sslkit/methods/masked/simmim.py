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

from dataclasses import dataclass

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from sslkit.augmentations import settings
from sslkit.augmentations.masking import masked_panels, random_share, repeat_mask, squares
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.errors import UserError
from sslkit.losses.masked import masked_l1
from sslkit.methods.base import NO_DECAY, Batch, Choices, Clock, Encoder, Info, Method, Outputs
from sslkit.models.factory import named_patch
from sslkit.models.heads import PixelDecoder
from sslkit.models.init import initialize_vit_


class SimMIM(Method):
    """SimMIM (CVPR 2022): predict the raw pixels of squares that are covered by a mask token."""

    backbones = ("vit", "swin")
    defaults = {
        "optim.betas": (0.9, 0.999),
        "optim.weight_decay": 0.05,
        "optim.reference_batch": 512,
        "optim.clip": 5.0,
        "schedule.warmup_lr": 5e-7,
        "schedule.min_lr": 5e-6,
    }
    overrides = NO_DECAY

    @dataclass(frozen=True)
    class Config:
        mask_ratio: float = settings.share(0.6, "share of hidden squares (official: 0.6)", above=0)
        unit: int = setting(
            AUTO, "side of hidden squares, pixels; auto: 32 at 192 and 224 px (official), 8 at 32 px", low=1
        )
        crop_scale: tuple[float, float] = settings.crop_scale(0.67)
        flip: float = settings.flip()

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        _check(encoder)
        first = encoder.model.feature_info[0]  # of the stage before any merging of patches
        self.patch = int(first["reduction"])
        squares(encoder.size, config.unit, self.patch, config.mask_ratio)
        if encoder.family == "vit":
            initialize_vit_(encoder.model)  # for Swin, timm's own is the official one
        self.mask_token = nn.Parameter(torch.zeros(first["num_chs"]))
        bound = 0.02 if encoder.family == "vit" else 2.0  # official: truncated at one deviation for the ViT
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-bound, b=bound)
        self.head = PixelDecoder(encoder.width, encoder.stride)

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        own = named_patch(info.backbone)
        # Patches of 14 px, where they are kept: two by two of them, if these fill the image.
        sides = (2 * own, own) if own and 32 % own and info.size // own >= 6 else (32, 16, 8, 4, 2, 1)
        unit = next((side for side in sides if info.size % side == 0 and info.size >= 4 * side), sides[-1])
        units = info.size // unit
        reason = f"{units} × {units} squares at {info.size} px; the paper's 32 px are 6 × 6 or 7 × 7"
        return {"unit": (unit, reason)}

    def mask(self, size: int, index: Tensor, clock: Clock) -> Tensor:
        """bool [B, size / p, size / p], True = hidden, on the grid of the encoder's patches of p pixels."""
        config = self.config
        grid = squares(size, config.unit, self.patch, config.mask_ratio)
        hidden = random_share(index, clock.seed, clock.epoch, grid, config.mask_ratio, "simmim.mask")
        return repeat_mask(hidden, config.unit // self.patch)

    def predict(self, images: Tensor, index: Tensor, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] → prediction, normalised, hidden pixels bool [B, 1, H, W], map [B, D, h, w]."""
        mask = self.mask(images.shape[-1], index, clock)
        features = self.encoder.masked_map(images, mask, self.mask_token)
        return self.head(features), repeat_mask(mask, self.patch)[:, None], features

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        prediction, hidden, features = self.predict(batch["image"], batch["index"], clock)
        loss = masked_l1(prediction, self.encoder.normalize(batch["image"]), hidden)
        return {"loss": loss, "embedding": features.detach().mean((2, 3))}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        prediction, hidden, _ = self.predict(batch["image"], batch["index"], Clock(0, 1, 1))
        return masked_panels(batch["image"], hidden, self.encoder.denormalize(prediction.float()))


def _check(encoder: Encoder) -> None:
    """Refuse a backbone that no mask token can enter."""
    plain = isinstance(getattr(encoder.model, "patch_embed", None), PatchEmbed)
    if not encoder.hides_patches or not plain:
        problem = f"simmim puts a mask token in place of patches, and {encoder.name} has no patch embedding"
        raise UserError(problem, "-m mfm, or a ViT or Swin such as -b vit_small_patch16_224")
