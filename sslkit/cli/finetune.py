"""sslkit finetune SOURCE DATA"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sslkit.cli import options
from sslkit.cli.command import of_settings
from sslkit.cli.setting_options import with_settings
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.finetuning.config import FLAGS, SECTIONS

EXAMPLES = (
    "sslkit finetune runs/mfm-vit_tiny_patch16_224-1 labelled/",
    "sslkit finetune timm/resnet50 labelled/ --baseline scratch --seeds 0,1,2",
    "sslkit finetune random/resnet18 labelled/ --share 0.5 --keep best",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {**of_settings(FLAGS, SECTIONS), "seeds": "default: --seed alone"}


@with_settings(SECTIONS, "baseline")
def finetune(
    source: Annotated[
        str | None,
        typer.Argument(help="A run, an exported folder, timm/NAME, or random/NAME (from scratch)."),
    ] = None,
    data: Annotated[
        str | None, typer.Argument(help="Labelled images: class folders, train/ and val/, or a .csv.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="scratch", help="Train from random weights as well, and compare."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Repeat with each of these seeds.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue a run or a comparison; goes alone."),
    ] = None,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    **given: Any,
) -> None:
    """Train a classifier, the whole network, starting from SOURCE.

    Says how many tensors were loaded; a missing one is an error. The folder printed on stdout opens in timm.
    With --baseline or --seeds it holds one such folder per run, and the last line is the verdict.
    """
    from sslkit import api

    console = Console(quiet, json)
    words = {"config": config, "settings": settings or [], "baseline": baseline, "console": console, **given}
    words["seeds"] = None if seeds is None else _numbers(seeds)
    if dry_run:
        if resume is not None:
            raise UserError("--dry-run looks at a run before it begins", "leave out --resume")
        found = api.finetune_dry_run(source, data, **words)
        console.result("\n".join(found.lines()), found.to_document())
        return
    result = api.finetune(source, data, resume=resume, **words)
    console.result(str(result.folder), result.to_document())


def _numbers(text: str) -> list[int]:
    """ "0,1,2" → [0, 1, 2]."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {text}: whole numbers expected, separated by commas", "--seeds 0,1,2")
    return [int(word) for word in words]
