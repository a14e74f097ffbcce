"""One source for every setting.

A setting is declared once, as a field of a frozen dataclass: name, type, default, one sentence, range, and
whether it may be left to the tool (`auto`). From that come the check, the TOML key with its comment, the
docs table. A configuration is built from layers, later ones winning:

    default → the method's defaults → recipe or -c FILE → --set key=value → flag

`load(dump(configuration)) == configuration` for every valid one.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sslkit.checking import MAX_SIDE, MIN_SIDE, checked
from sslkit.earlier import RETIRED, completed
from sslkit.errors import UserError, nearest, nearest_path
from sslkit.files import read_text
from sslkit.settings import AUTO as AUTO
from sslkit.settings import nodata_setting, range_setting
from sslkit.settings import setting as setting

NO_FLAGS: Mapping[str, str] = {}

RECIPES = Path(__file__).parent / "recipes"
FINETUNING_RECIPES = RECIPES / "finetune"


@dataclass(frozen=True)
class Data:
    sources: tuple[str, ...] = setting((), "folders, .txt lists, .csv tables or fractal:N")
    size: int = setting(AUTO, "side of the square views, pixels", low=MIN_SIDE, high=MAX_SIDE, auto=True)
    limit: int = setting(0, "use only N images, spread over the set; 0: all", low=0)
    max_bad: float = setting(0.01, "share of unreadable images above which the run stops", low=0, high=1)
    workers: int = setting(
        AUTO, "processes that read images; 0: none, read in the training process", low=0, auto=True
    )
    cache: Literal["memory", "off"] = setting(
        AUTO,
        "memory: decode once and keep the images where they fit; off: read their files again and again",
        auto=True,
    )
    range: tuple[float, ...] | Literal["full", "8-bit"] = range_setting(
        "the set's own, 8-bit where it has no such files"
    )
    nodata: tuple[float, ...] = nodata_setting("usual ones that are far from all others")


@dataclass(frozen=True)
class Model:
    backbone: str = setting(AUTO, "any timm model that the method accepts", auto=True)
    patch_size: int = setting(AUTO, "patch of a ViT, pixels; 0: the model's own", low=0, auto=True)
    heads: int = setting(0, "attention heads of a ViT; 0: the model's own", low=0)
    stem: Literal["standard", "small"] = setting(
        "standard",
        "of a ResNet: standard (7 × 7, stride 2, pooling), or small (3 × 3, stride 1, no pooling) "
        "for images up to 64 px",
    )
    sync_norm: bool = setting(False, "batch norms of a CNN take the statistics of all processes' images")
    init: str = setting(
        "", "start from these weights: a run, a file (also foreign: .pth), timm/NAME; empty: random"
    )
    checkpointing: bool = setting(
        False, "keep only the inputs of blocks and compute the rest again: less memory, one more pass forward"
    )
    memory_format: Literal["channels_last", "contiguous"] = setting(AUTO, "of a CNN and its maps", auto=True)


@dataclass(frozen=True)
class Optim:
    name: Literal["adamw", "sgd", "lars"] = setting(
        AUTO, "the optimizer; auto: the method's for the backbone, or AdamW", auto=True
    )
    lr: float = setting(AUTO, "base learning rate, for `reference_batch` images", above=0, auto=True)
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
        AUTO, "where a cosine over the run takes the weight decay; auto: it stays", low=0, auto=True
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
    epochs: int = setting(AUTO, "passes over the images", low=1, auto=True)
    warmup_epochs: float = setting(AUTO, "epochs of linear warm-up", low=0, auto=True)
    warmup_lr: float = setting(2.5e-7, "where warm-up starts, for `reference_batch` images", low=0)
    min_lr: float = setting(2.5e-6, "where the cosine would end, for `reference_batch` images", low=0)
    cosine_after_warmup: bool = setting(False, "the cosine begins after the warm-up; false: at step 0 (MFM)")


@dataclass(frozen=True)
class Run:
    out: str = setting(AUTO, "the run's folder; never an existing one", auto=True)
    batch_size: int = setting(AUTO, "images per optimizer step, over all devices", low=1, auto=True)
    micro_batch: int = setting(
        0, "images at once in memory; 0: the whole batch; auto: as many as fit, by trying", low=0, auto=True
    )
    seed: int = setting(0, "of the weights, the order and the views", low=0)
    device: str = setting(AUTO, "cpu, cuda, cuda:1, mps", auto=True)
    devices: int = setting(1, "processes that train together, one device each", low=1)
    patience: int = setting(600, "seconds after which a process that says nothing counts as lost", low=1)
    max_time: str = setting("", "fit the schedule to this time (30m, 8h) instead of epochs; empty: no limit")
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = setting(
        AUTO, "of matrix products and convolutions; auto: what the chip multiplies fastest", auto=True
    )
    save_every: str = setting(
        "10m", "time between checkpoints (30s, 10m, 2h), or epochs (5e), or steps (500)"
    )
    compile: bool = setting(False, "translate the backbone by torch.compile; the first steps wait for it")
    log_every: int = setting(AUTO, "steps between two lines of metrics", low=1, auto=True)
    pictures: int = setting(4, "how often, over the run, reconstructions are written", low=0)
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = setting(
        (), "also tell the figures to tensorboard, wandb or mlflow"
    )


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `sslkit pretrain` needs; `method` is an instance of the method's own Config."""

    method_name: str
    method: Any
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    run: Run = field(default_factory=Run)


Section = TypeVar("Section")


def build(
    section: type[Section], prefix: str, values: Mapping[str, Any], flags: Mapping[str, str] = NO_FLAGS
) -> Section:
    """One section from the flat `values` under "prefix."; every value is checked.

    Of options that were typed (`flags`: name → key) a refusal names both.

    Raises:
        UserError: wrong type or range, as `optim.lr: -1 is not > 0`.
    """
    typed = {key: f"--{flag.replace('_', '-')} ({key})" for flag, key in flags.items()}
    hints = typing.get_type_hints(section, include_extras=False)
    given = {
        item.name: checked(typed.get(key, key), values[key], hints[item.name], item.metadata)
        for item in dataclasses.fields(section)  # type: ignore[arg-type]
        if (key := f"{prefix}.{item.name}") in values
    }
    return section(**given)


def build_pretrain(
    method_name: str, method: type, values: Mapping[str, Any], flags: Mapping[str, str] = NO_FLAGS
) -> PretrainConfig:
    """The whole configuration from flat dotted keys; unknown keys are refused with the nearest name."""
    sections = {"data": Data, "model": Model, "optim": Optim, "schedule": Schedule, "run": Run}
    refuse_unknown(values, {**sections, "method": method})
    built: dict[str, Any] = {name: build(kind, name, values, flags) for name, kind in sections.items()}
    return PretrainConfig(method_name, build(method, "method", values), **built)


def refuse_unknown(values: Mapping[str, Any], sections: Mapping[str, type]) -> None:
    """Every key of `values` must be "section.field" of one of `sections`."""
    known = [f"{name}.{one.name}" for name, part in sections.items() for one in dataclasses.fields(part)]
    for key in values:
        if key in known or (key in RETIRED and values[key] == RETIRED[key]):
            continue
        if key in RETIRED:
            problem = f"{key}: {values[key]} was a setting of an earlier version, which this one has not"
            raise UserError(problem, f"{RETIRED[key]}, or no such line, if the run may go on without")
        raise UserError(f"unknown setting {key!r}", nearest(key, known))


def settings(section: Any, prefix: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(dotted key, value, metadata) of each field of a section's instance."""
    for item in dataclasses.fields(section):
        yield f"{prefix}.{item.name}", getattr(section, item.name), item.metadata


def flat(configuration: Any) -> dict[str, Any]:
    """A configuration as flat dotted keys; `method_name` is left out."""
    return {
        key: value
        for item in dataclasses.fields(configuration)
        if dataclasses.is_dataclass(getattr(configuration, item.name))
        for key, value, _ in settings(getattr(configuration, item.name), item.name)
    }


def read(path_or_recipe: str, recipes: Path = RECIPES) -> dict[str, Any]:
    """A TOML file, or a recipe of the folder `recipes` by name, as flat dotted keys.

    Raises:
        UserError: no such file or recipe, not TOML.
    """
    path = Path(path_or_recipe)
    if not path.suffix and (recipes / f"{path_or_recipe}.toml").is_file():
        path = recipes / f"{path_or_recipe}.toml"
    if not path.is_file():
        known = nearest(path_or_recipe, [recipe.stem for recipe in recipes.glob("*.toml")])
        cure = nearest_path(path, known) if path.suffix or len(path.parts) > 1 else known
        raise UserError(f"no configuration {path_or_recipe!r}: neither a file nor a recipe", cure)
    try:
        return completed(loads(read_text(path)))
    except (ValueError, RecursionError, OSError) as problem:  # TOML, UTF-8, or numbers of 5,000 digits
        told = f"{path} is not readable TOML: {problem}"
        raise UserError(told, "sslkit methods mfm --toml prints a valid one") from None


def read_again(path_or_recipe: str, recipes: Path = RECIPES) -> dict[str, Any]:
    """`read` for a new run: a run's own config.toml repeats the run in a new folder."""
    values = read(path_or_recipe, recipes)
    own = Path(str(values.get("run.out", ""))).resolve() == Path(path_or_recipe).resolve().parent
    return {key: value for key, value in values.items() if not (own and key == "run.out")}


def loads(text: str) -> dict[str, Any]:
    """TOML text as flat dotted keys."""
    values: dict[str, Any] = {}
    for section, entries in tomllib.loads(text).items():
        if not isinstance(entries, dict):
            told = f"setting {section!r} stands outside a section"
            raise UserError(told, "write it under [data], [optim], …")
        values |= {f"{section}.{key}": value for key, value in entries.items()}
    return values


def parse_set(assignment: str) -> tuple[str, Any]:
    """`section.key=value` → (key, value); the value is TOML, or a bare text."""
    key, separator, text = assignment.partition("=")
    if not separator or "." not in key:
        raise UserError(f"--set {assignment!r} is not section.key=value", "e.g. --set optim.lr=3e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def dump(configuration: Any, header: str = "") -> str:
    """A configuration as TOML, each key with its sentence as comment."""
    shown = ("".join(c if c.isprintable() else " " for c in line) for line in header.splitlines())
    lines = [f"# {line}".rstrip() for line in shown]
    for item in dataclasses.fields(configuration):
        section = getattr(configuration, item.name)
        if not dataclasses.is_dataclass(section):
            continue
        lines += ["", f"[{item.name}]"]
        if item.name == "method":
            lines.append(f"name = {json.dumps(configuration.method_name)}")
        for key, value, metadata in settings(section, item.name):
            lines.append(f"{key.partition('.')[2]} = {toml_value(value)}  # {metadata['help']}")
    return "\n".join(lines).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower() if isinstance(value, bool) else repr(value)
