"""sslkit pretrain DATA..."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslkit.cli import options
from sslkit.cli.command import of_settings
from sslkit.core.console import Console, command
from sslkit.core.errors import UserError

if TYPE_CHECKING:
    from sslkit.training.pretrain.rates import DryRun


EXAMPLES = (
    "sslkit pretrain photos/ --dry-run               # what would it take?",
    "sslkit pretrain photos/ -b resnet50 --epochs 100",
    "sslkit pretrain photos/ -c mae-vit-b16 --size 96 -s run.log_every=10",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    from sslkit.core.config.build import SECTIONS
    from sslkit.training.pretrain.config import METHOD, PRETRAIN_FLAGS

    return {**of_settings(PRETRAIN_FLAGS, SECTIONS), "method": f"default: {METHOD}"}


def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, .txt lists, .csv tables, or fractal:N (generated)."),
    ] = None,
    method: options.Method = None,
    backbone: options.Backbone = None,
    init: Annotated[
        str | None, typer.Option("--init", metavar="SOURCE", help="Start from these weights.")
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    micro_batch: options.MicroBatch = None,
    lr: options.LearningRate = None,
    size: options.Size = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use only N images, spread over the set.")
    ] = None,
    workers: options.Workers = None,
    cache: options.Cache = None,
    device: options.Device = None,
    devices: Annotated[
        int | None, typer.Option("--devices", help="Processes that train together, one device each.")
    ] = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    out: options.Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, say what the run would take, write nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue a run; alone, or with --epochs: longer."),
    ] = None,
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="Resume although the images have changed.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move a run that is at --out aside, to OUT-old-1.")
    ] = False,
    max_time: Annotated[
        str | None, typer.Option("--max-time", help="Fit the schedule to this time, e.g. 8h.")
    ] = None,
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
    from sslkit import api

    console = Console(quiet, json)
    words: dict[str, Any] = {
        "method": method,
        "config": config,
        "settings": settings or [],
        "console": console,
        "backbone": backbone,
        "init": init,
        "epochs": epochs,
        "batch_size": batch_size,
        "micro_batch": options.number(micro_batch),
        "lr": lr,
        "size": size,
        "limit": limit,
        "workers": workers,
        "cache": cache,
        "device": device,
        "devices": devices,
        "precision": precision,
        "out": out,
        "max_time": max_time,
        "save_every": save_every,
        "pictures": pictures,
        "seed": seed,
        "compile": compile,
    }
    if dry_run:
        if resume is not None:
            raise UserError("--dry-run looks at a run before it begins", "leave out --resume")
        rehearsal = api.rehearse(*(data or []), **words)
        console.result("\n".join(_lines(rehearsal)), rehearsal.to_document())
        return
    run = api.pretrain(
        *(data or []),
        resume=resume,
        allow_data_change=allow_data_change,
        overwrite=overwrite,
        **words,
    )
    console.say("done. Next:")
    console.say(f"  {command('sslkit', 'probe', run)} LABELLED-IMAGES      # did it help?")
    console.say(f"  {command('sslkit', 'export', run)}                     # a file that timm opens")
    console.result(str(run), {"run": str(run)})


def _lines(rehearsal: DryRun) -> list[str]:
    """A rehearsal as text."""
    rates = rehearsal.rates
    return [
        f"loader alone  {rates.loader:8.1f} images/s",
        f"model alone   {rates.model:8.1f} images/s",
        f"together      {rates.whole:8.1f} images/s, {rates.wait:.1%} of the time waiting for images",
        f"memory        {rates.memory / 2**30:8.2f} GB at most",
        f"whole run     {rehearsal.hours:8.2f} hours, {rehearsal.steps:,} steps",
        f"disk          {rehearsal.disk / 2**30:8.2f} GB",
        rates.source,
        rehearsal.limit,
    ]
