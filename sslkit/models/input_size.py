"""What a timm model makes of images of some size, found by a forward pass without values.

timm does not say which sizes a model takes: windows, attention blocks, relative positions and valid
convolutions each have a rule of their own. So the model is tried, on torch's meta device, where tensors have
shapes and no values; where a module asks for a value, it is tried with weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sslkit.core.config.validate import refuse_huge
from sslkit.core.errors import UserError, first_line
from sslkit.models.factory import Stem, create_model, is_vit, native_size, native_sizes, timm_arguments
from sslkit.models.feature_maps import MapLayout, as_nchw, final_map

Family = Literal["vit", "swin", "cnn", "transformer"]
"""vit: tokens that can be hidden. swin: [B, h, w, D] from `forward_features`. cnn: [B, D, h, w]. transformer:
anything else, mostly [B, n, D], whose maps come from `forward_intermediates`."""

TRIED = 6
"""Sizes that are tried, nearest first, before the model's own is named."""


class Outline(NamedTuple):
    """What a model makes of one image of some size."""

    family: Family
    layout: MapLayout
    width: int  # of the vector
    stride: int  # pixels per step of the last map, as timm says
    map: tuple[int, ...]  # (C, h, w) of the final map; empty if there is none
    breaks_channels_last: bool = False
    grouped: bool = False  # with convolutions of groups of channels, or of each by itself


def outline(
    name: str,
    size: int,
    patch_size: int | None = None,
    stem: Stem = "standard",
) -> Outline:
    """What a model of this name makes of images of `size` × `size` px; arguments are those of `Encoder`.

    Raises:
        UserError: no such model, or it does not take them; the hint names a size that it takes.
    """
    refuse_huge(name, size)
    found = _tried(name, size, patch_size, stem)
    if isinstance(found, Outline):
        return found
    problem = f"{name} can't take images of {size} px"
    fits = nearest_size(name, size, patch_size, stem)
    if fits is None or fits == size:
        raise UserError(f"{name} does not run: {found}", "take another backbone, e.g. resnet50")
    why = f": {found}" if found.startswith("not a multiple") else ""
    raise UserError(problem + why, f"try --size {fits}")


def outline_of_vit(model: Any) -> Outline:
    """The same of a ViT (`is_vit`), which needs no trial: its map follows the images."""
    return Outline("vit", "tokens", int(model.num_features), _stride(model), ())


def takes(name: str, size: int, patch_size: int | None = None, stem: Stem = "standard") -> bool:
    """Whether a model of this name makes vectors of images of `size` × `size` px."""
    return isinstance(_tried(name, size, patch_size, stem), Outline)


def nearest_size(name: str, size: int, patch_size: int | None = None, stem: Stem = "standard") -> int | None:
    """The side nearest to `size` that the model takes, of the likely ones and its own; None if none is."""
    step = _stride(_blank(name, stem, timm_arguments(name, native_size(name), patch_size)))
    likely = {times * unit for unit in (step, 32) for times in range(1, 2 * size // unit + 2)}
    order = sorted(likely, key=lambda side: (abs(side - size), side))[:TRIED]
    return next((side for side in (*order, native_size(name)) if takes(name, side, patch_size, stem)), None)


def check_size(name: str, size: int, stride: int) -> None:
    """Refuse sizes that leave a remainder: pixels at the border would never be seen or predicted.

    The sizes that timm has for the name are taken as they are (299 px of an Inception, 240 of a CNN).
    """
    refuse_huge(name, size)
    if remainder := _remainder(name, size, stride):
        fits = max(stride, round(size / stride) * stride)
        raise UserError(f"{name} can't take images of {size} px: {remainder}", f"try --size {fits}")


def _remainder(name: str, size: int, stride: int) -> str:
    if size >= stride and (size % stride == 0 or size in native_sizes(name)):
        return ""
    return f"not a multiple of {stride}"


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


@cache
def _tried(name: str, size: int, patch_size: int | None, stem: Stem) -> Outline | str:
    """The outline, or why there is none."""
    arguments = timm_arguments(name, size, patch_size)
    try:
        model = _blank(name, stem, arguments)
    except UserError as problem:
        if size in native_sizes(name) and not patch_size:
            raise
        return str(problem)
    if remainder := _remainder(name, size, _stride(model)):
        return remainder
    try:
        try:
            return _look(model, size, is_vit(name))
        except Exception as problem:
            if not _asks_for_values(problem):
                raise
            return _look(_built(name, stem, arguments), size, is_vit(name))
    except Exception as problem:  # whatever hundreds of classes raise
        return first_line(problem)


def _blank(name: str, stem: Stem, arguments: dict[str, Any]) -> Any:
    """The model on the meta device, or with weights where its building asks for values."""
    try:
        with torch.device("meta"):
            model = _built(name, stem, arguments)
    except UserError as problem:
        if not _asks_for_values(problem):
            raise
        return _built(name, stem, arguments)
    # A recurrent layer is unrolled step by step where it has no values: a minute in place of a second.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return _built(name, stem, arguments) if recurrent else model


def _built(name: str, stem: Stem, arguments: dict[str, Any]) -> Any:
    """The model in evaluation mode; the random numbers that it draws are not missed afterwards."""
    with torch.random.fork_rng(devices=[]):
        return create_model(name, stem, num_classes=0, **arguments).eval()


def _asks_for_values(problem: Exception) -> bool:
    return "meta" in str(problem)


def _look(model: Any, size: int, vit: bool) -> Outline:
    """The outline of the model, from one black image."""
    images = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    with torch.no_grad():
        features = model.forward_features(images)
        vector = model.forward_head(features)
        if vector.ndim != 2:
            raise ValueError(f"its vectors have the shape {tuple(vector.shape)}")
        layout, shape = _map(model, images, features, vit)
    families: dict[MapLayout, Family] = {"tokens": "vit", "NHWC": "swin", "NCHW": "cnn"}
    family, breaks = families.get(layout, "transformer"), breaks_channels_last(model)
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    return Outline(family, layout, vector.shape[1], _stride(model), shape, breaks, grouped)


def _map(model: Any, images: Tensor, features: Any, vit: bool) -> tuple[MapLayout, tuple[int, ...]]:
    """Where the final map is, and its (C, h, w); () if there is none, which `require_maps` refuses."""
    if isinstance(features, Tensor) and features.ndim == 4:
        last: MapLayout = "NHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "NCHW"
        return last, tuple(as_nchw(features, last).shape[1:])
    layouts: tuple[MapLayout, ...] = ("tokens",) if vit else ("levels", "raw levels")
    for layout in layouts:
        try:
            return layout, tuple(final_map(model, images, layout).shape[1:])
        except Exception as problem:
            if _asks_for_values(problem):
                raise
    return layouts[0], ()


def _stride(model: Any) -> int:
    """Pixels of the image per step of the final map, as timm has it: the patch of a ViT, 32 for most CNNs."""
    levels = getattr(model, "feature_info", None)  # some classes have none in older timm
    return int(levels[-1]["reduction"]) if levels else 32
