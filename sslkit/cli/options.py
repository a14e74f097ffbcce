"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated

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
Backbone = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--backbone",
        help="Any timm model; see sslkit models.",
        autocompletion=completion.backbones,
    ),
]
MicroBatch = Annotated[
    str | None, typer.Option("--micro-batch", help="Images at once in memory, or auto: what fits.")
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
Compile = Annotated[
    bool | None, typer.Option("--compile", help="torch.compile: a minute first, then faster steps.")
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that read images; 0: none.")]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="memory: decode once, where it fits; off: never.",
        autocompletion=completion.words_of("data.cache"),
    ),
]
Range = Annotated[
    str | None,
    typer.Option("--range", metavar="LOW,HIGH", help="What is black and white in files of more than 8 bits."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the images that go in, pixels.")]
Epochs = Annotated[int | None, typer.Option("-e", "--epochs", help="Passes over the images.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per optimizer step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Base learning rate, per 512 images.")]
RobustLimit = Annotated[int | None, typer.Option("--robust-limit", help="Images for --robust.")]
Attacks = Annotated[bool | None, typer.Option("--attacks/--no-attacks", help="FGSM and PGD in --robust.")]
Out = Annotated[str | None, typer.Option("-o", "--out", help="Folder to make; never an existing one.")]


def of_reading() -> dict[str, str]:
    """Defaults of the options of those that look at SOURCE's features."""
    from sslkit.finetuning.config import SECTIONS

    alike = {"device": "run.device", "precision": "run.precision", "workers": "data.workers"}
    alike |= {"seed": "run.seed", "range": "data.range"}
    return {**of_settings(alike, SECTIONS), "size": "default: the source's"}


def number(text: str | None) -> int | str | None:
    """A whole number where it is one; else the text, for the setting's own check (auto, or refused)."""
    return int(text) if text is not None and text.lstrip("-").isdecimal() else text
