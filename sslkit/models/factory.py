"""A timm model by name: its arguments, and what is changed about it before it has weights."""

from __future__ import annotations

import re
from typing import Any, Literal

import timm
from timm.layers import DropPath
from timm.models import ResNet, is_model_in_modules
from torch import nn

from sslkit.core.errors import UserError, first_line, nearest

Stem = Literal["standard", "small"]
"""How a ResNet begins: as timm builds it, or for images up to 64 px."""

PLAIN_VIT_MODULES = {"vision_transformer", "vision_transformer_hybrid", "deit"}
"""timm's files whose models are `VisionTransformer`; a name that begins with vit_ may be another class."""

EVA_MODULES = {"eva"}
"""timm's file whose models are `Eva`: ViTs with rotary positions, such as DINOv3 and EVA02."""


def is_eva(name: str) -> bool:
    """Whether it is timm's `Eva`."""
    return bool(is_model_in_modules(name.split(".")[0], EVA_MODULES))


def is_vit(name: str) -> bool:
    """Whether it is a ViT whose patches can be hidden (`Encoder.tokens`), and that takes any size."""
    return bool(is_model_in_modules(name.split(".")[0], PLAIN_VIT_MODULES | EVA_MODULES))


def named_patch(name: str) -> int:
    """The side of a ViT's patches in the model's name, pixels; 0 where the name has none."""
    found = re.search(r"patch(\d+)", name)
    return int(found[1]) if found else 0


def token_width(name: str) -> int:
    """The width of a ViT's tokens, read from a model of one block: the name does not say it."""
    return int(create_model(name, num_classes=0, depth=1).num_features)


def native_size(name: str) -> int:
    """The side of the images that timm's entry of this name is made for, pixels; 224 if it doesn't say."""
    entry = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(entry.input_size[-1]) if entry is not None else 224


def native_sizes(name: str) -> set[int]:
    """The sides that timm's entry of this name was trained and tested at, pixels."""
    entry = timm.get_pretrained_cfg(name, allow_unregistered=True)
    tested = entry.test_input_size if entry is not None else None
    return {native_size(name), *([int(tested[-1])] if tested else [])}


def has_one_size(name: str) -> bool:
    """Whether a built model takes images of the size it was built for, and no other."""
    entry = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return not is_vit(name) and entry is not None and bool(entry.fixed_input_size)


def timm_arguments(
    name: str, size: int, patch_size: int | None, fc_norm: bool | None = False, heads: int | None = None
) -> dict[str, Any]:
    """The arguments, beside the name, that rebuild the same architecture in plain timm.

    fc_norm: see `Encoder`; None leaves pooling and last norm of an `Eva` as timm's entry has them.
    """
    arguments: dict[str, Any] = {}
    if is_vit(name):
        arguments |= {"img_size": size, "dynamic_img_size": True, **pooling_arguments(name, fc_norm)}
    elif has_one_size(name):
        arguments["img_size"] = size
    if patch_size is not None:
        arguments["patch_size"] = patch_size
    if heads is not None:
        arguments["num_heads"] = heads
    return arguments


def pooling_arguments(name: str, fc_norm: bool | None) -> dict[str, Any]:
    """What makes timm pool a ViT by the mean of its patch tokens, with the last norm after it or before."""
    if not is_eva(name):
        return {"global_pool": "avg", "fc_norm": bool(fc_norm), "pool_include_prefix": False}
    if fc_norm is None:
        return {}
    return {"global_pool": "avg", "use_fc_norm": fc_norm, "use_post_transformer_norm": not fc_norm}


def create_model(name: str, stem: Stem = "standard", **arguments: Any) -> Any:
    """`timm.create_model`; unknown names and impossible arguments give a UserError of one line."""
    if not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"unknown backbone {name!r}", nearest(name, timm.list_models()) + " (sslkit models lists all)"
        )
    if stem == "small" and "patch_size" in arguments:
        raise UserError(
            f"{name} with the small stem and patches of {arguments['patch_size']} px: stems are for ResNets, "
            "patches for ViTs",
            "-s model.stem=standard, or -b resnet18",
        )
    if "distilled" in name and is_vit(name):
        problem = f"{name} is read through a class and a distillation token, not through the mean of patches"
        raise UserError(problem, f"take {name.split('.')[0].replace('distilled_', '')}")
    try:
        model = timm.create_model(name, **arguments)
    except OSError as problem:
        raise UserError(
            f"the weights of {name} can't be fetched: {first_line(problem)}", "is there a network?"
        ) from problem
    except Exception as problem:  # hundreds of classes by as many authors: any kind may come
        sizes = ", ".join(
            f"{key} {value}" for key, value in arguments.items() if key in ("img_size", "patch_size")
        )
        raise UserError(
            f"backbone {name} can't be built{f' with {sizes}' if sizes else ''}: {first_line(problem)}",
            "try another --size" if sizes else "sslkit models lists others",
        ) from problem
    if stem == "small":
        shrink_stem_(model, name)
    return model


def without_drop_path_(model: nn.Module) -> None:
    """No stochastic depth, in place, whatever timm's entry has as its default."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def without_dropout_(model: nn.Module) -> None:
    """Neither stochastic depth nor dropout, in place: a forward pass in training mode draws nothing."""
    # In the modules, because a third of timm's models have no arguments for it.
    without_drop_path_(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(getattr(module, "drop_rate", None), float):  # GhostNet and SENet drop by a function
            setattr(module, "drop_rate", 0.0)  # noqa: B010


def shrink_stem_(model: Any, name: str) -> None:
    """The stem of a ResNet for images up to 64 px, in place: 3 × 3 with stride 1, and no pooling.

    That of SimCLR's experiments on CIFAR-10 (Chen et al. 2020, appendix B.9). The new convolution is drawn as
    timm draws those of a ResNet, and `feature_info` tells the new strides: 8 instead of 32 at the end.

    Raises:
        UserError: the model has no 7 × 7 convolution followed by a maximum pooling.
    """
    old: Any = getattr(model, "conv1", None)
    pool: Any = getattr(model, "maxpool", None)
    usual = isinstance(old, nn.Conv2d) and old.kernel_size == (7, 7) and isinstance(pool, nn.MaxPool2d)
    if not (isinstance(model, ResNet) and usual):
        raise UserError(
            f"{name} has no small stem: it is for ResNets that begin with a 7 × 7 convolution and a pooling",
            "-s model.stem=standard, or -b resnet18, resnet34 or resnet50",
        )
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for place, info in enumerate(model.feature_info):  # the first one lies before the pooling
        info["reduction"] //= old.stride[0] * (pool.stride if place else 1)
