"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sslkit.cli import completion
from sslkit.cli.command import of_settings

Method = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--method",
        help="How to learn: a name of sslkit methods, or ./mine.py.",
        autocompletion=completion.methods,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Time a few steps, say what the run would take, write nothing.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results, warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
Config = Annotated[
    str | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="A TOML file, or a recipe's name.",
        autocompletion=completion.recipes,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, e.g. -s optim.clip=1.0",
        autocompletion=completion.settings,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:1 or mps.",
        autocompletion=completion.among("auto", "cpu", "cuda", "mps"),
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="auto, float32, tf32, bfloat16, float16.",
        autocompletion=completion.words_of("run.precision"),
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that read images; 0: none.")]
Range = Annotated[
    str | None,
    typer.Option("--range", metavar="LOW,HIGH", help="What is black and white in files of more than 8 bits."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the images that go in, pixels.")]
RobustLimit = Annotated[int | None, typer.Option("--robust-limit", help="Images for --robust.")]
Attacks = Annotated[bool | None, typer.Option("--attacks/--no-attacks", help="FGSM and PGD in --robust.")]
Out = Annotated[str | None, typer.Option("-o", "--out", help="Folder to make; never an existing one.")]


def given(**options: Any) -> dict[str, Any]:
    """Those that were given: an option that is left out is None, and its default the function's own."""
    return {name: value for name, value in options.items() if value is not None}


def of_reading() -> dict[str, str]:
    """Defaults of the options of those that look at SOURCE's features."""
    from sslkit.finetuning.config import SECTIONS

    alike = {"device": "run.device", "precision": "run.precision", "workers": "data.workers"}
    alike |= {"seed": "run.seed", "range": "data.range"}
    return {**of_settings(alike, SECTIONS), "size": "default: the source's"}
