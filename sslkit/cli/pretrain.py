"""sslkit pretrain DATA..."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sslkit.cli import options
from sslkit.cli.command import of_settings
from sslkit.cli.setting_options import with_settings
from sslkit.core.config.build import SECTIONS
from sslkit.core.console import Console, command
from sslkit.core.errors import UserError
from sslkit.training.pretrain.config import METHOD, PRETRAIN_FLAGS

EXAMPLES = (
    "sslkit pretrain photos/ --dry-run               # what would it take?",
    "sslkit pretrain photos/ -b resnet50 --epochs 100",
    "sslkit pretrain photos/ -c mae-vit-b16 --size 96 -s run.log_every=10",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {**of_settings(PRETRAIN_FLAGS, SECTIONS), "method": f"default: {METHOD}"}


@with_settings(SECTIONS, "dry_run")
def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, .txt lists, .csv tables, or fractal:N (generated)."),
    ] = None,
    method: options.Method = None,
    dry_run: options.DryRun = False,
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
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    **given: Any,
) -> None:
    """Learn from images without labels.

    With a folder alone, everything is chosen for the images and the machine, and printed before the first
    step. The result is a run folder, printed on stdout, with an encoder that timm opens.
    """
    from sslkit import api

    console = Console(quiet, json)
    words = {"method": method, "config": config, "settings": settings or [], "console": console, **given}
    if dry_run:
        if resume is not None:
            raise UserError("--dry-run looks at a run before it begins", "leave out --resume")
        found = api.dry_run(*(data or []), **words)
        console.result("\n".join(found.lines()), found.to_document())
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
