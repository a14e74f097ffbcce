"""Which timm model a set of tensors is, where their shapes leave one answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import timm
from torch import Tensor

from sslkit.timm_models import Stem, named_patch, native_size

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
    heads: int = 0  # of a ViT's attention; 0: the name's own


def shape_of(tensors: Mapping[str, Tensor], backbone: str = "") -> Shape | None:
    """The model, of the name `backbone` if one is given; None where a name has to be given."""
    name = backbone or _vit(tensors) or _resnet(tensors)
    if not name:
        return None
    size, patch = _grid(tensors) or (native_size(name), 0)
    stem = _dimensions(tensors, "conv1.weight")[2:] == (3, 3) and "layer1.0.conv1.weight" in tensors
    return Shape(name, size, 0 if patch == named_patch(name) else patch, "small" if stem else "standard")


def _vit(tensors: Mapping[str, Tensor]) -> str:
    """A ViT by width, depth and patch; "" if it is none of the usual ones."""
    embedding = _dimensions(tensors, "patch_embed.proj.weight")
    plain = _grid(tensors) and "cls_token" in tensors and "reg_token" not in tensors
    size = VITS.get((embedding[0], _count(tensors, "blocks"))) if plain else None
    if size is None:
        return ""
    name = f"vit_{size}_patch{embedding[2]}_224"
    return name if timm.is_model(name) else f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


def _resnet(tensors: Mapping[str, Tensor]) -> str:
    """A ResNet by its numbers of blocks; "" if it is none of the usual ones."""
    wide = _dimensions(tensors, "layer1.0.conv1.weight")[:1] != (64,)
    if wide or not _dimensions(tensors, "conv1.weight"):
        return ""
    blocks = [_count(tensors, f"layer{stage}") for stage in range(1, 5)]
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    return RESNETS.get((*blocks, kind), "")  # type: ignore[arg-type]


def _grid(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(side of the images, side of the patches) of a ViT with square patches on a square grid."""
    embedding, position = (_dimensions(tensors, name) for name in ("patch_embed.proj.weight", "pos_embed"))
    if len(embedding) != 4 or len(position) != 3 or embedding[2] != embedding[3]:
        return None
    prefix = "cls_token" in tensors
    side = math.isqrt(max(0, position[1] - prefix))
    return (side * embedding[2], embedding[2]) if side and side**2 + prefix == position[1] else None


def _count(tensors: Mapping[str, Tensor], stage: str) -> int:
    """How many blocks "STAGE.N." there are, counted by their numbers."""
    found = (re.match(rf"{stage}\.(\d+)\.", name) for name in tensors)
    return len({match[1] for match in found if match})


def _dimensions(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()
