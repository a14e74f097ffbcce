"""sslkit methods [NAME]"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: its card and settings.")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="The settings as TOML, ready for -c.")] = False,
    json: options.Json = False,
) -> None:
    """What exists; one method's card; its settings as TOML.

    Read from the methods' files, without importing torch.
    """
    from sslkit import config
    from sslkit.methods import card, names

    console = Console(json=json)
    if name is None:
        cards = [card(one) for one in names()]
        document = {"methods": [{"name": one.name, "lines": one.lines, **_plain(one.facts)} for one in cards]}
        rows = [f"{one.name:<10} {one.facts['year']}  {one.summary.splitlines()[0]}" for one in cards]
        console.result("\n".join(rows), document)
        return
    chosen = card(name)
    built = config.build_pretrain(name, chosen.Config, chosen.facts.get("defaults", {}))
    if toml:
        console.result(config.dump(built, f"settings of sslkit pretrain -m {name}").rstrip())
        return
    rows = [chosen.text, "", f"Settings (-s method.KEY=VALUE), {chosen.lines} lines of code:"]
    for field in dataclasses.fields(chosen.Config):
        rows.append(f"  {field.name} = {field.default}  # {field.metadata['help']}")
    console.result("\n".join(rows), {"name": name, "lines": chosen.lines, **_plain(chosen.facts)})


def _plain(facts: dict[str, object]) -> dict[str, object]:
    """The facts that JSON can say."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}
