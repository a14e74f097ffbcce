"""sslkit pretrain DATA..."""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, .txt lists, .csv tables, or fractal:N (generated)."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("-m", "--method", help="How to learn: a name of sslkit methods, or ./mine.py."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("-b", "--backbone", help="Any timm model; see sslkit models.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", metavar="SOURCE", help="Start from these weights.")
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="Images at once in memory.")
    ] = None,
    lr: options.LearningRate = None,
    size: options.Size = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use only N images, spread over the set.")
    ] = None,
    workers: options.Workers = None,
    device: options.Device = None,
    precision: options.Precision = None,
    out: options.Out = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Continue a run; goes alone.")
    ] = None,
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="Resume although the images have changed.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move a run that is at --out aside, to OUT-old-1.")
    ] = False,
    save_every: Annotated[
        str | None, typer.Option("--save-every", help="30s, 10m, 2h, 5e (epochs), 500 (steps).")
    ] = None,
    pictures: Annotated[
        int | None, typer.Option("--pictures", help="Reconstructions written over the run.")
    ] = None,
    seed: options.Seed = None,
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Learn from images without labels.

    With a folder alone, everything is chosen for the images and the machine, and printed before the first
    step. The result is a run folder, printed on stdout, with an encoder that timm opens.
    """
    from sslkit import verbs

    console = Console(quiet, json)
    run = verbs.pretrain(
        *(data or []),
        method=method,
        config=config,
        settings=settings or [],
        resume=resume,
        allow_data_change=allow_data_change,
        overwrite=overwrite,
        console=console,
        backbone=backbone,
        init=init,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        size=size,
        limit=limit,
        workers=workers,
        device=device,
        precision=precision,
        out=out,
        save_every=save_every,
        pictures=pictures,
        seed=seed,
    )
    console.say("done. Next:")
    console.say(f"  sslkit probe {run} LABELLED-IMAGES      # did it help?")
    console.say(f"  sslkit export {run}                     # a file that timm opens")
    console.result(str(run), {"run": str(run)})
