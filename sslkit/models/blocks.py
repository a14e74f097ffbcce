"""Parts that several methods are built of."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sslkit.core import rng
from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network) -> Network:
    """A copy that no gradient trains: a teacher, or the key encoder of a pair."""
    return copy.deepcopy(network).requires_grad_(False)


def momentum_update_(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """follower = momentum · follower + (1 - momentum) · leader, every parameter, without a host sync.

    Parameters only: the statistics of a batch norm come from the follower's own batches (MoCo, BYOL, DINO).
    Parameters are float32 under autocast too; an average in bfloat16 would stall.
    """
    average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
    average(list(follower.parameters()), list(leader.parameters()), 0)


def rising_momentum(start: float, step: int, steps: int) -> float:
    """1 - (1 - start) · (1 + cos(π step / steps)) / 2: from `start` to 1 by half a cosine (BYOL, DINO)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * step / steps)) / 2


def mlp(widths: Sequence[int], *, batch_norm: bool, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1]; after each but the last batch norm (if so), activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        # A batch norm brings its own shift: the layer's bias would do nothing.
        layers.append(nn.Linear(before, after, bias=not batch_norm))
        layers += [BatchNorm1d(after), activation()] if batch_norm else [activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class PixelDecoder(nn.Sequential):
    """MFM's and SimMIM's decoder, a 1 × 1 convolution and PixelShuffle: [B, D, h, w] → [B, 3, h · s, w · s].

    Channel order is (colour, row, column). The convolution keeps its name and its initialisation, but is
    computed as the matrix product that it is: on a CPU that takes 40 % of the time at D = 2048.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__(nn.Conv2d(width, 3 * stride**2, kernel_size=1), nn.PixelShuffle(stride))

    def forward(self, features: Tensor) -> Tensor:
        convolution: Any = self[0]
        shuffle: Any = self[1]
        batch, _, rows, columns = features.shape
        stride: int = shuffle.upscale_factor
        cells = F.linear(features.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
        pixels = cells.view(batch, rows, columns, 3, stride, stride).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(batch, 3, rows * stride, columns * stride)


class _Shared(nn.modules.batchnorm._BatchNorm):
    """Batch norm of [B, C, …] whose statistics are those of the batches of all processes, on any device.

    In one process it is torch's own. (torch's SyncBatchNorm does the same on CUDA only.)
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or collectives.world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            values = input.float()
            rest = [0, *range(2, values.ndim)]  # all but the channels
            count = values[:, 0].numel() * collectives.world_size()
            mean = collectives.all_reduce_sum(values.sum(rest)) / count
            centred = values - _channels(mean, values)
            variance = collectives.all_reduce_sum(centred.square().sum(rest)) / count
            self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
            normalised = centred * _channels((variance + self.eps).rsqrt(), values)
            if not self.affine:
                return normalised
            return normalised * _channels(self.weight, values) + _channels(self.bias, values)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class BatchNorm1d(_Shared, nn.BatchNorm1d):
    """Of [B, C], with the statistics of all processes."""


class BatchNorm2d(_Shared, nn.BatchNorm2d):
    """Of [B, C, H, W], with the statistics of all processes."""


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def share_statistics_(network: nn.Module, device: torch.device) -> None:
    """Batch norms of images take the statistics of all processes from here on; names of weights stay.

    On CUDA they become torch's SyncBatchNorm, by timm, which knows its own batch norms with an activation.

    Raises:
        UserError: on another device, for batch norms other than torch's plain one.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d
        elif isinstance(module, nn.BatchNorm2d) and not isinstance(module, BatchNorm2d):
            raise UserError(
                f"model.sync_norm: {type(module).__name__} can't share its statistics on {device.type}",
                "--set model.sync_norm=false, a ResNet, or CUDA",
            )


def shuffled(seed: int, epoch: int, index: Tensor, count: int, stream: str) -> Tensor:
    """0 … count - 1 in an order of its own for every image, int64 [B, count]; keyed as `core.rng.uniform`."""
    draws = index[:, None] * count + torch.arange(count, device=index.device)
    return rng.uniform(seed, epoch, draws, stream).argsort(dim=1, stable=True)


def repeat_mask(mask: Tensor, times: int) -> Tensor:
    """Every cell of a mask [B, h, w] as times × times cells: [B, times · h, times · w]."""
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)
