"""sslkit embed SOURCE DATA"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import completion, options
from sslkit.core.console import Console

EXAMPLES = (
    "sslkit embed runs/mfm-vit_tiny_patch16_224-1 photos/ -o photos.npz",
    "sslkit embed timm/resnet50 photos/ --neighbours 5 --query photos/one.jpg",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {**options.of_reading(), "out": "default: features.safetensors"}


def embed(
    source: Annotated[
        str, typer.Argument(help="A run, an exported folder, a file of weights, timm/NAME or random/NAME.")
    ],
    data: Annotated[str, typer.Argument(help="Images: a folder, a pack, a .txt or .csv list, fractal:N.")],
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="A new .safetensors, .npz, .csv or .parquet file."),
    ] = None,
    readout: Annotated[
        str,
        typer.Option(
            "--readout",
            help="mean, or cls: the class token of a ViT.",
            autocompletion=completion.among("mean", "cls"),
        ),
    ] = "mean",
    neighbours: Annotated[
        int,
        typer.Option("--neighbours", help="Also write the K most similar of each, as .csv; 0: none."),
    ] = 0,
    query: Annotated[
        str | None, typer.Option("--query", help="Print the images that are most similar to this one.")
    ] = None,
    size: options.Size = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    range: options.Range = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """One vector per image, into a file, with names and classes; and which images are alike."""
    from sslkit import api
    from sslkit.core.console import visible

    console = Console(quiet, json)
    reading = options.given(
        size=size, device=device, precision=precision, workers=workers, seed=seed, range=range
    )
    made = api.embed(
        source, data, out, readout=readout, neighbours=neighbours, query=query, console=console, **reading
    )
    found = [f"{match.cosine:.4f}  {visible(match.name)}" for match in made.matches]
    files = [str(made.neighbours)] if made.neighbours else []
    console.result("\n".join([*found, *files, str(made.file)]), made.to_document())
