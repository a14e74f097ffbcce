"""sslkit finetune SOURCE DATA"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import completion, options
from sslkit.cli.command import of_settings
from sslkit.core.console import Console
from sslkit.core.errors import UserError

EXAMPLES = (
    "sslkit finetune runs/mfm-vit_tiny_patch16_224-1 labelled/",
    "sslkit finetune timm/resnet50 labelled/ --baseline scratch --seeds 0,1,2",
    "sslkit finetune random/resnet18 labelled/ --share 0.5 --keep best",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    from sslkit.finetuning.config import FLAGS, SECTIONS

    return {**of_settings(FLAGS, SECTIONS), "seeds": "default: --seed alone"}


def finetune(
    source: Annotated[
        str | None,
        typer.Argument(help="A run, an exported folder, timm/NAME, or random/NAME (from scratch)."),
    ] = None,
    data: Annotated[
        str | None, typer.Argument(help="Labelled images: class folders, train/ and val/, or a .csv.")
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Only SOURCE's architecture, with random weights.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="scratch", help="Train from random weights as well, and compare."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Repeat with each of these seeds.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", help="Training images per class, drawn by the seed.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", help="Part of each class's training images, e.g. 0.1.")
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Train the head alone.")] = False,
    balance: Annotated[
        bool, typer.Option("--balance", help="Rare classes weigh as much as frequent ones.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="last, or best: the epoch that is best on a fifth of the training images.",
            autocompletion=completion.words_of("run.keep"),
        ),
    ] = None,
    robust: Annotated[
        bool, typer.Option("--robust", help="Also score it on corrupted and filtered validation images.")
    ] = False,
    robust_limit: options.RobustLimit = None,
    attacks: options.Attacks = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    size: options.Size = None,
    workers: options.Workers = None,
    cache: options.Cache = None,
    device: options.Device = None,
    precision: options.Precision = None,
    out: options.Out = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue a run or a comparison; goes alone."),
    ] = None,
    save_every: Annotated[
        str | None, typer.Option("--save-every", help="30s, 10m, 2h, 5e (epochs), 500 (steps).")
    ] = None,
    seed: options.Seed = None,
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Train a classifier, the whole network, starting from SOURCE.

    Says how many tensors were loaded; a missing one is an error. The folder printed on stdout opens in timm.
    With --baseline or --seeds it holds one such folder per run, and the last line is the verdict.
    """
    from sslkit import api

    console = Console(quiet, json)
    result = api.finetune(
        source,
        data,
        console=console,
        config=config,
        settings=settings or [],
        baseline=baseline,
        seeds=None if seeds is None else _numbers(seeds),
        resume=resume,
        scratch=scratch or None,
        shots=shots,
        share=share,
        freeze=freeze or None,
        balance=balance or None,
        keep=keep,
        robust=robust or None,
        robust_limit=robust_limit,
        attacks=attacks,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        size=size,
        workers=workers,
        cache=cache,
        device=device,
        precision=precision,
        out=out,
        save_every=save_every,
        seed=seed,
    )
    console.result(str(result.folder), result.to_document())


def _numbers(text: str) -> list[int]:
    """ "0,1,2" → [0, 1, 2]."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {text}: whole numbers expected, separated by commas", "--seeds 0,1,2")
    return [int(word) for word in words]
