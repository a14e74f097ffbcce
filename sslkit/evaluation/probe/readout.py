"""What is read out of a frozen encoder: several vectors per image, all from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sslkit.core.config.setting import AUTO
from sslkit.core.errors import UserError, nearest
from sslkit.models.encoder import Encoder

ReadFunction = Callable[[Tensor], dict[str, Tensor]]
"""float [B, 3, H, W] in [0, 1] → {name of the read-out: [B, D]}."""

TITLES = {"mean": "mean", "cls": "class token", "last4": "last 4", "pixels": "pixels"}
"""Name of a read-out → what people read."""
_READOUTS = ("mean", "cls", "last4")
LAYERS = 4


def available(encoder: Encoder) -> tuple[str, ...]:
    """The read-outs that an encoder has, the customary one first."""
    model: Any = encoder.model
    has_class = encoder.family == "vit" and model.cls_token is not None
    has_layers = hasattr(model, "forward_intermediates")
    return ("mean", *(["cls"] if has_class and has_layers else []), *(["last4"] if has_layers else []))


def chosen(encoder: Encoder, wanted: str) -> tuple[str, ...]:
    """The read-outs to try: all with "auto", else the one that is wanted.

    Raises:
        UserError: no such read-out, or this encoder lacks it.
    """
    if wanted not in (AUTO, *_READOUTS):
        raise UserError(f"unknown read-out {wanted!r}", nearest(wanted, (AUTO, *_READOUTS)))
    own = available(encoder)
    if wanted not in (AUTO, *own):
        raise UserError(f"{encoder.name} has no read-out {wanted!r}", "it has " + ", ".join(own))
    return own if wanted == AUTO else (wanted,)


def read_out(encoder: Encoder, names: Sequence[str]) -> ReadFunction:
    """A function that computes the read-outs `names`.

    mean: `Encoder.vector`, the mean of a ViT's patch tokens or a CNN's pooled last map. cls: a ViT's class
    token. last4: the means of the last four layers (blocks of a ViT, each through the final norm as DINOv2
    reads them; stages of a CNN), concatenated, earliest first.
    """
    if tuple(names) == ("mean",):
        return lambda images: {"mean": encoder.vector(images)}
    model: Any = encoder.model
    layers = min(LAYERS, len(model.feature_info))

    def read(images: Tensor) -> dict[str, Tensor]:
        final, maps = model.forward_intermediates(
            encoder.normalize(images), indices=layers, norm=True, output_fmt="NCHW"
        )
        found = {"mean": model.forward_head(final)}  # what Encoder.vector gives
        if "cls" in names:
            found["cls"] = final[:, 0]
        if "last4" in names:
            found["last4"] = torch.cat([map.mean((2, 3)) for map in maps], dim=1)
        return {name: found[name] for name in names}

    return read
