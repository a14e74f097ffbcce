"""What other projects call the same tensors: pure functions from their names to timm's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "student")
"""Where a checkpoint keeps its weights, averages and teachers before what they follow."""

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DistributedDataParallel and torch.compile put before every name."""

HEADS = re.compile(
    r"head\.(?!norm\.)|(head_dist|fc|classifier|projector|predictor|decoder)\.|decoder_|mask_token$"
)
"""Parts that were trained beside the backbone, and no backbone has. (`head.norm` is ConvNeXt's own.)"""

COMPUTED = re.compile(r"(relative_position_index|attn_mask)$")
"""Buffers that a model computes for itself."""


@dataclass(frozen=True)
class Layout:
    """The backbone's tensors in timm's names, and what else there was."""

    name: str
    tensors: dict[str, Tensor]
    unused: dict[str, int]  # group of names → how many tensors


def unwrapped(document: Any) -> tuple[str, dict[str, Tensor]]:
    """(container, tensors by name) of a checkpoint; no container ("") where it is the tensors themselves."""
    if not isinstance(document, Mapping):
        return "", {}
    for container in CONTAINERS:
        inside = document.get(container)
        if isinstance(inside, Mapping) and (found := _tensors(inside)):
            return container, found
    return "", _tensors(document)


def recognised(container: str, tensors: Mapping[str, Tensor]) -> Layout:
    """The backbone in timm's names. What nobody knows is taken as timm's own, and has to fit exactly."""
    names = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    layout, prefix = _layout(container, names)
    inside = {name.removeprefix(prefix): t for name, t in names.items() if name.startswith(prefix)}
    kept = {name: t for name, t in inside.items() if not HEADS.match(name) and not COMPUTED.search(name)}
    outside = [name for name in names if not name.startswith(prefix)]
    outside += [name for name in inside if HEADS.match(name)]
    shown = f"{layout}, from {container!r}" if container else layout
    return Layout(shown, _with_timm_names(kept), _groups(outside))


def _layout(container: str, names: Mapping[str, Tensor]) -> tuple[str, str]:
    """(whose layout, what the backbone's names begin with)."""
    begins = {name.split(".")[0] for name in names}
    if "encoder_q" in begins:
        return "MoCo", "encoder_q."
    if {"base_encoder", "momentum_encoder"} <= begins:
        return "MoCo v3", "base_encoder."
    if "backbone" in begins:
        return ("DINO" if container in ("teacher", "student") else "a backbone with a head"), "backbone."
    if any(name.startswith("decoder_") for name in begins):
        return "MAE", ""
    if "encoder" in begins:
        return ("SimMIM" if "encoder.mask_token" in names else "MFM"), "encoder."
    return ("torchvision" if "layer1" in begins else "timm"), ""


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
