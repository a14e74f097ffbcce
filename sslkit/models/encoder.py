"""Encoder: any timm model as a function of images in [0, 1]: vectors, maps or tokens.

The encoder owns the size rule, mean and standard deviation; nobody else normalises. What it holds is a
plain timm model with `num_classes=0`, so its state dict is what timm opens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models import SwinTransformer, SwinTransformerV2
from torch import Tensor, nn

from sslkit.core.config.validate import refuse_huge
from sslkit.core.errors import UserError
from sslkit.core.value_range import BYTES
from sslkit.models.factory import Stem, create_model, is_vit, timm_arguments, without_dropout_
from sslkit.models.feature_maps import as_map, as_nchw, final_map
from sslkit.models.input_size import check_size, outline, outline_of_vit
from sslkit.models.tokens import Tokens, tokens_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A timm backbone as a feature extractor.

    Args:
        name: any timm model name, e.g. `vit_small_patch16_224`, `resnet50`, `convnext_tiny`.
        size: side of the images it is meant for, pixels. Vision transformers take other sizes too
            (their position embedding is resampled).
        patch_size: for vision transformers, a patch other than the name's (small images).
        heads: for vision transformers, a number of attention heads other than the name's; no shape shows it.
        fc_norm: for vision transformers, the last norm is that of the mean, as in a fine-tuned classifier;
            tokens and maps go through none. None: pooling and norm of an `Eva` are those of timm's entry, as
            its published weights need them.
        stem: for ResNets, "small" keeps the resolution of small images: `models.factory.shrink_stem_`.
        pretrained: load timm's published weights; the only network use.

    Vision transformers are pooled by the mean of their patch tokens (`global_pool="avg"`), normalised before
    it as masked-image methods are read; the class token takes part in attention.
    Mean and standard deviation are ImageNet's, except for published weights, which keep their own. They are
    buffers, so checkpoints hold them, and the exported config.json says them. It also says `range`, by which
    images of more than 8 bits were read: `sslkit.read_image(path, range=encoder.range)` reads another alike.

    No stochastic depth and no dropout, whatever timm's default is (Swin: 0.1): the official codes pre-train
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
        fc_norm: bool | None = False,
        stem: Stem = "standard",
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        fc_norm = None if pretrained else fc_norm
        refuse_huge(name, size)
        # A ViT takes any size; others are tried before anything is made.
        found = None if is_vit(name) else outline(name, size, patch_size, stem)
        self.name, self.size, self.stem = name, size, stem
        self.range = BYTES  # nothing is known of other images
        self.arguments = timm_arguments(name, size, patch_size, fc_norm, heads)
        self.model = create_model(name, stem, pretrained=pretrained, num_classes=0, **self.arguments)
        without_dropout_(self.model)
        published = self.model.pretrained_cfg if pretrained else {}
        self.register_buffer("mean", _per_channel(published.get("mean", IMAGENET_MEAN)))
        self.register_buffer("std", _per_channel(published.get("std", IMAGENET_STD)))
        found = found or outline_of_vit(self.model)
        self.family, self.width, self.stride = found.family, found.width, found.stride
        self.layout = found.layout
        check_size(name, size, self.stride)
        if self.family == "cnn" and not found.breaks_channels_last:
            # A pixel's channels side by side: a ResNet-50 in bfloat16 on a CPU trains twice as fast.
            lay_out_(self.model, torch.channels_last)

    mean: Tensor
    std: Tensor

    @property
    def map_shape(self) -> tuple[int, ...]:
        """(C, h, w) of `maps` at the encoder's size; () for a model without maps."""
        if self.family == "vit":
            return self.width, self.size // self.stride, self.size // self.stride
        return outline(self.name, self.size, self.arguments.get("patch_size"), self.stem).map

    @property
    def hides_patches(self) -> bool:
        """Whether `masked_map` works."""
        return self.family == "vit" or isinstance(self.model, SwinTransformer | SwinTransformerV2)

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std per channel; shape unchanged."""
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

        Exactly what plain timm gives for the exported model on normalised images, because it is timm's model
        that computes it: the mean of the patch tokens for a ViT, the pooled last map for a CNN.
        """
        vector: Tensor = self.model(self.normalize(images))
        return vector

    def maps(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps, each [B, C, h, w].

        Args:
            images: float [B, 3, H, W] in [0, 1].
            layers: timm's indices of intermediate layers (negative from the end); None gives the final
                map alone, after the model's last norm where that is one of maps.
        """
        if layers is not None:
            maps: list[Tensor] = self.model.forward_intermediates(
                self.normalize(images), indices=list(layers), intermediates_only=True, output_fmt="NCHW"
            )
            return maps
        return [final_map(self.model, self.normalize(images), self.layout)]

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
        return tokens_of(self.model, self.normalize(images), mask, mask_token, keep)

    def masked_map(self, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
        """The final map [B, C, h, w] where hidden patches enter as `mask_token`; ViT and Swin (SimMIM).

        Args:
            images: float [B, 3, H, W] in [0, 1].
            mask: bool [B, H / p, W / p], True = hidden, p the side of the first embedding's patches.
            mask_token: [D], of that embedding's width.
        """
        if self.family == "vit":
            grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
            return as_map(self.tokens(images, mask.flatten(1), mask_token).patch, grid)
        model = self.model
        x = model.patch_embed(self.normalize(images))  # [B, H / p, W / p, D]
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        return as_nchw(model.norm(model.layers(x)), "NHWC")


def require_maps(encoder: Encoder) -> None:
    """Refuse a backbone without a square map of square images, which methods predict from.

    Raises:
        UserError: no map, or one of another shape.
    """
    shape = encoder.map_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        instead = f" but {shape}" if shape else ""
        problem = f"{encoder.name} at {encoder.size} px gives no square map{instead}"
        raise UserError(problem, "take a ViT, ResNet, ConvNeXt or Swin, e.g. resnet50")


def lay_out_(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Set the layout of weights of four axes; `Module.to` fails at the five of a lambda network."""
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)


def _per_channel(values: Sequence[float]) -> Tensor:
    """Three numbers as [1, 3, 1, 1]."""
    return torch.tensor(values).view(1, 3, 1, 1)
