"""Settings of fine-tuning, and how they are put together. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sslkit.core.config import build as configuration
from sslkit.core.config.setting import (
    AUTO,
    BATCH_SIZE,
    CACHE,
    EPOCHS,
    LEARNING_RATE,
    OUT,
    SEED,
    SIZE,
    flag,
    flags_of,
    nodata_setting,
    precision_setting,
    range_setting,
    setting,
    workers_setting,
)
from sslkit.core.config.validate import MAX_SIDE
from sslkit.core.errors import UserError, nearest


@dataclass(frozen=True)
class Data:
    source: str = setting("", "labelled images: class folders, a .csv with path,label, or fractal:N")
    size: int = setting(
        AUTO,
        "side of the square views, pixels; auto: the source's",
        low=8,
        high=MAX_SIDE,
        auto=True,
        flag=SIZE,
    )
    split_seed: int = setting(0, "of the validation fifth, where the data has no validation part", low=0)
    shots: int = setting(
        0,
        "training images per class, drawn by run.seed; 0: all",
        low=0,
        flag=flag("--shots", "Training images per class, drawn by the seed."),
    )
    share: float = setting(
        1.0,
        "of each class's training images, drawn by run.seed",
        above=0,
        high=1,
        flag=flag("--share", "Part of each class's training images, e.g. 0.1."),
    )
    balance: bool = setting(
        False,
        "rare classes weigh as much as frequent ones: balanced softmax",
        flag=flag("--balance", "Rare classes weigh as much as frequent ones."),
    )
    max_bad: float = setting(0.01, "share of unreadable images above which the run stops", low=0, high=1)
    workers: int = workers_setting()
    cache: Literal["memory", "off"] = setting(
        AUTO,
        "memory: decode the training images once and keep them where they fit; off: never; auto: memory",
        auto=True,
        flag=CACHE,
    )
    range: tuple[float, ...] | Literal["full", "8-bit"] = range_setting(
        "the source's, or the set's own where it has none"
    )
    nodata: tuple[float, ...] = nodata_setting("the source's, or usual ones that are far from all others")


@dataclass(frozen=True)
class Model:
    source: str = setting("", "whose weights to start from: a run, a file, timm/NAME or random/NAME")
    scratch: bool = setting(
        False,
        "forget the source's weights, keep its architecture: the fair comparison",
        flag=flag("--scratch", "Only SOURCE's architecture, with random weights."),
    )
    freeze: bool = setting(
        False,
        "train the head alone; the encoder stays, its batch norms included",
        flag=flag("--freeze", "Train the head alone."),
    )
    drop_path: float = setting(
        AUTO,
        "stochastic depth of the last block; auto: 0.1 to 0.3 by a transformer's size, 0 for a CNN or a head "
        "alone",
        low=0,
        high=0.9,
        auto=True,
    )


@dataclass(frozen=True)
class Optim(configuration.Optim):
    lr: float = setting(
        AUTO,
        "base learning rate, for `reference_batch` images; auto: the paper's, or more for a small batch",
        above=0,
        auto=True,
        flag=LEARNING_RATE,
    )
    weight_decay: float = setting(
        AUTO,
        "of matrices and kernels (see decay_norms); auto: 0.05, or 0.02 for a CNN, 0 for a head alone",
        low=0,
        auto=True,
    )
    layer_decay: float = setting(
        AUTO,
        "learning-rate factor from each layer to the one before it; auto: 0.8, or 1 for a CNN, random "
        "weights and a head alone",
        above=0,
        high=1,
        auto=True,
    )


@dataclass(frozen=True)
class Schedule(configuration.Schedule):
    epochs: int = setting(
        AUTO,
        "passes over the images; auto: 20 to 100, for about 2,000 steps; 100 from 100,000 images on",
        low=1,
        auto=True,
        flag=EPOCHS,
    )
    warmup_epochs: float = setting(
        AUTO, "epochs of linear warm-up; auto: a twentieth of all", low=0, auto=True
    )
    min_lr: float = setting(2.5e-7, "where the cosine ends, for `reference_batch` images", low=0)
    min_lr_by_layer: bool = setting(
        False, "layer_decay scales min_lr too (MAE); false: the same for every layer (MFM)"
    )


_BY_VIEWS = "auto: the paper's from 5 million views on, else weaker; none for a head alone"


@dataclass(frozen=True)
class Augment:
    crop_scale: tuple[float, float] = setting(
        AUTO,
        "area of the random crop, share of the image; auto: the paper's from 5 million views on, "
        "else from 0.35",
        low=0,
        high=1,
        auto=True,
        ordered=True,
    )
    flip: float = setting(0.5, "probability of a horizontal flip", low=0, high=1)
    rand_augment: str = setting(
        AUTO, f"timm's name of a RandAugment policy; empty: none; {_BY_VIEWS}", auto=True
    )
    erasing: float = setting(
        AUTO, f"probability that a rectangle becomes noise; {_BY_VIEWS}", low=0, high=1, auto=True
    )
    mixup: float = setting(AUTO, f"alpha of mixup; 0: never; {_BY_VIEWS}", low=0, auto=True)
    cutmix: float = setting(
        AUTO, "alpha of cutmix; 0: never; auto: 1, or 0 for a head alone", low=0, auto=True
    )
    mix_probability: float = setting(
        AUTO, f"share of the batches that are mixed, half by each; {_BY_VIEWS}", low=0, high=1, auto=True
    )
    smoothing: float = setting(0.1, "label smoothing", low=0, high=0.9)


@dataclass(frozen=True)
class Robustness:
    measure: bool = setting(
        False,
        "score the classifier on corrupted and filtered validation images as well",
        flag=flag("--robust", "Also score it on corrupted and filtered validation images."),
    )
    limit: int = setting(
        500,
        "validation images for that, spread over the classes",
        low=30,
        flag=flag("--robust-limit", "Images for --robust."),
    )
    attacks: bool = setting(
        AUTO,
        "FGSM and PGD as well; auto: on a GPU",
        auto=True,
        flag=flag("--attacks/--no-attacks", "FGSM and PGD in --robust."),
    )


@dataclass(frozen=True)
class Run(configuration.TrainingRun):
    out: str = setting(
        AUTO,
        "the run's folder; never an existing one; auto: the next free runs/finetune-BACKBONE-N",
        auto=True,
        flag=OUT,
    )
    batch_size: int = setting(
        AUTO,
        "images per optimizer step, over all devices; auto: 16 to 256, for about 50 steps an epoch",
        low=1,
        auto=True,
        flag=BATCH_SIZE,
    )
    seed: int = setting(
        0,
        "of new weights, order, augmentation, and the images that are drawn",
        low=0,
        flag=SEED,
    )
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = precision_setting()
    keep: Literal["last", "best"] = setting(
        "last",
        "weights of the last epoch, or of the best one on a fifth of the training images",
        flag=flag("--keep", "last, or best: the epoch that is best on a fifth of the training images."),
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `sslkit finetune` needs."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    robustness: Robustness = field(default_factory=Robustness)
    run: Run = field(default_factory=Run)


SECTIONS = {
    "data": Data,
    "model": Model,
    "optim": Optim,
    "schedule": Schedule,
    "augment": Augment,
    "robustness": Robustness,
    "run": Run,
}

FLAGS = {**flags_of(SECTIONS), "layer_decay": "optim.layer_decay"}
"""Word of `sslkit.finetune` → the setting it stands for; but for the last each is an option too."""


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
    file = _file(config) if config is not None else {}
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in (flags or {}).items()
        if value is not None
    }
    for name in given:
        if name not in FLAGS:
            raise UserError(f"finetune has no setting {name!r}", nearest(name, FLAGS))
    configuration.refuse_two_lengths(given)
    typed = {name: FLAGS[name] for name in given}
    wanted = from_values(
        {
            **file,
            **dict(map(configuration.parse_set, settings)),
            **{FLAGS[name]: value for name, value in given.items()},
            "model.source": source,
            "data.source": data,
        },
        typed,
    )
    if not wanted.robustness.measure and (useless := {"robust_limit", "attacks"}.intersection(given)):
        raise UserError(f"--{min(useless).replace('_', '-')} belongs to --robust", "add --robust")
    return wanted


def _file(config: str) -> dict[str, Any]:
    """The settings of a file, or of a recipe of fine-tuning."""
    recipes = configuration.FINETUNING_RECIPES
    before = configuration.RECIPES / f"{config}.toml"
    if before.is_file() and not (recipes / before.name).is_file() and not Path(config).is_file():
        known = ", ".join(sorted(recipe.stem for recipe in recipes.glob("*.toml")))
        cure = f"leave -c out for MFM's official fine-tuning; there are {known}"
        raise UserError(f"{config} is a recipe of pretrain", cure)
    return configuration.read_again(config, recipes)


def from_values(
    values: Mapping[str, Any], flags: Mapping[str, str] = configuration.NO_FLAGS
) -> FinetuneConfig:
    """A configuration of flat dotted keys, such as `config.read` gives; every value is checked.

    Raises:
        UserError: unknown or impossible setting, or two that say the same.
    """
    configuration.refuse_unknown(values, SECTIONS)
    built: dict[str, Any] = {
        name: configuration.build(kind, name, values, flags) for name, kind in SECTIONS.items()
    }
    config = FinetuneConfig(**built)
    if config.data.shots and config.data.share < 1:
        raise UserError("--shots and --share both say how many images to train on", "give one of them")
    return config
