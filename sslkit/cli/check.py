"""sslkit check DATA..."""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Folders, .txt lists, .csv tables or fractal:N.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="OTHER", help="Images that must not be in DATA; repeatable."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Every finding as a line of a new .tsv.")
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Look at images before spending hours on them: unreadable, tiny, doubled, leaked; exit 1 on findings."""
    from sslkit import verbs

    console = Console(quiet, json)
    audit = verbs.check(*data, against=against or (), out=out, workers=workers, console=console)
    console.result("\n".join(audit.lines()), audit.to_document())
    if audit.findings:
        raise typer.Exit(1)
