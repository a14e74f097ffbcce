"""sslkit finetune SOURCE DATA"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def finetune(
    source: Annotated[
        str, typer.Argument(help="A run, an exported folder, timm/NAME, or random/NAME (from scratch).")
    ],
    data: Annotated[str, typer.Argument(help="Labelled images: class folders, train/ and val/, or a .csv.")],
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Only SOURCE's architecture, with random weights: the baseline.")
    ] = False,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    size: options.Size = None,
    workers: options.Workers = None,
    device: options.Device = None,
    precision: options.Precision = None,
    out: options.Out = None,
    seed: options.Seed = None,
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Train a classifier, the whole network, starting from SOURCE.

    Says how many tensors were loaded; a missing one is an error. The folder printed on stdout opens in timm.
    """
    from sslkit import verbs

    console = Console(quiet, json)
    result = verbs.finetune(
        source,
        data,
        console=console,
        config=config,
        settings=settings or [],
        scratch=scratch or None,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        size=size,
        workers=workers,
        device=device,
        precision=precision,
        out=out,
        seed=seed,
    )
    console.result(str(result.folder), result.to_document())
