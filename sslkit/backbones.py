"""Encoder: any timm model behind three verbs, with images in [0, 1] going in.

The encoder owns the size rule, mean and standard deviation; nobody else normalises. What it holds is a
plain timm model with `num_classes=0`, so its state dict is what timm opens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, checkpoint_seq, is_model_in_modules
from torch import Tensor, nn

from sslkit.checking import refuse_huge
from sslkit.errors import UserError
from sslkit.timm_models import Stem, create_model, without_dropout_

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

VIT_MODULES = {"vision_transformer", "vision_transformer_hybrid", "deit"}
"""timm's files whose models are `VisionTransformer`; a name that begins with vit_ may be another class."""


class Tokens(NamedTuple):
    """What a vision transformer makes of an image, after its final norm."""

    prefix: Tensor  # [B, p, D]: class and register tokens
    patch: Tensor  # [B, n, D]: patch tokens in raster order, or those kept


class Encoder(nn.Module):
    """A timm backbone as a feature extractor.

    Args:
        name: any timm model name, e.g. `vit_small_patch16_224`, `resnet50`, `convnext_tiny`.
        size: side of the images it is meant for, pixels. Vision transformers take other sizes too
            (their position embedding is resampled).
        patch_size: for vision transformers, a patch other than the name's (small images).
        heads: for vision transformers, another number of attention heads than the name's; no shape tells it.
        fc_norm: for vision transformers, the last norm is that of the mean, as in a fine-tuned classifier;
            tokens and maps go through none.
        stem: for ResNets, "small" keeps the resolution of small images: `timm_models.shrink_stem_`.
        pretrained: load timm's published weights; the only network use.

    Vision transformers are pooled by the mean of their patch tokens (`global_pool="avg"`), normalised before
    it as masked-image methods are read; the class token takes part in attention.
    Mean and standard deviation are ImageNet's, except for published weights, which keep their own. They are
    buffers, so checkpoints hold them, and the exported config.json says them.

    No stochastic depth and no dropout, whatever timm's entry wants (Swin: 0.1): the official codes pre-train
    without, and torch's draws are not keyed by the image.

    Raises:
        UserError: unknown name, or a size or stem that the model can't take.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        patch_size: int | None = None,
        heads: int | None = None,
        fc_norm: bool = False,
        stem: Stem = "standard",
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        refuse_huge(name, size)
        self.name, self.size, self.stem = name, size, stem
        self.arguments = timm_arguments(name, size, patch_size, fc_norm, heads)
        self.model = create_model(name, stem, pretrained=pretrained, num_classes=0, **self.arguments)
        without_dropout_(self.model)
        published = self.model.pretrained_cfg if pretrained else {}
        self.register_buffer("mean", _per_channel(published.get("mean", IMAGENET_MEAN)))
        self.register_buffer("std", _per_channel(published.get("std", IMAGENET_STD)))
        self.family = family(self.model)
        if self.family == "cnn" and not breaks_channels_last(self.model):
            # A pixel's channels side by side: a ResNet-50 in bfloat16 on a CPU trains twice as fast.
            self.model.to(memory_format=torch.channels_last)
        self.width = int(self.model.num_features)
        self.stride = _stride(self.model)
        check_size(name, size, self.stride)

    mean: Tensor
    std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """Minus mean, by std, per channel; shape unchanged."""
        return (images - self.mean).div_(self.std)  # in place: one large tensor less

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`; not clamped."""
        return images * self.std + self.mean

    def checkpoint_activations_(self) -> None:
        """Keep only what enters a block, and compute its inside again in the backward pass; or UserError."""
        cure = "leave out model.checkpointing; run.micro_batch saves memory too"
        if any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in self.model.modules()):
            raise UserError(f"model.checkpointing: the batch norms of {self.name} would count twice", cure)
        try:
            self.model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError):
            raise UserError(f"model.checkpointing: timm's {self.name} has none", cure) from None

    def vector(self, images: Tensor) -> Tensor:
        """One vector per image: float [B, 3, H, W] in [0, 1] → [B, D].

        Exactly what plain timm gives for the exported model on normalised images: the mean of the patch
        tokens for a ViT, the pooled last map for a CNN.
        """
        vector: Tensor = self.model(self.normalize(images))
        return vector

    def maps(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps, each [B, C, h, w].

        Args:
            images: float [B, 3, H, W] in [0, 1].
            layers: timm's indices of intermediate layers (negative from the end); None gives the final
                map alone, after the model's last norm.
        """
        if layers is not None:
            maps: list[Tensor] = self.model.forward_intermediates(
                self.normalize(images), indices=list(layers), intermediates_only=True, output_fmt="NCHW"
            )
            return maps
        features = self.model.forward_features(self.normalize(images))
        return [self._as_map(features, images.shape[-2] // self.stride)]

    def _as_map(self, features: Tensor, rows: int) -> Tensor:
        """Whatever timm's `forward_features` returns → [B, C, h, w]."""
        if self.family == "vit":
            patch = features[:, self.model.num_prefix_tokens :]
            return patch.transpose(1, 2).reshape(len(patch), self.width, rows, -1)
        if features.ndim != 4:
            raise UserError(
                f"{self.name} gives no feature maps", "take a ViT, ResNet, ConvNeXt or Swin, e.g. resnet50"
            )
        return features.permute(0, 3, 1, 2) if self.family == "swin" else features

    def tokens(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tokens:
        """Prefix and patch tokens after the final norm; vision transformers only.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            mask: bool [B, n], True = hidden: the patch embedding is replaced by `mask_token` [D]
                before the position embedding is added (SimMIM, BEiT).
            keep: int64 [B, k]: only these patches enter the blocks (MAE).
        """
        if self.family != "vit":
            raise UserError(
                f"{self.name} has no tokens",
                "methods that hide patches need a ViT, e.g. vit_small_patch16_224",
            )
        model = self.model
        x = model.patch_embed(self.normalize(images))  # [B, h, w, D]: dynamic_img_size keeps the grid
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if mask is not None:
            if mask_token is None:
                raise ValueError("tokens: a mask needs a mask_token [D]")
            x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        prefix_position, patch_position = self._positions(grid)
        x = x + patch_position
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        prefix = [t.expand(len(x), -1, -1) for t in (model.cls_token, model.reg_token) if t is not None]
        if prefix:
            x = torch.cat([torch.cat(prefix, dim=1) + prefix_position, x], dim=1)
        x = model.norm_pre(x)
        x = model.norm(checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x))
        count = model.num_prefix_tokens
        return Tokens(x[:, :count], x[:, count:])

    def masked_map(self, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
        """The final map [B, C, h, w] where hidden patches enter as `mask_token`; ViT and Swin (SimMIM).

        Args:
            images: float [B, 3, H, W] in [0, 1].
            mask: bool [B, H / p, W / p], True = hidden, p the side of the first embedding's patches.
            mask_token: [D], of that embedding's width.
        """
        rows = images.shape[-2] // self.stride
        if self.family == "vit":
            tokens = self.tokens(images, mask.flatten(1), mask_token)
            return self._as_map(torch.cat(tokens, dim=1), rows)
        model = self.model
        x = model.patch_embed(self.normalize(images))  # [B, H / p, W / p, D]
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        return self._as_map(model.norm(model.layers(x)), rows)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position embeddings of prefix [1, p, D] (zeros if they have none) and patches [1, h·w, D]."""
        model = self.model
        count = 0 if model.no_embed_class else model.num_prefix_tokens
        position = resample_abs_pos_embed(
            model.pos_embed,
            new_size=list(grid),
            old_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=count,
        )
        prefix = position[:, :count] if count else position.new_zeros(1, 1, position.shape[-1])
        return prefix, position[:, count:]


def require_maps(encoder: Encoder) -> None:
    """Refuse a backbone whose final map is not one cell per `stride` pixels: nothing predicts from it.

    Raises:
        UserError: no map, or one of another shape.
    """
    # Shapes alone, on the meta device: a pass at 4096 px would take gigabytes. The weights are not copied.
    blanks = {id(one): one.to("meta") for one in (*encoder.parameters(), *encoder.buffers())}
    blank = copy.deepcopy(encoder, blanks).eval()
    with torch.no_grad():
        shape = blank.maps(blank.mean.new_zeros(1, 3, encoder.size, encoder.size))[0].shape
    side = encoder.size // encoder.stride
    if shape[1:] != (encoder.width, side, side):
        problem = f"{encoder.name} at {encoder.size} px gives a map of {tuple(shape[1:])}"
        raise UserError(
            f"{problem}, not {(encoder.width, side, side)}", "take a ViT, ResNet, ConvNeXt or Swin"
        )


def timm_arguments(
    name: str, size: int, patch_size: int | None, fc_norm: bool = False, heads: int | None = None
) -> dict[str, Any]:
    """The arguments, beside the name, that rebuild the same architecture in plain timm."""
    entry = timm.get_pretrained_cfg(name.split(".")[0], allow_unregistered=True)
    arguments: dict[str, Any] = {}
    if is_model_in_modules(name.split(".")[0], VIT_MODULES):
        arguments |= {"img_size": size, "dynamic_img_size": True}
        arguments |= {"global_pool": "avg", "fc_norm": fc_norm, "pool_include_prefix": False}
    elif entry is not None and entry.fixed_input_size:
        arguments["img_size"] = size
    if patch_size is not None:
        arguments["patch_size"] = patch_size
    if heads is not None:
        arguments["num_heads"] = heads
    return arguments


def family(model: nn.Module) -> str:
    """The layout of `forward_features`: "vit" [B, n, D], "swin" [B, h, w, D], "cnn" [B, D, h, w]."""
    if isinstance(model, VisionTransformer):
        return "vit"
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return "swin"
    return "cnn"


def breaks_channels_last(model: nn.Module) -> bool:
    """Whether training it on a CPU in float32 with channels last ends the process by a segmentation fault.

    oneDNN's gradient to the weights of a 1 × 1 convolution with a stride reads beyond its input where that
    has fewer than 16 channels (torch 2.14.1; seen with 3, 4, 8, 12 and 15, not with 16 and more): the first
    layers of FastViT, MobileOne and RepVGG.
    """
    return any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 16
        for module in model.modules()
    )


def _stride(model: Any) -> int:
    """Pixels of the image per step of the final map: the patch of a ViT, 32 for the usual CNN."""
    if isinstance(model, VisionTransformer):
        return int(model.patch_embed.feat_ratio())
    return int(model.feature_info[-1]["reduction"])


def _per_channel(values: Sequence[float]) -> Tensor:
    """Three numbers as [1, 3, 1, 1]."""
    return torch.tensor(values).view(1, 3, 1, 1)


def check_size(name: str, size: int, stride: int) -> None:
    """Refuse sizes that leave a remainder: pixels at the border would never be seen or predicted."""
    refuse_huge(name, size)
    if size < stride or size % stride:
        problem = f"{name} can't take images of {size} px: not a multiple of {stride}"
        raise UserError(problem, f"try --size {max(stride, round(size / stride) * stride)}")
