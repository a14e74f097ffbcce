"""Tokens of a vision transformer, timm's `VisionTransformer` or `Eva`, with patches hidden or left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import Eva, checkpoint_seq
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Tokens(NamedTuple):
    """What a vision transformer makes of an image, after its final norm."""

    prefix: Tensor  # [B, p, D]: class and register tokens
    patch: Tensor  # [B, n, D]: patch tokens in raster order, or those kept


def tokens_of(
    model: Any,
    images: Tensor,
    mask: Tensor | None = None,
    mask_token: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tokens:
    """Normalised images [B, 3, H, W] through a model built with `dynamic_img_size`; see `Encoder.tokens`."""
    x = model.patch_embed(images)  # [B, h, w, D]: dynamic_img_size keeps the grid
    grid = (x.shape[1], x.shape[2])
    x = x.flatten(1, 2)
    if mask is not None:
        if mask_token is None:
            raise ValueError("tokens: a mask needs a mask_token [D]")
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
    prefix_position, patch_position = _positions(model, grid)
    x = x + patch_position
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
    prefix = [t.expand(len(x), -1, -1) for t in (model.cls_token, model.reg_token) if t is not None]
    if prefix:
        x = torch.cat([torch.cat(prefix, dim=1) + prefix_position, x], dim=1)
    x = model.norm_pre(x)
    x = model.norm(_blocks_of_eva(model, x, grid, keep) if isinstance(model, Eva) else _blocks(model, x))
    count = model.num_prefix_tokens
    return Tokens(x[:, :count], x[:, count:])


def _blocks(model: Any, x: Tensor) -> Tensor:
    """[B, p + n, D] through all blocks."""
    found: Tensor = checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x)
    return found


def _blocks_of_eva(model: Any, x: Tensor, grid: tuple[int, int], keep: Tensor | None) -> Tensor:
    """The same with rotary positions, which enter each block: those of the patches that are left."""
    for block, rope in zip(model.blocks, _rotations(model, grid, keep), strict=True):
        if model.grad_checkpointing:
            x = checkpoint(block, x, rope=rope, use_reentrant=False)
        else:
            x = block(x, rope=rope)
    return x


def _rotations(model: Any, grid: tuple[int, int], keep: Tensor | None) -> list[Tensor | None]:
    """Each block's rotary embedding of the patches in raster order, or of those kept; None without one.

    timm gives one for all blocks, [n, D], or one a block and head, [L, H, n, D] ("mixed"). Where images keep
    different patches it needs a batch: [B, 1, k, D] and [B, H, k, D].
    """
    depth = len(model.blocks)
    if model.rope is None:
        return [None] * depth
    rope: Tensor = model.rope.get_embed(shape=list(grid))
    mixed = bool(model.rope_mixed)
    if keep is not None:
        rope = rope[..., keep, :]  # [B, k, D] or [L, H, B, k, D]
        rope = rope.transpose(1, 2) if mixed else rope[:, None]
    return list(rope) if mixed else [rope] * depth


def _positions(model: Any, grid: tuple[int, int]) -> tuple[Tensor | float, Tensor | float]:
    """Position embeddings of prefix [1, p, D] and patches [1, h · w, D]; 0 where there are none."""
    if model.pos_embed is None:
        return 0.0, 0.0
    count = 0 if model.no_embed_class else model.num_prefix_tokens
    position = resample_abs_pos_embed(
        model.pos_embed,
        new_size=list(grid),
        old_size=list(model.patch_embed.grid_size),
        num_prefix_tokens=count,
    )
    return (position[:, :count] if count else 0.0), position[:, count:]
