"""sslkit methods [NAME]"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslkit.cli import completion, options
from sslkit.core.console import Console, command
from sslkit.core.errors import UserError, nearest_path

if TYPE_CHECKING:
    from sslkit.core.cards import FileCard
    from sslkit.methods import Card
    from sslkit.testing.contract import Outcome


_FACTS = ("family", "year", "needs", "backbones", "lines", "status", "paper")

EXAMPLES = (
    "sslkit methods mfm --toml                        # its settings, ready for -c",
    "sslkit methods --new mine.py",
    "sslkit methods --test mine.py",
)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One method, or a file ./mine.py: its card and settings.",
            autocompletion=completion.methods,
        ),
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="The settings as TOML, ready for -c.")] = False,
    new: Annotated[
        str | None, typer.Option("--new", metavar="FILE", help="Write a method of 40 lines that trains.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--test",
            metavar="METHOD",
            help="Check a method, or a file ./mine.py.",
            autocompletion=completion.methods,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """What exists, methods and what goes around one; a card; settings as TOML; a file to begin with; checks.

    Read from the methods' files, without importing torch; only --test does.
    """
    given = [
        word for word, value in {"NAME": name, "--new": new, "--test": test}.items() if value is not None
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} do not go together", "sslkit methods --help")
    console = Console(json=json)
    if new is not None:
        _write_new(new, console)
    elif test is not None:
        _test(test, console)
    elif name is not None:
        _show(name, toml, console)
    else:
        _list(console)


def _list(console: Console) -> None:
    from sslkit.methods import card, names

    cards, around = [card(name) for name in names()], [*_around().items()]
    others = [
        [name, kind, str(found.facts.get("year", "")), str(found.lines), found.facts.get("paper", "")]
        for name, (kind, found) in around
    ]
    lines = _columns([["method", *_FACTS], *map(_row, cards)])
    lines += ["", *_columns([["around a method", "kind", "year", "lines", "paper"], *others])]
    documents = [{"kind": kind, **_document(found)} for _, (kind, found) in around]
    console.result("\n".join(lines), {"methods": [_document(one) for one in cards], "around": documents})


def _around() -> dict[str, tuple[str, FileCard]]:
    """What goes around a method: name → kind and card."""
    from sslkit.augmentations import batch, curricula

    found = {name: ("--augment", batch.card(name)) for name in batch.names()}
    return found | {name: ("--curriculum", curricula.card(name)) for name in curricula.names()}


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(card: Card) -> list[str]:
    facts = _document(card)
    cells = [facts.get(key, "") for key in _FACTS]
    return [card.name, *(", ".join(cell) if isinstance(cell, list) else str(cell) for cell in cells)]


def _show(name: str, toml: bool, console: Console) -> None:
    """One method's card, or its settings as TOML."""
    from sslkit.core.config import build
    from sslkit.methods import card, default_configuration

    if name in (around := _around()) and not toml:
        kind, found = around[name]
        console.result(_text(found, name, f"pretrain {kind} {name}"), {"kind": kind, **_document(found)})
        return
    chosen = card(name)
    if toml:
        header = f"settings of sslkit pretrain -m {name}"
        console.result(build.dump(default_configuration(name), header).rstrip())
        return
    console.result(_text(chosen, "method"), _document(chosen))


def _text(card: Card | FileCard, section: str, use: str = "") -> str:
    """A card with its settings."""
    told = f"Settings (-s {section}.KEY=VALUE), {card.lines} lines of code:"
    rows = [card.text, "", *([f"sslkit {use}", ""] if use else []), told]
    fields = dataclasses.fields(card.Config)
    return "\n".join(rows + [f"  {one.name} = {one.default}  # {one.metadata['help']}" for one in fields])


def _write_new(file: str, console: Console) -> None:
    from sslkit.methods import TEMPLATE

    path = Path(file)
    if path.suffix != ".py":
        raise UserError(f"--new {file}: a file that ends in .py expected", f"--new {path.with_suffix('.py')}")
    if not path.parent.is_dir():
        cure = nearest_path(path.parent, command("mkdir", "-p", path.parent))
        raise UserError(f"--new {file}: there is no folder {path.parent}", cure)
    try:
        with path.open("x", encoding="utf-8") as opened:
            opened.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{file} exists", "choose another name") from None
    except OSError as problem:
        raise UserError(f"{file} can't be written: {problem.strerror}") from None
    console.say("a method that predicts an image from its low frequencies. Make it yours, then:")
    judge = command("sslkit", "methods", "--test", file)
    console.say(f"  {judge}              # does it hold what every method must?")
    console.say(f"  {command('sslkit', 'pretrain', 'photos/', '-m', file)}")
    console.result(file, {"file": file})


def _test(name: str, console: Console) -> None:
    """One line for each check on each backbone; exit code 1 if one fails."""
    import torch

    from sslkit.testing.contract import contract

    torch.set_num_threads(1)  # the networks are so small that threads would only wait for each other
    outcomes: list[Outcome] = []
    for outcome in contract(name):
        if not outcomes or outcomes[-1].backbone != outcome.backbone:
            console.say(outcome.backbone)
        console.say(f"  {outcome.check:<40} {f'FAILED: {outcome.reason}' if outcome.reason else 'ok'}")
        outcomes.append(outcome)
    failed = sum(bool(outcome.reason) for outcome in outcomes)
    verdict = f"{name}: {failed} of {len(outcomes)} checks failed" if failed else f"{name}: all checks hold"
    document = {"method": name, "failed": failed, "checks": [dataclasses.asdict(one) for one in outcomes]}
    console.result(verdict, document)
    if failed:
        raise typer.Exit(1)


def _document(card: Card | FileCard) -> dict[str, Any]:
    """The card's facts that JSON can say."""
    facts = {key: list(value) if isinstance(value, tuple) else value for key, value in card.facts.items()}
    facts = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in facts.items()}
    return {"name": card.name, "lines": card.lines, **facts}
