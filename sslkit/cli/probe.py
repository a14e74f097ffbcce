"""sslkit probe SOURCE... DATA"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import completion, options
from sslkit.core.console import Console

EXAMPLES = (
    "sslkit probe runs/mfm-vit_tiny_patch16_224-1 labelled/",
    "sslkit probe runs/mfm-vit_tiny_patch16_224-1 labelled/ --shots 5,all --robust",
    "sslkit probe random/resnet18 labelled/ --min-top1 30   # exit code 1 if below",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {
        **options.of_reading(),
        "baseline": "default: random, pixels",
        "readout": "auto: what suits a fifth of the training images",
        "seeds": "default: 3",
        "robust_limit": "default: 500",
        "attacks": "auto: on a GPU",
        "out": "default: into the run",
    }


def probe(
    arguments: Annotated[
        list[str], typer.Argument(metavar="SOURCE... DATA", help="Runs or weights, then labelled images.")
    ],
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="random, pixels or any SOURCE; repeatable."),
    ] = None,
    readout: Annotated[
        str | None,
        typer.Option(
            "--readout",
            help="Features of an image: mean, cls or last4.",
            autocompletion=completion.among("auto", "mean", "cls", "last4"),
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shots", metavar="1,5,10,all", help="Also after so many labelled images per class."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="How often those are drawn.")] = None,
    exclude_leaks: Annotated[
        bool, typer.Option("--exclude-leaks", help="Leave out validation images that are in training too.")
    ] = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Also at other input sizes and without normalisation.")
    ] = False,
    robust: Annotated[bool, typer.Option("--robust", help="Also on corrupted and filtered images.")] = False,
    robust_limit: options.RobustLimit = None,
    attacks: options.Attacks = None,
    local: Annotated[
        bool, typer.Option("--local", help="Also parts of images: mosaics, or masks/ beside images/.")
    ] = False,
    min_top1: Annotated[
        float | None,
        typer.Option("--min-top1", help="Exit 1 if the first SOURCE's better accuracy, in %, is below."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep features of earlier probes.")
    ] = False,
    size: options.Size = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    range: options.Range = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Did pre-training help? kNN and a linear layer on frozen features, beside baselines, with a verdict.

    Labels are class folders, train/ and val/ with class folders, or the label column of a .csv.
    """
    from sslkit import api
    from sslkit.core.errors import UserError
    from sslkit.data.sources.folders import has_masks

    if len(arguments) < 2:
        raise UserError("probe needs SOURCE and DATA", "sslkit probe runs/mfm-…-1 labelled-photos/")
    if min_top1 is not None and not 0 <= min_top1 <= 100:
        raise UserError(f"--min-top1: {min_top1:g} is not a percentage", "--min-top1 60")
    if min_top1 is not None and has_masks(arguments[-1]):
        raise UserError(f"--min-top1: {arguments[-1]} has masks, no classes", "leave out --min-top1")
    console = Console(quiet, json)
    kinds = {"exclude_leaks": exclude_leaks, "grid": grid, "robust": robust, "local": local}
    reading = options.given(
        size=size, device=device, precision=precision, workers=workers, seed=seed, range=range
    )
    wanted = options.given(
        baselines=tuple(baseline) if baseline else None,
        readout=readout,
        shots=shots,
        seeds=seeds,
        robust_limit=robust_limit,
        attacks=attacks,
        cache=not no_cache,
    )
    *sources, data = arguments
    result = api.probe(*sources, data=data, out=out, console=console, **kinds, **reading, **wanted)
    console.result("\n".join((*result.headlines, *result.verdicts)), result.to_document())
    if min_top1 is not None and result.best < min_top1:
        raise UserError(f"{arguments[0]}: top-1 {result.best:.1f} % is below --min-top1 {min_top1:g}", code=1)
