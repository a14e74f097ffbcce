"""Batch norm whose statistics are those of all processes, on any device."""

from __future__ import annotations

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError


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
