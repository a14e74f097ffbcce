"""Batch norms that would see one value per channel: no spread, nothing to normalise by; torch refuses them.

It happens with one image at once where a network ends in maps of 1 × 1, or has a batch norm behind its
pooling. Which networks do so is best asked of the network itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sslkit.core.device import Precision, autocast
from sslkit.core.errors import UserError
from sslkit.methods.base import Batch, Clock

_TORCH_SAYS = "Expected more than 1 value per channel"


def fewest_at_once(batch: int, micro_batch: int, devices: int = 1) -> int:
    """Images that are in memory together in the smallest part of a step; `micro_batch` 0: the whole batch."""
    part = batch // devices
    memory = min(micro_batch or part, part)
    return min(memory, part % memory or memory)


def refuse_one_value(
    module: Any, batch: Batch, clock: Clock, device: torch.device, precision: Precision, cure: str
) -> None:
    """One forward pass of one image, as training makes it. What it changes is put back.

    Args:
        module: a method or a classifier.
        batch: of one image, on the device.

    Raises:
        UserError: a batch norm gets one value per channel.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        return
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    training = module.training
    module.train()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
            autocast(device, precision),
        ):
            module(batch, clock)
    except ValueError as problem:
        if not one_value(problem):
            raise
        raise UserError("one image at once leaves batch norm one value per channel", cure) from None
    finally:
        module.load_state_dict(state)
        module.train(training)


def one_value(problem: Exception) -> bool:
    """Whether torch says that."""
    return _TORCH_SAYS in str(problem)


def cure_of_one(batch: int, devices: int = 1) -> str:
    """What to type for two images at once."""
    if batch // devices == 1:
        return f"--batch-size {2 * devices} or more"
    return f"--micro-batch {0 if batch // devices % 2 else 2}"
