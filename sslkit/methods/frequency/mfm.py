"""Masked Frequency Modeling: remove a part of an image's spectrum, learn to predict it.

Xie, Li, Zhan, Liu, Ong and Loy, *Masked Frequency Modeling for Self-Supervised Visual Pre-Training*,
ICLR 2023, https://arxiv.org/abs/2206.07706

Each image keeps either its low or its high frequencies (a disc around DC in the spectrum decides which
is which); the network sees the filtered image and predicts the missing bins. No mask token, no second
network, no colour augmentation; works for ViT and CNN alike.

`method.corruption` also gives the paper's three baselines: super-resolution, deblurring and denoising, with
the same head and the loss over all frequencies. Settings marked "ours" or "after FOLK" (Monsefi et al., ICLR
2025, arXiv 2409.10362) are ablations; the defaults are the official code's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from sslkit.augmentations import settings
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.errors import UserError
from sslkit.core.rng import uniform
from sslkit.frequency import corrupt, high_pass, low_pass, spectral_error
from sslkit.frequency.degradations import degrade
from sslkit.frequency.masks import Cutoff, cutoff_of, every_bin
from sslkit.methods.base import NO_DECAY, Batch, Choices, Clock, Encoder, Info, Method, Outputs
from sslkit.models.ema import momentum_copy
from sslkit.models.encoder import require_maps
from sslkit.models.heads import PixelDecoder
from sslkit.models.init import initialize_mae_vit_, initialize_vit_


class _Task(NamedTuple):
    """What one batch asks of the network: from `inputs`, the frequencies that they lack."""

    inputs: Tensor  # [B, 3, H, W]
    keep_low: Tensor  # bool [B], which side of the cut-off an input kept
    cutoff: Cutoff


class MFM(Method):
    """Masked Frequency Modeling (ICLR 2023): predict the removed part of the spectrum."""

    defaults = {"optim.betas": (0.9, 0.95), "optim.clip": 3.0}
    overrides = NO_DECAY

    @dataclass(frozen=True)
    class Config:
        corruption: Literal["frequency", "sr", "deblur", "denoise"] = setting(
            "frequency",
            "what inputs lose: a band of frequencies (MFM), or in the paper's baselines: resolution, "
            "sharpness, freedom from noise",
        )
        mask: Literal["disc", "square", "rhombus", "gaussian", "butterworth", "adaptive"] = setting(
            "disc",
            "low frequencies: disc (official), square or rhombus (the paper's ablations), a soft edge "
            "(ours), or each image's strongest bins (after FOLK)",
        )
        radius: float = setting(
            AUTO, "of the mask, bins; auto: 16 · min(size, native side) / 224 px (official: 16)", above=0
        )
        radius_range: tuple[float, float] = setting(
            (1.0, 1.0), "each image's radius is that times a draw between these (ours)", above=0, ordered=True
        )
        strongest_share: float = settings.share(
            0.0158, "of the bins that an adaptive mask calls low (ours: as a disc of 16 at 224 px)", above=0
        )
        low_share: float = settings.share(
            AUTO, "share of the inputs that keep the low frequencies; auto: 0.5 (ViT), 0.3 (CNN) (official)"
        )
        stratified: bool = setting(
            False,
            "exactly round(low_share · batch) inputs keep the low frequencies (ours; official: a coin each)",
        )
        reduction: Literal["pooled", "per_sample", "balanced"] = setting(
            "pooled", "mean over all bins of the batch (official), per image first, or per task first (ours)"
        )
        target: Literal["missing", "all"] = setting(
            "missing", "bins of the loss: those that an input lacks (official), or all (the paper's ablation)"
        )
        clamp: Literal["official", "none", "half"] = setting(
            "official",
            "filtered images are clamped to [0, 1], or not, or high-pass ones get ½ added before (ours)",
        )
        gamma: float = setting(1.0, "power of the distance between complex bins (official: 1)", above=0)
        factor: int = setting(8, "corruption = sr: resolution lost, per side (official: 8)", low=2)
        sigma: float = setting(
            5.0, "corruption = deblur: Gaussian, pixels, cut off at 7 … 21 pixels (official: 5)", above=0
        )
        noise: float = setting(
            75 / 255, "corruption = denoise: deviation of the noise, of [0, 1] (official: 75 / 255)", above=0
        )
        initialization: Literal["official", "mae"] = setting(
            AUTO,
            "first weights of a ViT: of one size for any width (official), or MAE's, whose size follows it "
            "(ours); auto: MAE's in a ViT narrower than 768",
        )
        teacher_weight: float = setting(
            0.0, "of agreeing with a momentum encoder that sees the clean image (after FOLK); 0: none", low=0
        )
        teacher_momentum: float = settings.share(0.996, "of the momentum encoder, per step (ours)")
        crop_scale: tuple[float, float] = settings.crop_scale(0.2)
        flip: float = settings.flip()

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        require_maps(encoder)
        _check(config, encoder.size)
        if encoder.family == "vit":
            mae = config.initialization == "mae"
            initialize_mae_vit_(encoder) if mae else initialize_vit_(encoder.model)
        width, rows, _ = encoder.map_shape
        # The whole decoder; it keeps torch's own initialisation, as the official code does.
        self.head = PixelDecoder(width, math.ceil(encoder.size / rows))
        if config.teacher_weight > 0:
            self.teacher = momentum_copy(encoder)
            self.student_head = nn.Sequential(nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, width))

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        side, first = min(info.size, info.native), ("official", "the paper's")
        if family == "vit" and config.initialization == AUTO and 0 < (width := info.width) < 768:
            first = ("mae", f"a ViT of width {width} hardly learns with the paper's")
        return {
            "radius": (round(16 * side / 224, 2), f"16 bins at 224 px, scaled to {side} px"),
            "low_share": (0.3 if family == "cnn" else 0.5, f"the paper's for a {family}"),
            "initialization": first,
        }

    def keep_low(self, index: Tensor, clock: Clock) -> Tensor:
        """bool [B]: True = this image's input keeps its low frequencies, and the high ones are predicted."""
        draw = uniform(clock.seed, clock.epoch, index, "mfm.keep_low")
        if self.config.stratified:  # the smallest draws of the batch, a fixed number of them
            return draw.argsort().argsort().lt(round(self.config.low_share * len(index)))
        return draw.lt(self.config.low_share)

    def cutoff(self, images: Tensor, index: Tensor, clock: Clock) -> Cutoff:
        """Which frequencies are low: a radius, or a half-plane mask, the same for all images or one each."""
        config, (smallest, largest), radius = self.config, self.config.radius_range, self.config.radius
        if smallest < largest:
            draw = uniform(clock.seed, clock.epoch, index, "mfm.radius")
            radius = radius * (smallest + (largest - smallest) * draw)
        return cutoff_of(config.mask, images, radius, config.strongest_share)

    def task(self, images: Tensor, index: Tensor, clock: Clock, keep_low: Tensor | None = None) -> _Task:
        """What is asked about images [B, 3, H, W] in [0, 1]; `keep_low` overrides the draw."""
        if self.config.corruption != "frequency":  # nothing survives a baseline's degradation for sure
            return _Task(degrade(images, index, clock.seed, clock.epoch, self.config), *every_bin(images))
        keep_low = self.keep_low(index, clock) if keep_low is None else keep_low
        cutoff = self.cutoff(images, index, clock)
        # A high-pass image has mean zero: the official clamp loses its negative half, ½ keeps both.
        return _Task(corrupt(images, keep_low, cutoff, self.config.clamp), keep_low, cutoff)

    def predict(self, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, 3, H, W] → predicted normalised images, final map [B, D, h, w]."""
        features = self.encoder.maps(corrupted)[0]
        # What overhangs (299 px in 8 cells) is cut off: resampling would take away what is to be predicted.
        return center_crop(self.head(features), list(corrupted.shape[-2:])), features

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        images, config = batch["image"], self.config
        task = self.task(images, batch["index"], clock)
        prediction, features = self.predict(task.inputs)
        missing = task.keep_low, task.cutoff  # by name: torch 2.6 compiles no slice of a named tuple
        scored = missing if config.target == "missing" else every_bin(images)
        error = spectral_error(prediction, self.encoder.normalize(images), *scored, config.gamma)
        loss, vector = error.reduce(config.reduction), features.mean((2, 3))
        two_tasks = config.corruption == "frequency" and config.target == "missing"
        parts = {f"loss_{name}": value for name, value in error.by_task().items()} if two_tasks else {}
        if config.teacher_weight > 0:
            with torch.no_grad():
                clean = self.teacher.maps(images)[0].mean((2, 3))
            cosine = F.cosine_similarity(self.student_head(vector).float(), clean.float())
            disagreement = 1 - cosine.mean()
            loss, parts["loss_teacher"] = loss + config.teacher_weight * disagreement, disagreement.detach()
        return {"loss": loss, **parts, "embedding": vector.detach()}

    def followers(self) -> dict[nn.Module, nn.Module]:
        return {self.teacher: self.encoder} if self.config.teacher_weight > 0 else {}

    def momentum(self, clock: Clock) -> float:
        return float(self.config.teacher_momentum)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Input, corrupted, prediction, and the composite of kept bins and predicted bins.

        The composite is the fair picture: kept bins are never supervised, so the raw prediction is
        free to be anything there. The first half of the batch shows the low-pass task.
        """
        images, count = batch["image"], len(batch["image"])
        first_half = torch.arange(count, device=images.device) < (count + 1) // 2
        inputs, keep_low, cutoff = self.task(images, batch["index"], Clock(0, 1, 1), first_half)
        prediction = self.encoder.denormalize(self.predict(inputs)[0].float())
        flag = keep_low[:, None, None, None]
        lows = low_pass(torch.where(flag, images, prediction), cutoff)
        highs = high_pass(torch.where(flag, prediction, images), cutoff)
        shown = {"corrupted": inputs, "prediction": prediction, "composite": lows + highs}
        return {"image": images} | {name: picture.clamp(0, 1) for name, picture in shown.items()}


def _check(config: MFM.Config, size: int) -> None:
    """Refuse settings that leave nothing to learn, or contradict each other."""
    if config.target == "all" and config.reduction == "balanced":
        problem = "method.reduction: balanced weighs two tasks, but with target = all every bin is one"
        raise UserError(problem, "-s method.reduction=pooled")
    if config.corruption == "sr" and config.factor > size:
        raise UserError(f"method.factor: {config.factor} leaves nothing of {size} px", f"at most {size}")
    if config.corruption == "frequency" and config.radius**2 > 2 * (size // 2) ** 2:
        problem = f"method.radius: {config.radius} keeps every bin of {size} px"
        raise UserError(f"{problem}, nothing is masked", "-s method.radius=auto suits the size")
