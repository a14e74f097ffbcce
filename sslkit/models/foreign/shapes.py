"""Which timm model a set of tensors is, where their shapes leave one answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import timm
from torch import Tensor

from sslkit.models.factory import Stem, named_patch, native_size

VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
"""(width, depth) → name. The number of heads has no shape: a layout may say it, else it is timm's."""

DINOV2 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
"""The same of DINOv2, whose blocks have a LayerScale."""

MEAN_ONLY = {**VITS, (1408, 40): "giant"}
"""The same of ViTs without a class token, such as I-JEPA's: timm calls them gap, for what pools them."""

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


def shape_of(tensors: Mapping[str, Tensor], backbone: str = "", heads: int = 0) -> Shape | None:
    """The model, of the name `backbone` if one is given; None where a name has to be given.

    heads: of a ViT's attention, where the layout has another number than timm's model of that name.
    """
    name = backbone or _vit(tensors) or _resnet(tensors)
    if not name:
        return None
    size, patch = grid_of(tensors) or (native_size(name), 0)
    stem = _dimensions(tensors, "conv1.weight")[2:] == (3, 3) and "layer1.0.conv1.weight" in tensors
    own = 0 if patch == named_patch(name) else patch
    return Shape(name, size, own, "small" if stem else "standard", heads)


def _vit(tensors: Mapping[str, Tensor]) -> str:
    """A ViT by width, depth and patch; "" if it is none of the usual ones."""
    embedding = _dimensions(tensors, "patch_embed.proj.weight")
    if not grid_of(tensors):
        return ""
    kind, patch = (embedding[0], _count(tensors, "blocks")), embedding[2]
    registers, scaled = _dimensions(tensors, "reg_token"), "blocks.0.ls1.gamma" in tensors
    if "cls_token" not in tensors:
        names = (f"vit_{MEAN_ONLY.get(kind)}_patch{patch}_gap_{side}" for side in (224, 448))
        return next((name for name in names if not registers and not scaled and timm.is_model(name)), "")
    if scaled and patch == 14 and kind in DINOV2 and registers[1:2] in ((), (4,)):
        return f"vit_{DINOV2[kind]}_patch14_{'reg4_' if registers else ''}dinov2"
    size = None if registers else VITS.get(kind)
    if size is None:
        return ""
    name = f"vit_{size}_patch{patch}_224"
    return name if timm.is_model(name) else f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


def _resnet(tensors: Mapping[str, Tensor]) -> str:
    """A ResNet by its numbers of blocks; "" if it is none of the usual ones."""
    wide = _dimensions(tensors, "layer1.0.conv1.weight")[:1] != (64,)
    if wide or not _dimensions(tensors, "conv1.weight"):
        return ""
    blocks = [_count(tensors, f"layer{stage}") for stage in range(1, 5)]
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    return RESNETS.get((*blocks, kind), "")  # type: ignore[arg-type]


def grid_of(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(side of the images, side of the patches) of a ViT with square patches on a square grid."""
    embedding, position = (_dimensions(tensors, name) for name in ("patch_embed.proj.weight", "pos_embed"))
    hybrid = embedding[1:2] != (3,)  # its patches are of a CNN's map
    if hybrid or len(embedding) != 4 or len(position) != 3 or embedding[2] != embedding[3]:
        return None
    for prefix in (int("cls_token" in tensors), 0):  # timm's models with registers have no position for it
        side = math.isqrt(max(0, position[1] - prefix))
        if side and side**2 + prefix == position[1]:
            return side * embedding[2], embedding[2]
    return None


def _count(tensors: Mapping[str, Tensor], stage: str) -> int:
    """How many blocks "STAGE.N." there are, counted by their numbers."""
    found = (re.match(rf"{stage}\.(\d+)\.", name) for name in tensors)
    return len({match[1] for match in found if match})


def _dimensions(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()
