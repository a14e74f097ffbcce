"""Parameter groups, timm's AdamW and timm's cosine schedule, counted as the official code counts them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from sslkit.config import Optim


def learning_rate(base: float, batch_size: int, reference_batch: int) -> float:
    """The linear rule: `base` is meant for `reference_batch` images (MFM: 512, not the usual 256)."""
    return base * batch_size / reference_batch


def parameter_groups(
    module: nn.Module, weight_decay: float, overrides: Mapping[str, Mapping[str, float]]
) -> list[dict[str, object]]:
    """Parameters with equal options together, in the order of their first member.

    No weight decay for vectors and biases; then `overrides` (name pattern → options) has the last word.
    Parameters without gradient are left out.
    """
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias")
        options = {"weight_decay": 0.0 if plain else weight_decay}
        for pattern, wanted in overrides.items():
            if fnmatchcase(name, pattern):
                options |= wanted
        groups.setdefault(tuple(sorted(options.items())), []).append(parameter)
    return [{"params": members, **dict(options)} for options, members in groups.items()]


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name → learning-rate factor `decay^(layers after it)`.

    Layers as timm's own `group_matcher` counts them: for a ViT, 0 is the embedding, i + 1 block i (from 0),
    and `fc_norm` and head come last.
    """
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def build_optimizer(groups: list[dict[str, object]], optim: Optim, lr: float) -> torch.optim.Optimizer:
    """timm's AdamW over ready-made groups; a group's "lr_scale" becomes its own learning rate.

    The scale is folded into the rate here, because the official code keeps the minimum of the cosine at the
    same absolute number for every layer, where timm's scheduler would scale that too.
    """
    for group in groups:
        group["lr"] = lr * float(group.pop("lr_scale", 1.0))  # type: ignore[arg-type]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt="adamw", lr=lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps
    )
    return optimizer


class CosineSchedule:
    """Linear warm-up, then a cosine whose argument counts from step 0 (warm-up not excluded), as in MFM.

    With T steps of which W warm up:  t < W: w + t (b - w) / W;   t ≥ W: l + (b - l) (1 + cos(π t / T)) / 2,
    so the rate falls visibly at t = W. The official code steps the scheduler after the optimizer, so
    update k uses the rate of k - 1, and updates 0 and 1 both that of 0.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: int, warmup: int, warmup_lr: float, min_lr: float
    ) -> None:
        self._scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(steps, 2),
            lr_min=min_lr,
            warmup_t=warmup,
            warmup_lr_init=warmup_lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )

    def apply(self, step: int) -> None:
        """Set the learning rates of every group for update `step`."""
        self._scheduler.step_update(max(step - 1, 0))
