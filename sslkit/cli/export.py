"""sslkit export SOURCE [OUT]"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def export(
    source: Annotated[str, typer.Argument(help="A run, an exported folder, timm/NAME or random/NAME.")],
    out: Annotated[str | None, typer.Argument(help="Folder to make; by default exports/NAME-N.")] = None,
    format: Annotated[str, typer.Option("--format", help="timm or onnx.")] = "timm",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Weights for other programs, proven by loading them back and comparing features."""
    from sslkit import verbs

    console = Console(quiet, json)
    made = verbs.export(source, out, format=format, console=console)
    console.result(str(made.folder), dataclasses.asdict(made))
