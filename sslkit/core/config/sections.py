"""The settings of pre-training, section by section, each with what auto is where that is a value of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sslkit.core.config.setting import (
    AUTO,
    BATCH_SIZE,
    CACHE,
    EPOCHS,
    LEARNING_RATE,
    OUT,
    SAVE_EVERY,
    SEED,
    SIZE,
    device_setting,
    flag,
    lines_setting,
    nodata_setting,
    precision_setting,
    range_setting,
    setting,
    workers_setting,
)
from sslkit.core.config.validate import MAX_SIDE, MIN_SIDE


@dataclass(frozen=True)
class Data:
    sources: tuple[str, ...] = setting((), "folders, .txt lists, .csv tables or fractal:N")
    size: int = setting(
        AUTO,
        "side of the square views, pixels; auto: 224 on a GPU, else 96, less where the images are smaller",
        low=MIN_SIDE,
        high=MAX_SIDE,
        auto=True,
        flag=SIZE,
    )
    limit: int = setting(0, "use only N images, spread over the set; 0: all", low=0, flag=flag("--limit"))
    max_bad: float = setting(0.01, "share of unreadable images above which the run stops", low=0, high=1)
    workers: int = workers_setting()
    # Resolved to memory, not to what was found: whether the set fits is asked anew at each start, and batches
    # do not depend on it.
    cache: Literal["memory", "off"] = setting(
        AUTO,
        "memory: decode once and keep the images where they fit; off: read their files again and again; "
        "auto: memory",
        auto=True,
        flag=CACHE,
    )
    range: tuple[float, ...] | Literal["full", "8-bit"] = range_setting(
        "the set's own, 8-bit where it has no such files"
    )
    nodata: tuple[float, ...] = nodata_setting("usual ones that are far from all others")


@dataclass(frozen=True)
class Model:
    backbone: str = setting(
        AUTO,
        "any timm model that the method accepts; auto: vit_small_patch16_224 on a GPU, "
        "else vit_tiny_patch16_224",
        auto=True,
        flag=flag("-b --backbone", "Any timm model; see sslkit models."),
    )
    patch_size: int = setting(
        AUTO,
        "patch of a ViT, pixels; 0: the model's own; auto: that, or smaller for 6 × 6 tokens at least",
        low=0,
        auto=True,
    )
    heads: int = setting(0, "attention heads of a ViT; 0: the model's own", low=0)
    stem: Literal["standard", "small"] = setting(
        "standard",
        "of a ResNet: standard (7 × 7, stride 2, pooling), or small (3 × 3, stride 1, no pooling) "
        "for images up to 64 px",
    )
    sync_norm: bool = setting(False, "batch norms of a CNN take the statistics of all processes' images")
    init: str = setting(
        "",
        "start from these weights: a run, a file (also foreign: .pth), timm/NAME; empty: random",
        flag=flag("--init", "Start from these weights.", "SOURCE"),
    )
    checkpointing: bool = setting(
        False, "keep only the inputs of blocks and compute the rest again: less memory, one more forward pass"
    )
    memory_format: Literal["channels_last", "contiguous"] = setting(
        AUTO,
        "of a CNN and its maps; auto: channels_last where the device can train it so; see run.precision",
        auto=True,
    )


@dataclass(frozen=True)
class Optim:
    name: Literal["adamw", "sgd", "lars"] = setting(
        AUTO, "the optimizer; auto: the method's for the backbone, or AdamW", auto=True
    )
    lr: float = setting(
        AUTO,
        "base learning rate, for `reference_batch` images; auto: by the square root of the batch, up to the "
        "paper's",
        above=0,
        auto=True,
        flag=LEARNING_RATE,
    )
    reference_batch: int = setting(
        512, "the learning rate grows linearly with batch / reference_batch", low=1
    )
    weight_decay: float = setting(
        AUTO,
        "of matrices and kernels (see decay_norms); auto: 0.05, or 1e-4 for SGD and LARS",
        low=0,
        auto=True,
    )
    weight_decay_end: float = setting(
        AUTO, "weight decay at the end of the run, approached by a cosine; auto: constant", low=0, auto=True
    )
    decay_norms: bool = setting(False, "biases and norms have weight decay too (MoCo)")
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW's decay rates", low=0, high=0.99999)
    eps: float = setting(1e-8, "AdamW's epsilon", above=0)
    momentum: float = setting(0.9, "of SGD and LARS", low=0, high=0.99999)
    trust: float = setting(0.001, "LARS's trust coefficient", above=0)
    clip: float = setting(0.0, "norm to which gradients are clipped; 0: never", low=0)
    clip_by: Literal["all", "tensor"] = setting(
        "all", "the norm is that of all gradients, or each tensor's own"
    )


@dataclass(frozen=True)
class Schedule:
    epochs: int = setting(
        AUTO,
        "passes over the images; auto: 5 to 800, for 20 million views on a GPU, 300,000 on a CPU",
        low=1,
        auto=True,
        flag=EPOCHS,
    )
    warmup_epochs: float = setting(
        AUTO, "epochs of linear warm-up; auto: a fifteenth of all", low=0, auto=True
    )
    warmup_lr: float = setting(2.5e-7, "where warm-up starts, for `reference_batch` images", low=0)
    min_lr: float = setting(2.5e-6, "where the cosine would end, for `reference_batch` images", low=0)
    cosine_after_warmup: bool = setting(False, "the cosine begins after the warm-up; false: at step 0 (MFM)")


@dataclass(frozen=True)
class TrainingRun:
    """What pre-training and fine-tuning both have in their section `run`."""

    out: str = setting(
        AUTO,
        "the run's folder; never an existing one; auto: the next free runs/METHOD-BACKBONE-N",
        auto=True,
        flag=OUT,
    )
    batch_size: int = setting(
        AUTO,
        "images per optimizer step, over all devices; auto: 256 on a GPU, else 64, or all there are",
        low=1,
        auto=True,
        flag=BATCH_SIZE,
    )
    micro_batch: int = setting(
        0,
        "images at once in memory; 0: the whole batch; auto: as many as fit, by trying",
        low=0,
        auto=True,
        flag=flag("--micro-batch", "Images at once in memory, or auto: what fits."),
    )
    seed: int = setting(0, "of the weights, the order and the views", low=0, flag=SEED)
    device: str = device_setting()
    devices: int = setting(1, "processes that train together, one device each", low=1, flag=flag("--devices"))
    patience: int = setting(600, "seconds after which a process that says nothing counts as lost", low=1)
    max_time: str = setting(
        "",
        "fit the schedule to this time (30m, 8h) instead of epochs; empty: no limit",
        flag=flag("--max-time", "Fit the schedule to this time, e.g. 8h."),
    )
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = precision_setting(
        ", or what a few steps show where no table knows"
    )
    save_every: str = setting(
        "10m",
        "time between checkpoints (30s, 10m, 2h), or epochs (5e), or steps (500)",
        flag=SAVE_EVERY,
    )
    compile: bool = setting(
        False,
        "compile the backbone by torch.compile; the first steps take longer",
        flag=flag("--compile", "torch.compile: a minute first, then faster steps."),
    )
    log_every: int = lines_setting()
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = setting(
        (), "also log the figures to tensorboard, wandb or mlflow"
    )


@dataclass(frozen=True)
class Run(TrainingRun):
    pictures: int = setting(
        4,
        "how often, over the run, reconstructions are written",
        low=0,
        flag=flag("--pictures", "Reconstructions written over the run."),
    )
    augment: tuple[str, ...] = setting(
        (),
        "batch augmentations around the method, each with a section of its own; empty: none",
        flag=flag("--augment", "Around the method: bss, fourier, fields, mix, maxtree.", "NAME,…"),
    )
    curriculum: str = setting(
        "",
        "smaller images first, around the method, with a section of its own; empty: none",
        flag=flag("--curriculum", "Around the method: efficienttrain, efficienttrain_pp, lowpass.", "NAME"),
    )
