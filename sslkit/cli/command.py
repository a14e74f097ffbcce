"""How a command's help reads: what an option is when it is not given, and lines to begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from typer.core import TyperCommand, TyperOption

from sslkit.core.config.setting import AUTO

Defaults = Callable[[], Mapping[str, str]]
"""Parameter's name → its default as help says it; called for help alone, so that no other call pays."""

WIDEST = 120
"""Columns of a help text, where the terminal has as many."""


def none() -> Mapping[str, str]:
    """Of a command whose options all show the defaults of its function."""
    return {}


def described(examples: Iterable[str], defaults: Defaults = none) -> type[TyperCommand]:
    """A kind of command whose help shows these defaults and ends with these examples, a line each."""

    class Described(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            shown = defaults()
            for item in self.params:
                if isinstance(item, TyperOption) and (text := shown.get(str(item.name))):
                    item.help = f"{(item.help or '').removesuffix(f'  [{text}]')}  [{text}]"
            super().format_options(ctx, formatter)

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"  {line}\n")

    Described.examples = tuple(examples)  # type: ignore[attr-defined]
    return Described


def of_settings(flags: Mapping[str, str], sections: Mapping[str, type]) -> dict[str, str]:
    """Defaults of options that stand for settings, read from the fields: option → "section.field"."""
    fields = {
        f"{name}.{item.name}": item for name, part in sections.items() for item in dataclasses.fields(part)
    }
    return {flag: _default_text(fields[key].metadata) for flag, key in flags.items()}


def _default_text(metadata: Mapping[str, Any]) -> str:
    """ "auto: as many as fit", "default: 0: all", "default: 10m", "default: random": a field's own words.

    Nothing for switches.
    """
    value, help = metadata["default"], metadata["help"]
    if isinstance(value, bool):
        return ""
    name = AUTO if value == AUTO else "empty" if value in ("", ()) else str(value)
    meanings = dict(part.split(": ", 1) for part in help.split("; ") if ": " in part)
    meaning = meanings.get(name, "")
    if name == "empty":
        return f"default: {meaning or 'none'}"
    if name == AUTO:
        return f"auto: {help.partition('auto: ')[2]}"
    return f"default: {name}: {meaning}" if meaning else f"default: {name}"
