"""What the attention of a vision transformer looks at, read from timm's own modules by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder


@dataclass(frozen=True)
class AttentionMaps:
    """Of B images in a ViT of L blocks with H heads, h × w patches."""

    heads: (
        Tensor  # [B, H, h, w]: last block, from the class token, or the mean over patches where there is none
    )
    rollout: Tensor  # [B, h, w]: through all blocks
    distance: Tensor  # [L, H]: pixels, mean over images
    uniform: float  # the distance of a head that looks everywhere alike, pixels
    from_class_token: bool


def attention_refusal(encoder: Encoder) -> UserError | None:
    """Why there are no attention maps of this encoder, if there are none."""
    if encoder.family != "vit":
        return UserError(f"{encoder.name} has no attention from each patch to all", "pca shows its features")
    if not all(isinstance(getattr(block, "attn", None), Attention) for block in encoder.model.blocks):
        return UserError(f"the attention of {encoder.name} is not timm's usual one", "pca shows its features")
    return None


@contextmanager
def watch_attention(model: Any, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass gives see(block, attention [B, H, N, N]), rows summing to 1.

    The fused product keeps its weights to itself. Query and key leave `q_norm` and `k_norm` (which may do
    nothing), and softmax(scale · q kᵀ) in float32 is what the block computes with.
    """
    queries: dict[int, Tensor] = {}
    handles = []

    def watch(number: int, attention: Any) -> None:
        def keep_query(module: nn.Module, inputs: Any, query: Tensor) -> None:
            queries[number] = query

        def weigh(module: nn.Module, inputs: Any, key: Tensor) -> None:
            product = queries.pop(number).float() @ key.float().transpose(-2, -1)
            see(number, (attention.scale * product).softmax(-1))

        handles.append(attention.q_norm.register_forward_hook(keep_query))
        handles.append(attention.k_norm.register_forward_hook(weigh))

    for number, block in enumerate(model.blocks):
        watch(number, block.attn)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_maps(encoder: Encoder, images: Tensor) -> AttentionMaps:
    """One image after the other, so that one block's attention of one image is all that is held.

    images: float [B, 3, H, W] in [0, 1]. Raises UserError where `attention_refusal` has something to say.
    """
    if problem := attention_refusal(encoder):
        raise problem
    model, stride = encoder.model, encoder.stride
    grid = (images.shape[-2] // stride, images.shape[-1] // stride)
    between = patch_distances(*grid) * stride
    skip = model.num_prefix_tokens
    heads, rollouts, distances = [], [], []
    for image in images:
        seen = _Seen(between, skip, model.cls_token is not None)
        with torch.no_grad(), watch_attention(model, seen):
            encoder.vector(image[None])
        heads.append(seen.last.reshape(-1, *grid))
        rollouts.append(seen.looked_at(seen.rollout).reshape(grid))
        distances.append(torch.stack(seen.distances))
    return AttentionMaps(
        torch.stack(heads),
        torch.stack(rollouts),
        torch.stack(distances).mean(0),
        float(between.mean()),
        model.cls_token is not None,
    )


class _Seen:
    """Goes through the blocks of one image and keeps the sums."""

    def __init__(self, between: Tensor, skip: int, from_class_token: bool) -> None:
        self.between, self.skip, self.from_class_token = between, skip, from_class_token
        self.distances: list[Tensor] = []
        self.rollout = torch.eye(skip + len(between))
        self.last = torch.empty(0)

    def __call__(self, block: int, attention: Tensor) -> None:
        one = attention[0].cpu()  # [H, N, N]
        self.rollout = rolled(one, self.rollout)
        self.distances.append(mean_distance(one[:, self.skip :, self.skip :], self.between))
        self.last = self.looked_at(one)

    def looked_at(self, attention: Tensor) -> Tensor:
        """How much of each patch, [..., n], by the class token or by the mean patch."""
        to_patches = attention[..., self.skip :]
        return to_patches[..., 0, :] if self.from_class_token else to_patches[..., self.skip :, :].mean(-2)


def rolled(attention: Tensor, before: Tensor) -> Tensor:
    """One more block of the rollout (Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, 2020).

    attention: [H, N, N]. before: [N, N], of the blocks below, the identity at first. Mean over heads, half of
    it the residual connection; rows sum to 1.
    """
    mixed = 0.5 * attention.mean(0) + 0.5 * torch.eye(attention.shape[-1])
    return mixed @ before


def mean_distance(attention: Tensor, between: Tensor) -> Tensor:
    """How far a head looks, as in Dosovitskiy et al., ICLR 2021, figure 7: [H, n, n], [n, n] → [H].

    The distance between query and key patch, weighted with the attention among patches (its rows are made
    to sum to 1 again, as class and register tokens have no place), mean over queries.
    """
    among = attention / attention.sum(-1, keepdim=True)
    return (among * between).sum(-1).mean(-1)


def patch_distances(rows: int, columns: int) -> Tensor:
    """Between the centres of all patches, in patches: [rows · columns, rows · columns]."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.cdist(places, places).float()
