"""Parameter groups, timm's optimizers and timm's cosine schedule, counted as the official codes count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.sections import Optim, Schedule
from sslkit.methods.base import Clock, Method


def learning_rate(base: float, batch_size: int, reference_batch: int) -> float:
    """The linear rule: `base` is meant for `reference_batch` images (MFM: 512, not the usual 256)."""
    return base * batch_size / reference_batch


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    overrides: Mapping[str, Mapping[str, float]],
    decay_norms: bool = False,
) -> list[dict[str, object]]:
    """Parameters with equal options together, in the order of their first member.

    No weight decay for vectors and biases, unless `decay_norms`; then `overrides` (name pattern → options)
    has the last word. Parameters without gradient are left out.
    """
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = not decay_norms and (parameter.ndim <= 1 or name.endswith(".bias"))
        options = {"weight_decay": 0.0 if plain else weight_decay}
        for pattern, wanted in overrides.items():
            if fnmatchcase(name, pattern):
                options |= wanted
        groups.setdefault(tuple(sorted(options.items())), []).append(parameter)
    return [{"params": members, **dict(options)} for options, members in groups.items()]


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name → learning-rate factor `decay^(layers after it)`.

    Layers as timm's own `group_matcher` counts them: for a ViT, 0 is the embedding, i + 1 block i (from 0),
    and `fc_norm` and head come last. (Of a Swin, 11 of 173 tensors are one layer from the official ones;
    another grouping would give a resumed run the moments of other tensors.)
    """
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def build_optimizer(
    groups: list[dict[str, object]], optim: Optim, lr: float, *, scale_later: bool = False
) -> torch.optim.Optimizer:
    """timm's AdamW, SGD or LARS over ready-made groups; a group's "lr_scale" becomes its own learning rate.

    The scale is folded into the rate here, because MFM's official code keeps the minimum of the cosine at the
    same absolute number for every layer; `scale_later` leaves it to timm's scheduler, which scales that too,
    as MAE's official code does. Momentum is the plain one, not Nesterov's. LARS adapts the rate of groups
    with weight decay only (You et al., 2017).
    """
    parameters = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    fused = {"fused": True} if _fusable(parameters) else {}
    for group in groups:
        group["lr"] = lr if scale_later else lr * float(group.pop("lr_scale", 1.0))  # type: ignore[arg-type]
    options: dict[str, dict[str, Any]] = {
        "adamw": {"opt": "adamw", "betas": optim.betas, "eps": optim.eps, **fused},
        "sgd": {"opt": "momentum", "momentum": optim.momentum, **fused},
        "lars": {"opt": "lars", "momentum": optim.momentum, "trust_coeff": optim.trust},
    }
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, lr=lr, weight_decay=optim.weight_decay, **options[optim.name]
    )
    if fused and optim.name == "sgd":
        optimizer.register_step_pre_hook(_begin_momentum_)
    return optimizer


def optimizer_and_schedule(
    groups: list[dict[str, object]],
    optim: Optim,
    schedule: Schedule,
    batch_size: int,
    clock: Clock,
    *,
    min_lr_by_layer: bool = False,
) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """What trains these parameter groups over the clock's steps, as the settings have it."""
    scale = learning_rate(1.0, batch_size, optim.reference_batch)
    optimizer = build_optimizer(groups, optim, optim.lr * scale, scale_later=min_lr_by_layer)
    warmup = min(round(schedule.warmup_epochs * clock.steps_per_epoch), clock.steps - 1)
    return optimizer, CosineSchedule(
        optimizer,
        clock.steps,
        warmup,
        schedule.warmup_lr * scale,
        schedule.min_lr * scale,
        optim.weight_decay_end,
        after_warmup=schedule.cosine_after_warmup,
    )


def pretraining(
    method: Method, config: PretrainConfig, clock: Clock
) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """`optimizer_and_schedule` of a method's parameters."""
    optim = config.optim
    groups = parameter_groups(method, optim.weight_decay, method.overrides, optim.decay_norms)
    return optimizer_and_schedule(groups, optim, config.schedule, config.run.batch_size, clock)


def _fusable(parameters: list[nn.Parameter]) -> bool:
    """Whether torch updates all of them in one pass over the memory: on a CPU half of the time or less."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _begin_momentum_(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Zeros as momentum of parameters with their first gradient, whose step comes out the same as without.

    torch's fused SGD takes it that all of a group begin together, and DINO's last layer rests for an epoch.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def match_memory_(optimizer: torch.optim.Optimizer) -> None:
    """Lay the state out as its parameters are: what a file gave back need not be, and a fused step on the
    CPU reads both in the order of memory without a look.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def clip_gradients_(parameters: list[nn.Parameter], limit: float, by: str = "all") -> Tensor:
    """Scale gradients down to a norm of `limit` (0: leave them); returns their norm before, a scalar.

    by: "all" measures all gradients as one vector; "tensor" each parameter's by itself (DINO).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit > 0 and by == "tensor" and norm.device.type == "cpu":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, limit)
    elif limit > 0 and by == "tensor":
        _clip_each_(gradients, limit)
    elif limit > 0 and (norm.device.type != "cpu" or norm > limit):
        # Only the CPU may look first, and saves a pass over all gradients; elsewhere the host would wait.
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class CosineSchedule:
    """Linear warm-up, then a cosine, in one of two forms. With T steps, W of them from w to the peak b:

        t < W:  w + t (b - w) / W         t ≥ W:  l + (b - l) (1 + cos(π s)) / 2

    `after_warmup` (MAE's lr_sched.py, DINO's cosine_scheduler, SimCLR's and BYOL's learning_schedule):
    s = (t - W) / (T - W), and update k has the rate of t = k. (DINO's warm-up is a linspace that holds its
    end, so it divides by W - 1; MoCo's rate changes once an epoch.)

    Else, as MFM and SimMIM: s = t / T, so the rate falls visibly at t = W. Their codes step the scheduler
    after the optimizer, so update k has the rate of t = k - 1, and updates 0 and 1 both that of 0.

    `weight_decay_end` takes every weight decay that is not 0 there by a cosine over all steps (DINO).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        warmup: int,
        warmup_lr: float,
        min_lr: float,
        weight_decay_end: float | None = None,
        *,
        after_warmup: bool = False,
    ) -> None:
        self._optimizer, self._weight_decay_end = optimizer, weight_decay_end
        self._after_warmup = after_warmup
        self._weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
        self._warmup_lr, self._min_lr = warmup_lr, min_lr
        self.plan(steps, warmup)

    def plan(self, steps: int, warmup: int) -> None:
        """Another number of steps, and of those that warm up, from the next `apply` on."""
        self._steps = steps
        self._scheduler = CosineLRScheduler(
            self._optimizer,
            t_initial=max(steps - warmup, 2) if self._after_warmup else max(steps, 2),
            lr_min=self._min_lr,
            warmup_t=warmup,
            warmup_lr_init=self._warmup_lr,
            warmup_prefix=self._after_warmup,
            t_in_epochs=False,
        )

    def apply(self, step: int) -> None:
        """Set learning rate and weight decay of every group for update `step`."""
        self._scheduler.step_update(step if self._after_warmup else max(step - 1, 0))
        if self._weight_decay_end is None:
            return
        share = (1 - math.cos(math.pi * step / self._steps)) / 2
        for group, start in zip(self._optimizer.param_groups, self._weight_decays, strict=True):
            if start > 0:
                group["weight_decay"] = start + (self._weight_decay_end - start) * share


def _clip_each_(gradients: list[Tensor], limit: float) -> None:
    """Every gradient by itself, as `clip_grad_norm_` would, which launches ten kernels for each.

    Those of one shape are scaled in one launch, by factors of that shape: a list of scalars would take one
    for each.
    """
    alike: dict[torch.Size, list[Tensor]] = {}
    for gradient in gradients:
        alike.setdefault(gradient.shape, []).append(gradient)
    norms = torch.stack(torch._foreach_norm([one for same in alike.values() for one in same]))
    scales = torch.split((limit / (norms + 1e-6)).clamp(max=1), [len(same) for same in alike.values()])
    for (shape, same), scale in zip(alike.items(), scales, strict=True):
        factors = scale.view(-1, *[1] * len(shape)).expand(len(same), *shape)
        if len(same) > 1:
            torch._foreach_mul_(same, list(factors.contiguous().unbind()))
        else:
            same[0].mul_(factors[0])


def update_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """One step of the optimizer, or none if `finite` says no: a bool on the weights' device.

    Returns False only where the host knows that there was none: on the CPU. Elsewhere it would have to wait
    for the device, and the optimizer gets the flag instead.
    """
    if finite.device.type != "cpu":
        _flagged_step(finite, optimizer)
        return True
    if finite:
        optimizer.step()
    return bool(finite)


def _flagged_step(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """torch's fused optimizers take such a flag from a gradient scaler, and then leave weights, momentum and
    count of steps as they are. For others (LARS) the gradients become zero: momentum and weight decay act
    once more, and nothing that is not finite reaches the state.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        _zero_unless_(finite, [p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        return
    optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def _zero_unless_(finite: Tensor, parameters: list[nn.Parameter]) -> None:
    """Replace all gradients by zeros on the device if `finite` says no; a product would keep the NaN."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.where(finite, 0.0)
