"""An encoder that a method only looks at: a teacher, a judge of views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn

from sslkit.models.encoder import Encoder
from sslkit.models.weights import load_encoder


class Frozen(nn.Module):
    """The encoder of a SOURCE, in evaluation mode whatever the method is in.

    It is in no `parameters()`, state dict, checkpoint or export, and follows the method to its device. A run
    keeps the SHA-256 of its weights, and `--resume` refuses others.

    Args:
        source: a run, a folder, a file, timm/NAME or random/NAME: a setting declared by `source_setting`.
        size: side of the images, pixels; None: the one it was made for.

    Raises:
        UserError: it can't be had.
    """

    def __init__(self, source: str, size: int | None = None) -> None:
        super().__init__()
        self.source = source
        # In a tuple torch does not see it: registered, it would be trained, saved and exported.
        self._held = (load_encoder(source, size).requires_grad_(False).eval(),)

    @property
    def encoder(self) -> Encoder:
        return self._held[0]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.encoder._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
