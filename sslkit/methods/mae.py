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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.core.config.setting import setting
from sslkit.core.errors import UserError
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import repeat_mask, shuffled
from sslkit.models.encoder import Encoder
from sslkit.models.init import initialize_linear_, initialize_mae_vit_, require_positions, sines_and_cosines

_FLAT = 0.02
"""Deviation, of [0, 1], below which a patch is called flat: normalised, noise is all there is to learn."""


class Guess(NamedTuple):
    """What the network makes of the patches that it may see."""

    pixels: Tensor  # [B, N, 3 P²], for every patch, in the units of the target
    hidden: Tensor  # bool [B, N]
    visible: Tensor  # [B, L, D], the encoder's tokens


class MAE(Method):
    """Masked Autoencoders (CVPR 2022): predict the pixels of hidden patches from a quarter of the image."""

    family = "masked image"
    paper = "Masked Autoencoders Are Scalable Vision Learners"
    year = 2022
    link = "https://arxiv.org/abs/2111.06377"
    backbones = ("vit",)
    status = "tested"

    @dataclass(frozen=True)
    class Config:
        mask_ratio: float = setting(
            0.75, "share of the patches that is hidden (official: 0.75)", low=0, high=1
        )
        norm_pix: bool = setting(
            True, "targets are each patch's pixels at mean 0 and variance 1 (official recipe: true)"
        )
        decoder_width: int = setting(512, "width of the decoder's tokens (official: 512)", low=4)
        decoder_depth: int = setting(8, "blocks of the decoder (official: 8)", low=1)
        decoder_heads: int = setting(16, "attention heads of the decoder (official: 16)", low=1)
        crop_scale: tuple[float, float] = setting(
            (0.2, 1.0), "area of the random crop, share of the image (official)", low=0, high=1, ordered=True
        )
        flip: float = setting(0.5, "probability of a horizontal flip (official: 0.5)", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.betas": (0.9, 0.95),
        "optim.weight_decay": 0.05,
        "optim.reference_batch": 256,
        "schedule.warmup_lr": 0.0,
        "schedule.min_lr": 0.0,
        "schedule.cosine_after_warmup": True,
    }
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {"*.cls_token": {"weight_decay": 0.0}}

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        _check(config, encoder)
        initialize_mae_vit_(encoder)
        grid = encoder.model.patch_embed.grid_size
        self.decoder = Decoder(config, encoder.width, grid, 3 * encoder.stride**2)

    def transform(self) -> Transform:
        return Views(image=RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip))

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

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = batch["image"]
        pixels, hidden, visible = self.guess(images, batch["index"], clock)
        target = patchify(self.encoder.normalize(images), self.encoder.stride)
        if self.config.norm_pix:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        flat = patchify(images, self.encoder.stride).std(dim=-1).lt(_FLAT).float().mean()
        loss = masked_error(pixels, target, hidden)
        return {"loss": loss, "flat": flat, "embedding": visible.detach().mean(1)}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Image, visible patches, prediction, and the composite of visible and predicted patches.

        Visible patches are never supervised, so the raw prediction is free to be anything there. With
        `norm_pix` the predicted patches get the mean and deviation of the true ones: only their structure
        was asked for.
        """
        images, patch = batch["image"], self.encoder.stride
        pixels, hidden, _ = self.guess(images, batch["index"], Clock(step=0, steps=1, steps_per_epoch=1))
        if self.config.norm_pix:
            mean, deviation = patch_statistics(patchify(self.encoder.normalize(images), patch))
            pixels = pixels * deviation + mean
        rows = images.shape[-2] // patch
        prediction = self.encoder.denormalize(unpatchify(pixels.float(), rows)).clamp(0, 1)
        covered = repeat_mask(hidden.reshape(len(images), rows, -1), patch)[:, None]
        return {
            "image": images,
            "visible": images.masked_fill(covered, 0.5),
            "prediction": prediction,
            "composite": torch.where(covered, prediction, images),
        }


class Decoder(nn.Module):
    """A narrow transformer over all patches: encoded tokens where visible, a mask token elsewhere."""

    position: Tensor

    def __init__(self, config: MAE.Config, width: int, grid: tuple[int, int], pixels: int) -> None:
        super().__init__()
        own = config.decoder_width
        self.grid = grid
        self.embed = nn.Linear(width, own)
        self.mask_token = nn.Parameter(torch.zeros(own))
        self.blocks = nn.Sequential(
            *(Block(own, config.decoder_heads, qkv_bias=True) for _ in range(config.decoder_depth))
        )
        self.norm = nn.LayerNorm(own, eps=1e-6)
        self.head = nn.Linear(own, pixels)
        self.register_buffer("position", sines_and_cosines(grid, own)[None])
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(initialize_linear_)

    def forward(self, prefix: Tensor, visible: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Prefix [B, p, D], visible [B, L, D], each patch's place among the shuffled [B, N] → [B, N, 3 P²].

        Positions are resampled for a grid other than the one the decoder was built for, as the encoder's.
        """
        x = self.embed(visible)
        missing = restore.shape[1] - x.shape[1]
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), missing, -1)], dim=1)
        x = x.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))  # back in raster order
        position = resample_abs_pos_embed(self.position, list(grid), list(self.grid), num_prefix_tokens=0)
        x = torch.cat([self.embed(prefix), x + position], dim=1)  # the prefix has position zero
        pixels: Tensor = self.head(self.norm(self.blocks(x))[:, prefix.shape[1] :])
        return pixels


def visible_count(patches: int, mask_ratio: float) -> int:
    """How many patches the encoder sees, rounded down as in the official code: 49 of 196 at 0.75."""
    return int(patches * (1 - mask_ratio))


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, N, P · P · C]: patches in raster order; in each row, column, channel (fastest)."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `patchify` for images of three channels and so many rows of patches."""
    batch, count, values = patches.shape
    side = math.isqrt(values // 3)
    cells = patches.reshape(batch, rows, count // rows, side, side, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, rows * side, -1)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, N, 1] of each patch's values, channels together; official: variance unbiased."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def masked_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over the hidden patches: [B, N, K], [B, N, K], bool [B, N] → scalar.

    The target is float32, so the difference is too, whatever autocast says.
    """
    error = (prediction - target).square().mean(-1)
    return (error * hidden).sum() / hidden.sum()


def _check(config: MAE.Config, encoder: Encoder) -> None:
    """Refuse a backbone without tokens of its own for each patch, and settings that leave nothing to do."""
    if encoder.family != "vit":
        raise UserError(
            f"mae drops tokens, and {encoder.name} has none",
            "-m mfm, or a ViT such as -b vit_small_patch16_224",
        )
    require_positions(encoder)
    count = encoder.model.patch_embed.num_patches
    kept = visible_count(count, config.mask_ratio)
    if not 0 < kept < count:
        left = "nothing" if kept == 0 else "everything"
        raise UserError(
            f"method.mask_ratio: {config.mask_ratio} leaves {left} of {count} patches",
            "-s method.mask_ratio=0.75",
        )
    step = math.lcm(4, config.decoder_heads)  # four: sine and cosine of row and column
    if config.decoder_width % step:
        problem = f"method.decoder_width: {config.decoder_width} is not a multiple of {step}"
        fits = step * max(1, round(config.decoder_width / step))
        raise UserError(f"{problem} ({config.decoder_heads} heads)", f"-s method.decoder_width={fits}")
