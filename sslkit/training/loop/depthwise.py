"""Depthwise convolutions in bfloat16 on a CPU, with gradients that oneDNN computes quickly.

Its own ones for bfloat16 are slow: several times slower than float32's to the weights, and tens of times to
the input at stride 2. Here the gradient to the input at stride 1 is a forward convolution with the kernel
turned round, in bfloat16; all others are computed in float32, and those to the weights not rounded at all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]


def take_fast_gradients_(network: nn.Module) -> int:
    """Give every depthwise convolution in a network these gradients; returns how many there are.

    Only calls that train under bfloat16 autocast on a CPU are changed, all others go the usual way. Class,
    name, state and hooks of each layer stay what they are.
    """
    layers = [module for module in network.modules() if is_depthwise(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    return len(layers)


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a plain convolution, or timm's with TensorFlow's padding, of each channel by itself."""
    return bool(
        type(module) in (nn.Conv2d, Conv2dSame)
        and 1 < module.groups == module.in_channels  # type: ignore[operator]
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and (type(module) is Conv2dSame or not isinstance(module.padding, str))
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    """What the layer computes; which gradients follow is decided anew in each call."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not (half and torch.is_grad_enabled() and x.device.type == "cpu"):
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    padding = layer.padding
    if type(layer) is Conv2dSame:
        x, padding = pad_same(x, layer.kernel_size, layer.stride), (0, 0)
    found: Tensor = _Depthwise.apply(x.bfloat16(), layer.weight, layer.bias, layer.stride, padding)
    return found


class _Depthwise(torch.autograd.Function):
    """x bfloat16 [B, C, H, W], weight float32 [m · C, 1, h, w], bias float32 [m · C] or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return F.conv2d(
            x, rounded, None if bias is None else bias.to(x.dtype), stride, padding, groups=x.shape[1]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_input, to_weight = ctx.needs_input_grad[:2]
        slope = slope.contiguous(memory_format=torch.channels_last)
        around = tuple(side - 1 - pad for side, pad in zip(weight.shape[2:], ctx.padding, strict=True))
        found = None
        if to_input and ctx.stride == (1, 1) and len(weight) == x.shape[1] and min(around) >= 0:
            found = F.conv2d(slope, weight.flip(2, 3), None, 1, around, groups=x.shape[1])
            to_input = False
        own = None
        if to_input or to_weight:
            exact, own, _ = torch.ops.aten.convolution_backward(
                slope.float(),
                x.float(),
                weight.float(),
                None,
                ctx.stride,
                ctx.padding,
                (1, 1),
                False,
                (0, 0),
                x.shape[1],
                (to_input, to_weight, False),
            )
            found = exact.to(x.dtype) if to_input else found
        bias = slope.float().sum((0, 2, 3)) if ctx.biased and ctx.needs_input_grad[2] else None
        return found, own, bias, None, None
