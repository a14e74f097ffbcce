"""What other projects call the same tensors: pure functions from their names to timm's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CONTAINERS = ("target_encoder", "state_dict_ema", "model_ema", "teacher", "state_dict", "model", "student")
"""Where a checkpoint keeps its weights; averages and teachers come before the networks that they follow."""

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DistributedDataParallel and torch.compile put before every name."""

_HEADS = re.compile(
    r"head\.(?!norm\.)|(head_dist|fc|classifier|projector|predictor|decoder)\.|decoder_"
    r"|(mask_token|masked_embed)$"
)
"""Parts that were trained beside the backbone, and no backbone has. (`head.norm` is ConvNeXt's own.)"""

CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""The parts of a torchvision ResNet by their number among its children, as `nn.Sequential(*children)` names
them: what lightly's tutorials train."""

MOCO_V3_HEADS = {384: 12}
"""Width → attention heads that differ from timm's: MoCo v3's ViT-S has 12, as its ViT-B (vits.py of
github.com/facebookresearch/moco-v3); timm's ViT-S has 6."""

_MODULES = ("teacher_backbone", "model", "net")
"""Attributes of a training module that hold the backbone, as lightly's DINO and people's own modules call it;
a teacher before what follows it."""

COMPUTED = re.compile(r"(relative_position_index|attn_mask)$")
"""Buffers that a model computes for itself."""


@dataclass(frozen=True)
class _Layout:
    """The backbone's tensors in timm's names, and what else there was."""

    name: str
    tensors: dict[str, Tensor]
    unused: dict[str, int]  # group of names → how many tensors
    heads: int = 0  # of a ViT's attention, where the layout says it; 0: as timm's model has them


def unwrapped(document: Any) -> tuple[str, dict[str, Tensor]]:
    """(container, tensors by name) of a checkpoint; no container ("") where it is the tensors themselves."""
    if not isinstance(document, Mapping):
        return "", {}
    for container in CONTAINERS:
        inside = document.get(container)
        if isinstance(inside, Mapping) and (found := _tensors(inside)):
            return container, found
    return "", _tensors(document)


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what training puts before them."""
    return {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}


def recognised(container: str, tensors: Mapping[str, Tensor], split_biases: bool = False) -> _Layout:
    """The backbone in timm's names. An unknown layout is taken for timm's own, and has to fit exactly.

    Args:
        split_biases: queries and values keep biases of their own, as timm's BEiT and EVA have them.
    """
    names = bare(tensors)
    layout, prefix = _layout(container, names)
    inside = {name.removeprefix(prefix): t for name, t in names.items() if name.startswith(prefix)}
    kept = {name: t for name, t in inside.items() if not _HEADS.match(name) and not COMPUTED.search(name)}
    outside = [name for name in names if not name.startswith(prefix)]
    outside += [name for name in inside if _HEADS.match(name)]
    shown = f"{layout}, from {container!r}" if container else layout
    width = kept["cls_token"].shape[-1] if "cls_token" in kept else 0
    heads = MOCO_V3_HEADS.get(width, 0) if layout == "MoCo v3" else 0
    named = kept if split_biases else _with_timm_names(_as_dinov2(_as_resnet(kept)))
    return _Layout(shown, named, _groups(outside), heads)


def _layout(container: str, names: Mapping[str, Tensor]) -> tuple[str, str]:
    """(whose layout, what the backbone's names begin with)."""
    begins = {name.split(".")[0] for name in names}
    if "encoder_q" in begins:
        return "MoCo", "encoder_q."
    if {"base_encoder", "momentum_encoder"} <= begins:
        return "MoCo v3", "base_encoder."
    if container == "target_encoder":
        return "I-JEPA", ""
    if {"masked_embed", "backbone.masked_embed"} & names.keys():
        return "iBOT", "backbone." if "backbone" in begins else ""
    if "register_tokens" in names or {"mask_token", "blocks.0.ls1.gamma"} <= names.keys():
        return "DINOv2", ""
    if "backbone" in begins:
        if any(re.match(r"backbone\.\d+\.", name) for name in names):
            return "a torchvision ResNet by numbers (lightly)", "backbone."
        return ("DINO" if container in ("teacher", "student") else "a backbone with a head"), "backbone."
    if any(name.startswith("decoder_") for name in begins):
        return "MAE", ""
    if module := next((name for name in _MODULES if name in begins), ""):
        return "a backbone in a training module", f"{module}."
    if "encoder" in begins:
        return ("SimMIM" if "encoder.mask_token" in names else "MFM"), "encoder."
    return ("torchvision" if "layer1" in begins else "timm"), ""


def _as_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet whose parts have numbers (`CHILDREN`), by their names; anything else as it is."""
    if "0.weight" not in tensors or not all(name.split(".")[0] in CHILDREN for name in tensors):
        return dict(tensors)
    parted = ((*name.partition("."), tensor) for name, tensor in tensors.items())
    return {f"{CHILDREN[part]}.{rest}": tensor for part, _, rest, tensor in parted}


def _as_dinov2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's registers and gated MLPs as timm names them; anything else as it is.

    timm's model with registers adds no position to the class token, so it is added here.
    """
    named = {re.sub(r"\.mlp\.w(12|3)\.", _gated, name): tensor for name, tensor in tensors.items()}
    if "register_tokens" in named and {"cls_token", "pos_embed"} <= named.keys():
        named["reg_token"], position = named.pop("register_tokens"), named["pos_embed"]
        named["cls_token"] = named["cls_token"] + position[:, :1]
        named["pos_embed"] = position[:, 1:]
    return named


def _gated(match: re.Match[str]) -> str:
    return ".mlp.fc1." if match[1] == "12" else ".mlp.fc2."


def _with_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries and values joined, Swin's reductions moved to the stage that they begin."""
    named: dict[str, Tensor] = {}
    official = any(name.startswith("layers.0.downsample.") for name in tensors)
    for name, tensor in tensors.items():
        if name.endswith("attn.q_bias"):  # keys have none: it would not change the softmax
            values = tensors.get(name.replace("q_bias", "v_bias"))
            if values is not None:
                joined = torch.cat([tensor, torch.zeros_like(tensor), values])
                named[name.replace("q_bias", "qkv.bias")] = joined
        elif not name.endswith("attn.v_bias"):
            moved = re.sub(r"^layers\.(\d+)\.downsample\.", _next_stage, name) if official else name
            named[moved] = tensor
        if name.endswith("running_mean"):  # files from before torch 0.4.1 do not count batches
            counter = name.replace("running_mean", "num_batches_tracked")
            named.setdefault(counter, tensors.get(counter, torch.zeros((), dtype=torch.int64)))
    return named


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _groups(names: Iterable[str]) -> dict[str, int]:
    """How many names begin with the same word, most first."""
    return dict(Counter(name.split(".")[0] for name in names).most_common())
