"""The final map of a timm model, whatever `forward_features` returns."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

MapLayout = Literal["tokens", "NHWC", "NCHW", "levels", "raw levels"]
"""Where the map is: in `forward_features`, as [B, p + h · w, D], [B, h, w, D] or [B, D, h, w]; or, where that
returns something else, in the last of timm's `forward_intermediates`, after the last norm or without it."""


def final_map(model: Any, images: Tensor, layout: MapLayout) -> Tensor:
    """Normalised images [B, 3, H, W] → [B, C, h, w], after the last norm where that is one of maps."""
    if layout in ("levels", "raw levels"):
        levels: list[Tensor] = model.forward_intermediates(
            images, indices=1, norm=layout == "levels", output_fmt="NCHW", intermediates_only=True
        )
        return levels[-1]
    features: Tensor = model.forward_features(images)
    if layout == "tokens":
        grid = model.patch_embed.dynamic_feat_size(images.shape[-2:])
        return as_map(features[:, model.num_prefix_tokens :], grid)
    return as_nchw(features, layout)


def as_nchw(features: Tensor, layout: MapLayout) -> Tensor:
    """[B, h, w, D] or [B, D, h, w], as the layout says → [B, D, h, w]."""
    return features.permute(0, 3, 1, 2) if layout == "NHWC" else features


def as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens in raster order: [B, h · w, D] → [B, D, h, w]."""
    batch, _, width = patches.shape
    return patches.transpose(1, 2).reshape(batch, width, *grid)
