"""The state of torch's random generators in a checkpoint: drop path and dropout draw from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_of(method: nn.Module) -> torch.device:
    """Where its weights are."""
    return next((tensor.device for tensor in method.state_dict().values()), torch.device("cpu"))


def states(device: torch.device) -> dict[str, Tensor]:
    """uint8, as "generator.cpu" and that of the device that trains. A run on the CPU opens no other one."""
    found = {"generator.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["generator.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["generator.mps"] = torch.mps.get_rng_state()
    return found


def restore_generators_(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `states` saved, and take it out of `tensors`, also that of a device no longer used."""
    saved = {name: tensors.pop(name) for name in list(tensors) if name.startswith("generator.")}
    torch.set_rng_state(saved["generator.cpu"])
    own = saved.get(f"generator.{device.type}")
    if own is not None and device.type == "cuda":
        torch.cuda.set_rng_state(own, device)
    elif own is not None and device.type == "mps":
        torch.mps.set_rng_state(own)
