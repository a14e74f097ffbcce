"""sslkit visualize SOURCE [IMAGES]"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import completion, options
from sslkit.core.console import Console

KINDS = (
    "masks",
    "families",
    "views",
    "spectrum",
    "recon",
    "panels",
    "curves",
    "attention",
    "pca",
    "neighbours",
    "map",
    "filters",
    "layers",
    "robust",
    "compare",
)
"""Kinds of pictures, and groups of them."""

EXAMPLES = (
    "sslkit visualize mfm                            # what it does, untrained",
    "sslkit visualize runs/mfm-vit_tiny_patch16_224-1 photos/ -k attention -k pca",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {
        "kind": "default: all that SOURCE allows",
        "radius": "default: the run's, or the method's",
        "size": "default: the source's",
        "seed": "default: 0",
        "out": "default: RUN/pictures, or pictures-NAME",
    }


def visualize(
    source: Annotated[
        str,
        typer.Argument(
            help="A run, weights, or a method's name (masks, families, spectrum, views need no training)."
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Images to show; by default the run's, or generated.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "-k",
            "--kind",
            help=f"{', '.join(KINDS)}; repeatable.",
            autocompletion=completion.among(*KINDS),
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="How many images.")] = 4,
    radius: Annotated[float | None, typer.Option("--radius", help="Radius of the mask, bins.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option("--with", metavar="RUN", help="A run to compare with; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Images for neighbours and map, at most.")] = 1000,
    size: options.Size = None,
    seed: options.Seed = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Folder; what is there stays, new files get numbers.")
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Pictures of what a method does or a model learned, as PNG files."""
    from pathlib import Path

    from sslkit import api

    console = Console(quiet, json)
    files = api.visualize(
        source,
        images or [],
        kinds=kind or [],
        count=count,
        others=beside or [],
        limit=limit,
        radius=radius,
        size=size,
        seed=seed or 0,
        out=Path(out) if out else None,
        console=console,
    )
    console.result("\n".join(map(str, files)), {"files": [str(file) for file in files]})
