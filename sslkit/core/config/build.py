"""One source for every setting.

A setting is declared once, as a field of a frozen dataclass: name, type, default, one sentence, range, and
whether it may be `auto`. The check, the TOML key with its comment and the table in the docs are made from
that. A configuration is built from layers, later ones winning:

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
from types import MappingProxyType
from typing import Any, TypeVar
from typing import Literal as Literal  # a method's Config, read from its file, may name what stands here

from sslkit.core.config.earlier import RETIRED, completed
from sslkit.core.config.sections import Data as Data
from sslkit.core.config.sections import Model as Model
from sslkit.core.config.sections import Optim as Optim
from sslkit.core.config.sections import Run as Run
from sslkit.core.config.sections import Schedule as Schedule
from sslkit.core.config.sections import TrainingRun as TrainingRun
from sslkit.core.config.setting import AUTO as AUTO
from sslkit.core.config.setting import setting as setting
from sslkit.core.config.validate import checked
from sslkit.core.errors import UserError, nearest, nearest_path
from sslkit.core.files import read_text

NO_FLAGS: Mapping[str, str] = {}

# Not by method: `-c NAME` finds a recipe by its file's name alone, and completion lists one folder.
RECIPES = Path(__file__).parents[2] / "methods" / "recipes"
FINETUNING_RECIPES = RECIPES / "finetune"


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
    around: Mapping[str, Any] = field(default_factory=dict)
    """Name of an augmentation or a curriculum around the method → an instance of its own Config."""


SECTIONS: Mapping[str, type] = {
    "data": Data,
    "model": Model,
    "optim": Optim,
    "schedule": Schedule,
    "run": Run,
}
"""Those that every method shares, by their names in TOML."""

Section = TypeVar("Section")


def build(
    section: type[Section], prefix: str, values: Mapping[str, Any], flags: Mapping[str, str] = NO_FLAGS
) -> Section:
    """One section from the flat `values` under "prefix."; every value is checked.

    For options that were typed (`flags`: name → key) the error names both.

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
    method_name: str,
    method: type,
    values: Mapping[str, Any],
    flags: Mapping[str, str] = NO_FLAGS,
    around: Mapping[str, type] = MappingProxyType({}),
) -> PretrainConfig:
    """The whole configuration from flat dotted keys; unknown keys are refused with the nearest name.

    Args:
        around: the sections of what `run.augment` and `run.curriculum` name.
    """
    refuse_unknown(values, {**SECTIONS, "method": method, **around})
    built: dict[str, Any] = {name: build(kind, name, values, flags) for name, kind in SECTIONS.items()}
    own: dict[str, Any] = {name: build(kind, name, values) for name, kind in around.items()}
    return PretrainConfig(method_name, build(method, "method", values), **built, around=own)


def refuse_unknown(values: Mapping[str, Any], sections: Mapping[str, type]) -> None:
    """Every key of `values` must be "section.field" of one of `sections`."""
    known = [f"{name}.{one.name}" for name, part in sections.items() for one in dataclasses.fields(part)]
    for key in values:
        if key in known or (key in RETIRED and values[key] == RETIRED[key]):
            continue
        if key in RETIRED:
            problem = f"{key}: {values[key]} was a setting of an earlier version, and this one lacks it"
            raise UserError(problem, f"{RETIRED[key]}, or delete the line, if the run may go on without it")
        # Refused even if another version knows it: a typo must not pass for a setting of that.
        raise UserError(f"unknown setting {key!r}", nearest(key, known))


def refuse_two_lengths(flags: Mapping[str, Any]) -> None:
    """Raises UserError where two flags say how long to train."""
    if {"epochs", "max_time"} <= set(flags):
        raise UserError("--epochs and --max-time both say how long to train", "give one of them")


def settings(section: Any, prefix: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(dotted key, value, metadata) of each field of a section's instance."""
    for item in dataclasses.fields(section):
        yield f"{prefix}.{item.name}", getattr(section, item.name), item.metadata


def flat(configuration: Any) -> dict[str, Any]:
    """A configuration as flat dotted keys; `method_name` is left out."""
    return {
        key: value
        for name, section in _sections_of(configuration)
        for key, value, _ in settings(section, name)
    }


def _sections_of(configuration: Any) -> Iterator[tuple[str, Any]]:
    """The sections of a configuration by name, those around a method last."""
    for item in dataclasses.fields(configuration):
        value = getattr(configuration, item.name)
        if dataclasses.is_dataclass(value):
            yield item.name, value
    yield from getattr(configuration, "around", {}).items()


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
        message = f"{path} is not readable TOML: {problem}"
        raise UserError(message, "sslkit methods mfm --toml prints a valid one") from None


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
            message = f"setting {section!r} stands outside a section"
            raise UserError(message, "write it under [data], [optim], …")
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
    for name, section in _sections_of(configuration):
        lines += ["", f"[{name}]"]
        if name == "method":
            lines.append(f"name = {json.dumps(configuration.method_name)}")
        for key, value, metadata in settings(section, name):
            lines.append(f"{key.partition('.')[2]} = {toml_value(value)}  # {metadata['help']}")
    return "\n".join(lines).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower() if isinstance(value, bool) else repr(value)
