"""Training in float16: losses are scaled up, so that small gradients do not become zero.

Micikevicius et al., ICLR 2018, arXiv 1710.03740. The scale is that of torch's `GradScaler`: it halves after
an update that overflowed, which is left out, and doubles after 2,000 without one. It stays on the device;
only a save reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslkit.core.distributed import collectives


def scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """What a run in this precision needs; only float16 needs anything."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None


def scaled(loss: Tensor, scaler: torch.amp.GradScaler | None) -> Tensor:
    """The loss to go backward from."""
    return loss if scaler is None else scaler.scale(loss)


def spared(finite: Tensor, loss: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Whether a step has no fault of its own: it was finite, or overflowed where a smaller scale is left.

    Args:
        finite: bool, of loss and gradients, the same in all processes.
        loss: of this process.
    """
    scale = scaler.scale(torch.ones_like(loss))
    return finite | (collectives.all_true(loss.isfinite()) & (scale > 1))


def state_of(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """What state.json of a checkpoint holds of it; waits for the device."""
    return {} if scaler is None else {"scaler": scaler.state_dict()}


def restore_(scaler: torch.amp.GradScaler | None, state: Mapping[str, Any]) -> None:
    """Take up the scale of a checkpoint, if it was one of float16."""
    if scaler is not None and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
