"""Which timm model a set of tensors is, where their shapes leave one answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import timm
from torch import Tensor

from sslkit.backbones import native_size
from sslkit.errors import UserError
from sslkit.timm_models import Stem

VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
"""(width, depth) → name. The number of heads has no shape; these widths are always divided as timm does."""

RESNETS = {
    (2, 2, 2, 2, "basic"): "resnet18",
    (3, 4, 6, 3, "basic"): "resnet34",
    (3, 4, 6, 3, "bottleneck"): "resnet50",
    (3, 4, 23, 3, "bottleneck"): "resnet101",
    (3, 8, 36, 3, "bottleneck"): "resnet152",
}


@dataclass(frozen=True)
class Shape:
    """What `Encoder` has to be told to build a model for the tensors."""

    name: str
    size: int  # side of the images, pixels
    patch_size: int  # 0: the name's own
    stem: Stem


def shape_of(tensors: Mapping[str, Tensor], backbone: str = "") -> Shape | None:
    """The model, of the name `backbone` if one is given; None where a name has to be given.

    Raises:
        UserError: a position embedding that is no square of patches.
    """
    name = backbone or _vit(tensors) or _resnet(tensors)
    if not name:
        return None
    size, patch = _grid(tensors) or (native_size(name), 0)
    own = re.search(r"patch(\d+)", name)
    patch = 0 if own and int(own[1]) == patch else patch
    stem = tensors.get("conv1.weight")
    small = stem is not None and stem.ndim == 4 and stem.shape[-1] == 3 and not backbone_has_no_stem(name)
    return Shape(name, size, patch, "small" if small else "standard")
