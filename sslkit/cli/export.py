"""sslkit export SOURCE [OUT]"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sslkit.cli import completion, options
from sslkit.core.console import Console

EXAMPLES = (
    "sslkit export runs/mfm-vit_tiny_patch16_224-1 my-backbone",
    "sslkit export runs/mfm-vit_tiny_patch16_224-1 --format onnx",
)


def export(
    source: Annotated[
        str, typer.Argument(help="A run, an exported folder, a file of weights, timm/NAME or random/NAME.")
    ],
    out: Annotated[str | None, typer.Argument(help="Folder to make; by default exports/NAME-N.")] = None,
    format: Annotated[
        str, typer.Option("--format", help="timm or onnx.", autocompletion=completion.among("timm", "onnx"))
    ] = "timm",
    backbone: Annotated[
        str,
        typer.Option(
            "-b",
            "--backbone",
            help="Of a foreign file whose tensors leave it open: timm's name.",
            autocompletion=completion.backbones,
        ),
    ] = "",
    # Of this command alone: as a setting, trust in a pickle would travel in a configuration that others run.
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Read a foreign .pt, .pth or .bin with a torch older than 2.10 too."),
    ] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Weights for other programs, proven by loading them back and comparing features."""
    from sslkit import api

    console = Console(quiet, json)
    made = api.export(source, out, format=format, backbone=backbone, trust=trust, console=console)
    console.result(str(made.folder), dataclasses.asdict(made))
