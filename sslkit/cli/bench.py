"""sslkit bench DATA..."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslkit.cli import options
from sslkit.cli.pretrain import defaults as defaults
from sslkit.cli.setting_options import with_settings
from sslkit.core.config.build import SECTIONS
from sslkit.core.console import Console

if TYPE_CHECKING:
    from sslkit.training.loop.rates import Rates

SIDES = {
    "loader": "loader only",
    "bare": "bare backbone",
    "model": "model only",
    "whole": "end to end",
}


SHARED = (
    "backbone", "size", "batch_size", "micro_batch", "workers", "device", "precision", "compile",
)  # fmt: skip
"""Options that it shares with pretrain."""

EXAMPLES = (
    "sslkit bench photos/",
    "sslkit bench fractal:512 -b resnet50 --batch-size 32 --steps 5",
)


@with_settings(SECTIONS, "steps", *SHARED)
def bench(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Folders, .txt lists, .csv tables or fractal:N.")
    ],
    method: options.Method = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps of each side.")] = 20,
    config: options.Config = None,
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    **given: Any,
) -> None:
    """How fast images are read and trained on here, beside the bare backbone; writes nothing."""
    from sslkit import api

    console = Console(quiet, json)
    made, rates = api.bench(
        *data,
        method=method,
        config=config,
        settings=settings or [],
        steps=steps,
        console=console,
        **given,
    )
    limit = rates.limit(made)
    console.result("\n".join([*_lines(rates), limit]), {**rates.to_document(), "limit": limit})


def _lines(rates: Rates) -> list[str]:
    """The rates as text; MFU: the share of the device's peak that a model's own products take."""
    peak = f"MFU of {rates.peak / 1e12:.2f} TFLOP/s" if rates.peak else "MFU: peak unknown"
    lines = [f"{'':<14}{'images/s':>10}{'of bare':>9}  {peak}"]
    for side, label in SIDES.items():
        rate = getattr(rates, side)
        use = f"{rates.use[side]:.1%}" if side in rates.use else ""
        lines.append(f"{label:<14}{rate:>10.1f}{rate / rates.bare:>9.1%}  {use}".rstrip())
    return [*lines, f"{rates.source}; {rates.wait:.1%} of the time end to end passes waiting for them"]
