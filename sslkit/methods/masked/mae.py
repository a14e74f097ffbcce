"""Masked Autoencoders: hide three quarters of the patches, predict their pixels from the rest.

He, Chen, Xie, Li, Dollár and Girshick, *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022,
https://arxiv.org/abs/2111.06377

The encoder sees the visible patches only, so it costs a quarter; a small decoder gets its tokens and mask
tokens at the hidden places, and predicts every patch. The loss is the squared error on the hidden ones, with
each patch brought to mean 0 and variance 1. The decoder is dropped in the end.

Differs from the official code: pixels are normalised per patch by default (the flag --norm_pix_loss, set in
its recipe), and class and mask token have no weight decay. The encoder's position
embedding is timm's tensor, filled with the official fixed sines and cosines and frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.masking import masked_panels, repeat_mask, shuffled
from sslkit.core.config.setting import setting
from sslkit.core.errors import UserError
from sslkit.losses.masked import masked_mse
from sslkit.losses.targets import patch_statistics, patches, patchify, unpatchify
from sslkit.methods.base import AFTER_WARMUP, Batch, Clock, Encoder, Info, Method, Outputs
from sslkit.models.heads import TokenDecoder
from sslkit.models.init import initialize_mae_vit_, require_positions

_FLAT = 0.02
"""Deviation, of [0, 1], below which a patch is called flat: normalised, noise is all there is to learn."""


class Guess(NamedTuple):
    """What the network makes of the patches that it may see."""

    pixels: Tensor  # [B, N, 3 P²], for every patch, in the units of the target
    hidden: Tensor  # bool [B, N]
    visible: Tensor  # [B, L, D], the encoder's tokens


class MAE(Method):
    """Masked Autoencoders (CVPR 2022): predict the pixels of hidden patches from a quarter of the image."""

    backbones = ("vit",)
    defaults = AFTER_WARMUP | {
        "optim.betas": (0.9, 0.95),
        "optim.weight_decay": 0.05,
        "optim.reference_batch": 256,
    }
    overrides = {"*.cls_token": {"weight_decay": 0.0}}

    @dataclass(frozen=True)
    class Config:
        mask_ratio: float = settings.share(0.75, "share of the patches that is hidden (official: 0.75)")
        norm_pix: bool = setting(
            True, "targets are each patch's pixels at mean 0 and variance 1 (official recipe: true)"
        )
        decoder_width: int = setting(512, "width of the decoder's tokens (official: 512)", low=4)
        decoder_depth: int = setting(8, "blocks of the decoder (official: 8)", low=1)
        decoder_heads: int = setting(16, "attention heads of the decoder (official: 16)", low=1)
        crop_scale: tuple[float, float] = settings.crop_scale(0.2)
        flip: float = settings.flip()

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        _check(config, encoder)
        initialize_mae_vit_(encoder)
        sizes = config.decoder_width, config.decoder_depth, config.decoder_heads
        grid, pixels = encoder.model.patch_embed.grid_size, 3 * encoder.stride**2
        self.decoder = TokenDecoder(encoder.width, *sizes, grid, pixels)

    def guess(self, images: Tensor, index: Tensor, clock: Clock) -> Guess:
        """Hide patches of images [B, 3, H, W] in [0, 1], as (seed, epoch, image) has it, and predict all."""
        patch = self.encoder.stride
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        count = grid[0] * grid[1]
        order = shuffled(clock.seed, clock.epoch, index, count, "mae.mask")
        restore = order.argsort(dim=1)
        kept = visible_count(count, self.config.mask_ratio)
        prefix, visible = self.encoder.tokens(images, keep=order[:, :kept])
        return Guess(self.decoder(prefix, visible, restore, grid), restore >= kept, visible)

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        images, patch = batch["image"], self.encoder.stride
        pixels, hidden, visible = self.guess(images, batch["index"], clock)
        target = patches(self.encoder.normalize(images), patch, self.config.norm_pix)
        flat = patchify(images, patch).std(dim=-1).lt(_FLAT).float().mean()
        loss = masked_mse(pixels, target, hidden)
        return {"loss": loss, "flat": flat, "embedding": visible.detach().mean(1)}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """`masked_panels` of patches.

        With `norm_pix` the predicted ones get the mean and deviation of the true ones: only their structure
        was asked for.
        """
        images, patch = batch["image"], self.encoder.stride
        pixels, hidden, _ = self.guess(images, batch["index"], Clock(0, 1, 1))
        if self.config.norm_pix:
            mean, deviation = patch_statistics(patchify(self.encoder.normalize(images), patch))
            pixels = pixels * deviation + mean
        rows = images.shape[-2] // patch
        covered = repeat_mask(hidden.reshape(len(images), rows, -1), patch)[:, None]
        return masked_panels(images, covered, self.encoder.denormalize(unpatchify(pixels.float(), rows)))


def visible_count(patches: int, mask_ratio: float) -> int:
    """How many patches the encoder sees, rounded down as in the official code: 49 of 196 at 0.75."""
    return int(patches * (1 - mask_ratio))


def _check(config: MAE.Config, encoder: Encoder) -> None:
    """Refuse a backbone without tokens of its own for each patch, and settings that leave nothing to do."""
    if encoder.family != "vit":
        cure = "-m mfm, or a ViT such as -b vit_small_patch16_224"
        raise UserError(f"mae drops tokens, and {encoder.name} has none", cure)
    require_positions(encoder)
    count = encoder.model.patch_embed.num_patches
    kept = visible_count(count, config.mask_ratio)
    if not 0 < kept < count:
        left = "nothing" if kept == 0 else "everything"
        problem = f"method.mask_ratio: {config.mask_ratio} leaves {left} of {count} patches"
        raise UserError(problem, "-s method.mask_ratio=0.75")
    step = math.lcm(4, config.decoder_heads)  # four: sine and cosine of row and column
    if config.decoder_width % step:
        problem = f"method.decoder_width: {config.decoder_width} is not a multiple of {step}"
        fits = step * max(1, round(config.decoder_width / step))
        raise UserError(f"{problem} ({config.decoder_heads} heads)", f"-s method.decoder_width={fits}")
