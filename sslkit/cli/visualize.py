"""sslkit visualize SOURCE [IMAGES]"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def visualize(
    source: Annotated[
        str,
        typer.Argument(
            help="A run, or a method's name (masks, families, spectrum and views need no training)."
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Images to show; by default the run's, or generated.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "-k", "--kind", help="masks, families, views, spectrum, recon, panels, curves; repeatable."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="How many images.")] = 4,
    radius: Annotated[float | None, typer.Option("--radius", help="Radius of the mask, bins.")] = None,
    size: options.Size = None,
    seed: options.Seed = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Pictures of what a method does or a model learned, as PNG files."""
    from pathlib import Path

    from sslkit import verbs

    console = Console(quiet, json)
    files = verbs.visualize(
        source,
        images or [],
        kinds=kind or [],
        count=count,
        radius=radius,
        size=size,
        seed=seed or 0,
        out=Path(out) if out else None,
        console=console,
    )
    console.result("\n".join(map(str, files)), {"files": [str(file) for file in files]})
