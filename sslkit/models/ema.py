"""Networks that follow another one slowly: momentum encoders, teachers, targets."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network) -> Network:
    """A copy that no gradient trains: a teacher, or the key encoder of a pair."""
    return copy.deepcopy(network).requires_grad_(False)


def momentum_update_(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """follower = momentum · follower + (1 - momentum) · leader, every parameter, without a host sync.

    Parameters only: the statistics of a batch norm come from the follower's own batches (MoCo, BYOL, DINO).
    timm's ModelEma would average or copy these too.
    Parameters are float32 under autocast too; an average in bfloat16 would stall.
    """
    average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
    average(list(follower.parameters()), list(leader.parameters()), 0)


def rising_momentum(start: float, step: int, steps: int) -> float:
    """1 - (1 - start) · (1 + cos(π step / steps)) / 2: from `start` to 1 by half a cosine (BYOL, DINO)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * step / steps)) / 2


def short_run_momentum(momentum: float, steps: int) -> float:
    """`momentum`, at most 1 - 5 / steps: a follower forgets its start within a fifth of a short run."""
    return min(float(momentum), max(0.0, 1 - 5 / steps))
