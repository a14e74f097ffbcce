"""Every `auto` of fine-tuning: the official MFM recipe for large data, weaker for small.

The large recipe holds the numbers of the paper's fine-tuning configurations (ViT, ImageNet-1K), and for a CNN
those of a published 100-epoch setting in timm's A3 style. This module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sslkit.core.config.auto_resolver import AutoResolver
from sslkit.core.errors import UserError
from sslkit.data.images.range_estimate import NONE, RangeEstimate
from sslkit.data.loading.workers import reading_workers
from sslkit.data.sources.set_range import choose_range
from sslkit.finetuning.config import FinetuneConfig

PAPER_SCALE = 100_000
"""Training images from which the paper's epochs are kept."""
PAPER_VIEWS = 5_000_000
"""Views in a run from which the paper's augmentation is kept: weaker runs never get over it."""
USUAL_WARMUP = 20
"""One of so many epochs is warm-up."""
UPDATES = 2000
"""Optimizer steps that smaller data aims at, within 20 to 100 epochs."""
FROZEN_PEAK = 5e-3
"""Peak learning rate of a head alone; nothing below it can be hurt."""
LEAST_PEAK = 1e-3
"""Peak learning rate below which a short run hardly moves; the linear rule alone gives 6e-5 at batch 16."""


@dataclass(frozen=True)
class Facts:
    """What the choices depend on."""

    count: int  # training images
    family: str  # of the encoder: vit, cnn, swin
    size: int  # the encoder's own
    scratch: bool  # random weights
    on_cpu: bool = True  # no accelerator
    parameters: int = 0  # of the encoder
    numbers: RangeEstimate = NONE  # the range of the images


def resolve(config: FinetuneConfig, given: Facts) -> tuple[FinetuneConfig, dict[str, str]]:
    """Fill in every auto but those of the machine (device, precision, out); returns each one's reason.

    The choices depend on the data and the architecture, never on where the weights come from, so that a
    comparison with random weights has the same budget. The one exception is layer decay, which protects
    pre-trained layers and would only freeze random ones.

    Raises:
        UserError: a batch larger than the data, or an odd one that is to be mixed.
    """
    choice = AutoResolver(config)
    choice("data.size", given.size, "the size the encoder was made for")
    choice("data.workers", reading_workers(given.on_cpu), "processor cores")
    choice("data.cache", "memory", "decoded once where the images fit")
    choose_range(choice, given.numbers)
    batch = choice("run.batch_size", *_batch_size(given.count))
    if batch > given.count:
        raise UserError(
            f"batch of {batch} is larger than the data: {given.count} training images",
            f"--batch-size {given.count} or less",
        )
    per_epoch = given.count // batch
    number, reason = _epochs(given.count, per_epoch)
    reason = "a first guess; the clock decides" if config.run.max_time else reason
    epochs = choice("schedule.epochs", number, reason)
    choice("schedule.warmup_epochs", round(epochs / USUAL_WARMUP, 2), "5 of 100 epochs, as in the paper")
    choice("run.micro_batch", 0, "the whole batch, or what fits a GPU")
    choice("run.log_every", max(1, epochs * per_epoch // 100), "about a hundred lines a run")
    _resolve_optim(choice, given, batch)
    _resolve_augment(choice, given, epochs * per_epoch * batch)
    mixes = choice.config.augment.mix_probability and max(
        choice.config.augment.mixup, choice.config.augment.cutmix
    )
    devices, micro_batch = config.run.devices, choice.config.run.micro_batch
    odd = batch // devices % 2 or micro_batch % 2
    if mixes and odd and batch % devices == 0:  # a batch that can't be shared alike is refused as such
        given_to = f"run.batch_size {batch}" + (f" on {devices} devices" if devices > 1 else "")
        raise UserError(
            f"{given_to}, run.micro_batch {micro_batch}: mixing needs even numbers",
            "--set augment.mix_probability=0, or an even number for each device",
        )
    return choice.config, choice.reasons


def _resolve_optim(choice: AutoResolver[FinetuneConfig], given: Facts, batch: int) -> None:
    cnn, usual = given.family == "cnn", f"usual for a {given.family}"
    optim, frozen = choice.config.optim, choice.config.model.freeze
    paper = 3e-3 if cnn else 2e-3
    floor = LEAST_PEAK * optim.reference_batch / batch
    if frozen:
        choice(
            "optim.lr",
            FROZEN_PEAK * optim.reference_batch / batch,
            f"peak {FROZEN_PEAK:g}: only the head learns",
        )
    elif paper >= floor:
        choice("optim.lr", paper, "the paper's")
    else:
        choice("optim.lr", floor, f"peak {LEAST_PEAK:g}, the paper's moves too little here")
    choice("optim.name", "adamw", "suits every backbone")
    decay, reason = (0.0, "only the head learns") if frozen else (0.02 if cnn else 0.05, usual)
    choice("optim.weight_decay", decay, reason)
    choice("optim.weight_decay_end", choice.config.optim.weight_decay, "constant")
    if frozen or given.scratch:
        why = "only the head learns" if frozen else "random weights: no layer is worth protecting"
        choice("optim.layer_decay", 1.0, why)
    else:
        choice("optim.layer_decay", 1.0 if cnn else 0.8, usual)
    if frozen:
        choice("model.drop_path", 0.0, "only the head learns")
    else:
        choice("model.drop_path", *_drop_path(given))


def _drop_path(given: Facts) -> tuple[float, str]:
    """More for larger transformers, as in MAE's fine-tuning of ViT-B, L and H (He et al., 2022, table 9)."""
    if given.family == "cnn":
        return 0.0, "usual for a cnn"
    rate = 0.3 if given.parameters > 500e6 else 0.2 if given.parameters > 200e6 else 0.1
    return rate, f"usual for a {given.family} of this size"


def _resolve_augment(choice: AutoResolver[FinetuneConfig], given: Facts, views: int) -> None:
    for name, (value, reason) in _augmentation(
        choice.config.model.freeze, given.family == "cnn", views
    ).items():
        choice(f"augment.{name}", value, reason)


def _augmentation(frozen: bool, cnn: bool, views: int) -> dict[str, tuple[Any, str]]:
    """Crop and flip for a head alone (MAE's linear probing, table 10); else by the views of the whole run."""
    if frozen:
        reason = "only the head learns, and can't overfit much"
        values: dict[str, Any] = {
            "crop_scale": (0.35, 1.0),
            "rand_augment": "",
            "erasing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "mix_probability": 0.0,
        }
    elif views >= PAPER_VIEWS:
        reason = "the paper's"
        values = {
            "crop_scale": (0.08, 1.0),
            "rand_augment": "rand-m6-mstd0.5-inc1" if cnn else "rand-m9-mstd0.5-inc1",
            "erasing": 0.0 if cnn else 0.25,
            "mixup": 0.1 if cnn else 0.8,
            "cutmix": 1.0,
            "mix_probability": 1.0,
        }
    else:
        reason = f"weaker than the paper's: {views:,} views"
        values = {
            "crop_scale": (0.35, 1.0),
            "rand_augment": "rand-m5-mstd0.5-inc1",
            "erasing": 0.0 if cnn else 0.1,
            "mixup": 0.1 if cnn else 0.2,
            "cutmix": 1.0,
            "mix_probability": 0.5,
        }
    return {name: (value, reason) for name, value in values.items()}


def _batch_size(count: int) -> tuple[int, str]:
    """A power of two with about fifty steps in an epoch, within 16 and 256."""
    fitting = 2 ** round(math.log2(max(count / 48, 1)))
    size = max(16, min(256, fitting))
    return min(size, max(2, count // 2 * 2)), f"{count:,} training images"


def _epochs(count: int, per_epoch: int) -> tuple[int, str]:
    if count >= PAPER_SCALE:
        return 100, "the paper's"
    return max(20, min(100, round(UPDATES / per_epoch))), f"about {UPDATES} updates, within 20 and 100 epochs"
