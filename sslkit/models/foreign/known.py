"""Weights that sslkit knows and does not open: whose they are, why not, and what timm has of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sslkit.core.errors import UserError


class Known(NamedTuple):
    """A layout that timm builds otherwise, or not at all."""

    name: str  # whose it is
    why: str  # what it has and a plain ViT lacks
    belongs: Callable[[Mapping[str, Tensor]], bool]
    timm: Mapping[int, str]  # width of the tokens → timm's model of it


def _named(pattern: str) -> Callable[[Mapping[str, Tensor]], bool]:
    """Whether one of the tensors' names matches somewhere."""
    search = re.compile(pattern).search
    return lambda tensors: any(search(name) for name in tensors)


SIZES = {384: "small", 768: "base", 1024: "large"}

KNOWN = (
    Known(
        "DINOv3's ViT",
        "rotary positions and registers",
        _named(r"^(backbone\.)?(storage_tokens|rope_embed\.periods)$"),
        {width: f"vit_{size}_patch16_dinov3" for width, size in SIZES.items()}
        | {1280: "vit_huge_plus_patch16_dinov3", 4096: "vit_7b_patch16_dinov3"},
    ),
    Known(
        "SimMIM's own ViT",
        "LayerScale and one shared relative position bias, and no timm model has both",
        _named(r"^encoder\.(rel_pos_bias\.relative_position_bias_table|blocks\.0\.gamma_1)$"),
        {},
    ),
    Known(
        "a ViT of BEiT's code (BEiT, BEiT v2, data2vec, CAE)",
        "LayerScale and relative position biases",
        _named(r"^(rel_pos_bias\.|blocks\.0\.attn\.)relative_position_bias_table$"),
        {width: f"beit_{size}_patch16_224" for width, size in SIZES.items() if width > 384},
    ),
    Known(
        "data2vec 2.0's ViT",
        "blocks and an encoder of images in fairseq's form, and timm has no model of it",
        _named(r"modality_encoders\.IMAGE\."),
        {},
    ),
    Known(
        "CLIP",
        "a text tower and another attention's names",
        _named(r"^(visual\.)?transformer\.resblocks\.0\."),
        {768: "vit_base_patch16_clip_224", 1024: "vit_large_patch14_clip_224"},
    ),
    Known(
        "torchvision's ViT",
        "its attention has other names, and timm has no file of it",
        _named(r"^encoder\.layers\.encoder_layer_0\."),
        {},
    ),
    Known(
        "a model of Hugging Face transformers",
        "its names are not timm's",
        _named(
            r"(^|\.)(embeddings\.(cls_token|class_embedding|patch_embeddings?\.)|embedder\.embedder\.|encoder\.layer\.\d+\.)"
        ),
        {},
    ),
)


def refuse_known(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights by the name of what they are. Names are without the wrappers of training.

    Raises:
        UserError: they are one of `KNOWN`; the hint names timm's model, where it has one.
    """
    found = next((known for known in KNOWN if known.belongs(tensors)), None)
    if found is None:
        return
    width = _width(tensors)
    name = found.timm.get(width, "") if width else next(iter(found.timm.values()), "")
    other = "a ViT or ResNet of sslkit models, whose weights fit exactly"
    raise UserError(
        f"{file} holds {found.name}, which is not opened: {found.why}",
        f"timm/{name} as SOURCE: timm's own file of it" if name else other,
    )


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Of a ViT's tokens, as its class token has it, or its patch embedding; 0 if neither is there."""
    for name, tensor in tensors.items():
        if re.search(r"(cls_token|class_embedding|patch_embed\.proj\.bias)$", name):
            return int(tensor.shape[-1])
    return 0


# model_type of a transformers config.json → timm's models by hidden_size
_DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_VIT = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
TRANSFORMERS: Mapping[str, Mapping[int, str]] = {
    "dinov2": {width: f"vit_{size}_patch14_dinov2" for width, size in _DINOV2.items()},
    "dinov2_with_registers": {width: f"vit_{size}_patch14_reg4_dinov2" for width, size in _DINOV2.items()},
    "dinov3_vit": KNOWN[0].timm,
    "vit": {width: f"vit_{size}_patch16_224" for width, size in _VIT.items()}
    | {1280: "vit_huge_patch14_224"},
    "vit_mae": {
        768: "vit_base_patch16_224.mae",
        1024: "vit_large_patch16_224.mae",
        1280: "vit_huge_patch14_224.mae",
    },
    "vit_msn": {},
    "deit": {width: f"deit_{size}_patch16_224" for width, size in _VIT.items() if width < 1024},
    "beit": KNOWN[2].timm,
    "ijepa": {1280: "vit_huge_patch14_gap_224.in1k_ijepa", 1408: "vit_giant_patch16_gap_224.in22k_ijepa"},
    "swin": {
        768: "swin_tiny_patch4_window7_224",
        1024: "swin_base_patch4_window7_224",
        1536: "swin_large_patch4_window7_224",
    },
    "swinv2": {768: "swinv2_tiny_window8_256", 1024: "swinv2_base_window8_256"},
    "convnext": {768: "convnext_tiny", 1024: "convnext_base", 1536: "convnext_large"},
    "convnextv2": {768: "convnextv2_tiny", 1024: "convnextv2_base", 1536: "convnextv2_large"},
    "resnet": {512: "resnet18", 2048: "resnet50"},
}


def refuse_transformers(folder: Path, config: Any) -> None:
    """Refuse a folder whose config.json is that of Hugging Face transformers, by its model type.

    Raises:
        UserError: it is; the hint names timm's model, where it has one.
    """
    if (
        not isinstance(config, Mapping)
        or "pretrained_cfg" in config
        or not isinstance(config.get("model_type"), str)
    ):
        return
    kind, widths = config["model_type"], config.get("hidden_sizes")
    width = widths[-1] if isinstance(widths, list) and widths else config.get("hidden_size")
    models = TRANSFORMERS.get(kind, {})
    name = models.get(width, "") if isinstance(width, int) else ""
    other = "a model of timm, as SOURCE timm/NAME (sslkit models lists names)"
    raise UserError(
        f"{folder} is a folder of Hugging Face transformers ({kind:.40}); sslkit reads timm's",
        f"timm/{name} as SOURCE: timm's own file of such weights" if name else other,
    )
