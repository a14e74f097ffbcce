"""sslkit probe SOURCE... DATA"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.console import Console


def probe(
    arguments: Annotated[
        list[str], typer.Argument(metavar="SOURCE... DATA", help="Runs or weights, then labelled images.")
    ],
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", help="random or pixels; repeatable; both by default.")
    ] = None,
    size: options.Size = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Did pre-training help? kNN and a linear layer on frozen features, beside baselines, with a verdict.

    Labels are class folders, train/ and val/ with class folders, or the label column of a .csv.
    """
    from sslkit import verbs
    from sslkit.errors import UserError

    if len(arguments) < 2:
        raise UserError("probe needs SOURCE and DATA", "sslkit probe runs/mfm-…-1 labelled-photos/")
    console = Console(quiet, json)
    given: dict[str, object] = {
        "size": size,
        "device": device,
        "precision": precision,
        "workers": workers,
        "seed": seed,
    }
    options_given = {name: value for name, value in given.items() if value is not None}
    if baseline:
        options_given["baselines"] = tuple(baseline)
    result = verbs.probe(*arguments[:-1], data=arguments[-1], console=console, **options_given)
    console.result("\n".join(result.verdicts), result.to_document())
