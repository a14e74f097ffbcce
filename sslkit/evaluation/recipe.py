"""Settings of fine-tuning: the official MFM recipe for large data, and what small data gets instead.

The large recipe holds the numbers of the paper's fine-tuning configurations (ViT, ImageNet-1K), and for a CNN
those of a published 100-epoch setting in timm's A3 style. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sslkit import config as configuration
from sslkit.config import AUTO, setting
from sslkit.errors import UserError, nearest
from sslkit.training.choices import Chooser, reading_workers


@dataclass(frozen=True)
class Data:
    source: str = setting("", "labelled images: class folders, a .csv with path,label, or fractal:N")
    size: int = setting(AUTO, "side of the square views, pixels", low=8, auto=True)
    split_seed: int = setting(0, "of the validation fifth, where the data has no validation part", low=0)
    max_bad: float = setting(0.01, "share of unreadable images above which the run stops", low=0, high=1)
    workers: int = setting(
        AUTO, "processes that read images; 0: none, read in the training process", low=0, auto=True
    )


@dataclass(frozen=True)
class Model:
    source: str = setting("", "whose weights to start from: a run, a file, timm/NAME or random/NAME")
    scratch: bool = setting(False, "forget the source's weights, keep its architecture: the fair comparison")
    drop_path: float = setting(AUTO, "stochastic depth of the last block", low=0, high=0.9, auto=True)


@dataclass(frozen=True)
class Optim(configuration.Optim):
    layer_decay: float = setting(
        AUTO, "learning-rate factor from each layer to the one before it", above=0, high=1, auto=True
    )


@dataclass(frozen=True)
class Schedule(configuration.Schedule):
    min_lr: float = setting(2.5e-7, "where the cosine ends, for `reference_batch` images", low=0)


@dataclass(frozen=True)
class Augment:
    crop_scale: tuple[float, float] = setting(
        AUTO, "area of the random crop, share of the image", low=0, high=1, auto=True, ordered=True
    )
    flip: float = setting(0.5, "probability of a horizontal flip", low=0, high=1)
    rand_augment: str = setting(AUTO, "timm's name of a RandAugment policy; empty: none", auto=True)
    erasing: float = setting(AUTO, "probability that a rectangle becomes noise", low=0, high=1, auto=True)
    mixup: float = setting(AUTO, "alpha of mixup; 0: never", low=0, auto=True)
    cutmix: float = setting(AUTO, "alpha of cutmix; 0: never", low=0, auto=True)
    mix_probability: float = setting(
        AUTO, "share of the batches that are mixed, half by each", low=0, high=1, auto=True
    )
    smoothing: float = setting(0.1, "label smoothing", low=0, high=0.9)


@dataclass(frozen=True)
class Run:
    out: str = setting(AUTO, "the run's folder; never an existing one", auto=True)
    batch_size: int = setting(AUTO, "images per optimizer step", low=1, auto=True)
    micro_batch: int = setting(0, "images at once in memory; 0: the whole batch", low=0)
    seed: int = setting(0, "of the new weights, the order and the augmentation", low=0)
    device: str = setting(AUTO, "cpu, cuda, cuda:1, mps", auto=True)
    precision: Literal["float32", "bfloat16"] = setting(
        AUTO, "of matrix products; auto: bfloat16 where the chip has it", auto=True
    )
    log_every: int = setting(AUTO, "steps between two lines of metrics", low=1, auto=True)


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `sslkit finetune` needs."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    run: Run = field(default_factory=Run)


FLAGS = {
    "scratch": "model.scratch",
    "epochs": "schedule.epochs",
    "batch_size": "run.batch_size",
    "micro_batch": "run.micro_batch",
    "lr": "optim.lr",
    "layer_decay": "optim.layer_decay",
    "size": "data.size",
    "workers": "data.workers",
    "device": "run.device",
    "precision": "run.precision",
    "out": "run.out",
    "seed": "run.seed",
}
"""Flag of `sslkit finetune` → the setting it stands for."""

_SECTIONS = {
    "data": Data,
    "model": Model,
    "optim": Optim,
    "schedule": Schedule,
    "augment": Augment,
    "run": Run,
}


def finetune_config(
    source: str,
    data: str,
    config: str | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> FinetuneConfig:
    """The layers put together and checked: default → file → --set → flag. Flags that are None were not given.

    Raises:
        UserError: unknown or impossible setting, unreadable file.
    """
    file = configuration.read_again(config) if config is not None else {}
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in (flags or {}).items()
        if value is not None
    }
    for name in given:
        if name not in FLAGS:
            raise UserError(f"finetune has no setting {name!r}", nearest(name, FLAGS))
    values = {
        **file,
        **dict(map(configuration.parse_set, settings)),
        **{FLAGS[name]: value for name, value in given.items()},
        "model.source": source,
        "data.source": data,
    }
    configuration.refuse_unknown(values, _SECTIONS)
    built: dict[str, Any] = {
        name: configuration.build(kind, name, values) for name, kind in _SECTIONS.items()
    }
    return FinetuneConfig(**built)


# ------------------------------------------------------------------------------------------- auto

PAPER_SCALE = 100_000
"""Training images from which the paper's epochs are kept."""
PAPER_VIEWS = 5_000_000
"""Views in a run from which the paper's augmentation is kept: weaker runs never get over it."""
UPDATES = 2000
"""Optimizer steps that smaller data aims at, within 20 to 100 epochs."""
LEAST_PEAK = 1e-3
"""Peak learning rate below which a short run hardly moves; the linear rule alone gives 6e-5 at batch 16."""


@dataclass(frozen=True)
class Given:
    """What the choices depend on."""

    count: int  # training images
    family: str  # of the encoder: vit, cnn, swin
    size: int  # the encoder's own
    scratch: bool  # random weights
    on_cpu: bool = True  # no accelerator


def resolve(config: FinetuneConfig, given: Given) -> tuple[FinetuneConfig, dict[str, str]]:
    """Fill in every auto but those of the machine (device, precision, out); returns each one's reason.

    The choices depend on the data and the architecture, never on where the weights come from, so that a
    comparison with random weights has the same budget. The one exception is layer decay, which protects
    pre-trained layers and would only freeze random ones.

    Raises:
        UserError: a batch larger than the data, or an odd one that is to be mixed.
    """
    choice = Chooser(config)
    choice("data.size", given.size, "the size the encoder was made for")
    choice("data.workers", reading_workers(given.on_cpu), "processor cores")
    batch = choice("run.batch_size", *_batch_size(given.count))
    if batch > given.count:
        raise UserError(
            f"batch of {batch} is larger than the data: {given.count} training images",
            f"--batch-size {given.count} or less",
        )
    per_epoch = given.count // batch
    epochs = choice("schedule.epochs", *_epochs(given.count, per_epoch))
    choice("schedule.warmup_epochs", round(epochs / 20, 2), "5 of 100 epochs, as in the paper")
    choice("run.log_every", max(1, epochs * per_epoch // 100), "about a hundred lines a run")
    _resolve_optim(choice, given, batch)
    _resolve_augment(choice, given, epochs * per_epoch * batch)
    mixes = choice.config.augment.mix_probability and max(
        choice.config.augment.mixup, choice.config.augment.cutmix
    )
    if mixes and (batch % 2 or config.run.micro_batch % 2):
        raise UserError(
            f"run.batch_size {batch}, run.micro_batch {config.run.micro_batch}: mixing needs even numbers",
            "or --set augment.mix_probability=0",
        )
    return choice.config, choice.reasons


def _resolve_optim(choice: Chooser[FinetuneConfig], given: Given, batch: int) -> None:
    cnn = given.family == "cnn"
    optim = choice.config.optim
    paper = 3e-3 if cnn else 2e-3
    floor = LEAST_PEAK * optim.reference_batch / batch
    reason = "the paper's" if paper >= floor else f"peak {LEAST_PEAK:g}, the paper's moves too little here"
    choice("optim.lr", max(paper, floor), reason)
    choice("optim.name", "adamw", "suits every backbone")
    decay = choice("optim.weight_decay", 0.02 if cnn else 0.05, f"usual for a {given.family}")
    choice("optim.weight_decay_end", decay, "constant")
    if given.scratch:
        choice("optim.layer_decay", 1.0, "random weights: no layer is worth protecting")
    else:
        choice("optim.layer_decay", 0.8 if given.family == "vit" else 1.0, f"usual for a {given.family}")
    choice("model.drop_path", 0.0 if cnn else 0.1, f"usual for a {given.family}")


def _resolve_augment(choice: Chooser[FinetuneConfig], given: Given, views: int) -> None:
    cnn = given.family == "cnn"
    if views >= PAPER_VIEWS:
        reason = "the paper's"
        values: dict[str, Any] = {
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
    for name, value in values.items():
        choice(f"augment.{name}", value, reason)


def _batch_size(count: int) -> tuple[int, str]:
    """A power of two with about fifty steps in an epoch, within 16 and 256."""
    fitting = 2 ** round(math.log2(max(count / 48, 1)))
    size = max(16, min(256, fitting))
    return min(size, max(2, count // 2 * 2)), f"{count:,} training images"


def _epochs(count: int, per_epoch: int) -> tuple[int, str]:
    if count >= PAPER_SCALE:
        return 100, "the paper's"
    return max(20, min(100, round(UPDATES / per_epoch))), f"about {UPDATES} updates, within 20 and 100 epochs"
