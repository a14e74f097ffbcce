"""First weights of a ViT, and of a ResNet's last norms: what official codes draw, in place.

In one file, because several methods and fine-tuning draw the same ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder


def initialize_vit_(model: Any, std: float = 0.02, bound: float = 0.02) -> None:
    """BEiT-style initialisation of the official code, in place.

    Linear and patch weights, position embedding and class token: normal with deviation `std`, truncated at
    ±`bound` (0.02, one deviation, in pre-training; 2, so never, in fine-tuning); biases zero. Then the output
    layers of block i (from 1) are divided by √(2i).
    """

    def fill_(weight: Tensor) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-bound, b=bound)

    for name, parameter in model.named_parameters():
        if name in ("cls_token", "pos_embed", "reg_token") or (
            parameter.ndim > 1 and name.endswith("weight")
        ):
            fill_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for depth, block in enumerate(model.blocks.children(), start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2 * depth))


def initialize_mae_vit_(encoder: Encoder) -> None:
    """MAE's: Xavier-uniform matrices, zero biases, tokens normal 0.02, fixed positions (of prefix tokens: 0).

    The size of the matrices follows the width, which that of `initialize_vit_` does not: at a ViT-Ti's width
    of 192 the deviation of a square one is 0.07 in place of 0.01. A hybrid's convolutions before the patches'
    projection keep timm's, and a model without an embedding of positions gets none.
    """
    model = encoder.model
    model.apply(initialize_linear_)
    nn.init.xavier_uniform_(model.patch_embed.proj.weight.flatten(1))
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if model.pos_embed is None:
        return
    position = sines_and_cosines(model.patch_embed.grid_size, model.pos_embed.shape[-1])
    with torch.no_grad():
        model.pos_embed.zero_()[:, -len(position) :] = position
    model.pos_embed.requires_grad_(False)


def fill_last_norms_(encoder: Encoder) -> None:
    """The last batch norm of each block of a ResNet begins at 1, in place, as torchvision has it.

    timm begins with 0 there, so that every block is the identity (Goyal et al., 2017), as the official codes
    of SimCLR and BYOL do; those of MoCo and DINO take torchvision's network as it is.
    """
    for block in encoder.model.modules():
        if isinstance(block, Bottleneck):
            nn.init.ones_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.ones_(block.bn2.weight)


def require_positions(encoder: Encoder) -> None:
    """Raises UserError: a ViT without a plain patch embedding, or without positions, added or rotary."""
    model = encoder.model
    nowhere = model.pos_embed is None and getattr(model, "rope", None) is None
    if not isinstance(model.patch_embed, PatchEmbed) or nowhere:
        problem = f"mae needs a plain patch embedding with positions, which {encoder.name} lacks"
        raise UserError(problem, "take a plain ViT, e.g. vit_small_patch16_224")


def initialize_linear_(module: nn.Module) -> None:
    """Xavier-uniform weight and zero bias of a linear layer; anything else stays."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sines_and_cosines(grid: tuple[int, int], width: int) -> Tensor:
    """The official fixed position embedding [h · w, width]: sin and cos of the column, then of the row."""
    row, column = build_sincos2d_pos_embed(list(grid), width, interleave_sin_cos=True).chunk(2, dim=1)
    return torch.cat([column, row], dim=1)
