"""sslkit models [PATTERN]"""

from __future__ import annotations

from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.core.console import Console

EXAMPLES = ("sslkit models resnet", "sslkit models 'vit_*patch16*'")


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern with *.")] = "",
    json: options.Json = False,
) -> None:
    """Backbones: every timm model whose name fits the pattern."""
    import timm

    from sslkit.core.errors import UserError, nearest

    found = timm.list_models(pattern if "*" in pattern else f"*{pattern}*")
    if not found:
        raise UserError(f"no timm model fits {pattern!r}", nearest(pattern, timm.list_models()))
    Console(json=json).result("\n".join(found), {"models": found})
