"""What the shell offers behind an option: names that are read from files, without importing torch or timm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from typer import Context

_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)", re.MULTILINE)


def methods(incomplete: str) -> list[tuple[str, str]]:
    """Methods with the first line of what they are; a file's name is the shell's own business."""
    from sslkit.methods import card, names

    told = {name: card(name).text for name in names() if name.startswith(incomplete)}
    return [(name, text.strip().partition("\n")[0]) for name, text in told.items()]


def backbones(incomplete: str) -> list[str]:
    """timm's models, as its files register them: importing timm would take seconds."""
    return [name for name in timm_names() if name.startswith(incomplete)]


def timm_names() -> list[str]:
    """Every model that timm registers, sorted; none where timm is not installed."""
    found = find_spec("timm")
    places = (found.submodule_search_locations if found else None) or []
    files = (file for place in places for file in Path(place, "models").glob("*.py"))
    return sorted({name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))})


def recipes(ctx: Context, incomplete: str) -> list[str]:
    """Recipes of the command, and TOML files where none begins so (the shell's own)."""
    from sslkit.core.config.build import FINETUNING_RECIPES, RECIPES

    folder = FINETUNING_RECIPES if ctx.info_name == "finetune" else RECIPES
    return sorted(file.stem for file in folder.glob("*.toml") if file.stem.startswith(incomplete))


def settings(ctx: Context, incomplete: str) -> list[tuple[str, str]]:
    """ "section.key=" of the command and its method; behind the = what the setting may be."""
    key, assigned, _ = incomplete.partition("=")
    found: list[tuple[str, str]] = []
    for name, part in _sections(ctx).items():
        for item in dataclasses.fields(part):
            full = f"{name}.{item.name}"
            if not assigned and full.startswith(incomplete):
                found.append((f"{full}=", str(item.metadata["help"])))
            if assigned and full == key:
                auto = ["auto"] if item.metadata["auto"] else []
                values = [*auto, *_choices(part, item.name)]
                found += [
                    (f"{key}={value}", "") for value in values if f"{key}={value}".startswith(incomplete)
                ]
    return found


def _sections(ctx: Context) -> Mapping[str, type]:
    from sslkit.core.config import build
    from sslkit.core.errors import UserError
    from sslkit.methods import card
    from sslkit.training.pretrain.config import METHOD

    if ctx.info_name == "finetune":
        from sslkit.finetuning import config

        return config.SECTIONS
    try:
        return {**build.SECTIONS, "method": card(ctx.params.get("method") or METHOD).Config}
    except UserError:  # no such method, so no settings of it
        return build.SECTIONS


def _choices(part: type, field: str) -> Iterator[str]:
    """The words that a field may hold."""
    hint = get_type_hints(part)[field]
    if hint is bool:
        yield from ("true", "false")
    for one in (hint, *get_args(hint)):
        if get_origin(one) is Literal:
            yield from map(str, get_args(one))


def among(*known: str) -> Callable[[str], list[str]]:
    """These words."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def words_of(key: str) -> Callable[[Context, str], list[str]]:
    """The words that a setting of pre-training or fine-tuning may hold, for the option that stands for it."""

    def offered(ctx: Context, incomplete: str) -> list[str]:
        return [value.partition("=")[2] for value, _ in settings(ctx, f"{key}={incomplete}")]

    return offered
