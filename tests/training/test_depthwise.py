"""Depthwise convolutions with gradients of our own: equal to torch's in float64, and nothing else changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import Tensor, nn

from sslkit.models.encoder import Encoder
from sslkit.training.loop.depthwise import is_depthwise, take_fast_gradients_


def gradients(layer: nn.Module, x: Tensor, slope: Tensor, dtype: Any = torch.bfloat16) -> list[Tensor]:
    """Output, and gradients to the input and every parameter, for the same gradient of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = layer(x)
    output.backward(slope.to(output.dtype))
    return [output.detach(), x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("side", [(3, 3), (5, 5), (7, 7), (1, 7), (2, 2), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("kind", ["plain", "same", "wide", "far", "biased"])
def test_gradients_are_those_of_float64(side: tuple[int, int], stride: Any, kind: str) -> None:
    """Outputs are rounded to bfloat16 as torch's are; gradients to the weights are nearer than its own."""
    torch.manual_seed(0)
    padding: Any = (side[0] // 2, side[1] // 2)
    options: dict[str, Any] = {"bias": kind == "biased", "groups": 6, "stride": stride}
    if kind == "same":
        layer: nn.Module = Conv2dSame(6, 6, side, **options)
    else:  # "far": padded by more than the kernel's own side, where a turned kernel would not do
        padding = (side[0] + 1, side[1] + 1) if kind == "far" else padding
        layer = nn.Conv2d(6, 12 if kind == "wide" else 6, side, padding=padding, **options)
    x = torch.randn(2, 6, 13, 11).bfloat16().float()
    layer.weight.data = layer.weight.data.bfloat16().float()  # type: ignore[union-attr, operator]
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    slope = torch.randn(layer(x).shape).bfloat16().float()
    exact = gradients(copy.deepcopy(layer).double(), x.double(), slope.double(), torch.float64)
    stock = gradients(copy.deepcopy(layer), x, slope)
    assert take_fast_gradients_(layer) == 1
    ours = gradients(layer, x, slope)
    for number, (got, usual, expected) in enumerate(zip(ours, stock, exact, strict=True)):
        assert got.dtype == usual.dtype
        error, theirs = ((one.double() - expected).abs().max() for one in (got, usual))
        assert error <= 0.01 * expected.abs().max(), (number, float(error))
        if number >= 2:  # to weight and bias: float32 from bfloat16's numbers
            assert error <= max(theirs, 1e-4 * expected.abs().max()), (number, float(error), float(theirs))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), True),
        (nn.Conv2d(4, 8, 3, groups=4), True),
        (Conv2dSame(4, 4, 3, groups=4), True),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(4, 4, 3), False),
        (nn.Conv2d(1, 1, 3), False),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), False),
        (nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect"), False),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same"), False),
        (ScaledStdConv2d(4, 4, 3, groups=4), False),
        (nn.Conv1d(4, 4, 3, groups=4), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_only_plain_depthwise_layers_are_meant(module: nn.Module, expected: bool) -> None:
    assert is_depthwise(module) is expected


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_a_network_stays_what_it_is(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name, 64).eval()  # as batch norm's statistics would amplify rounding
    known = copy.deepcopy(encoder)
    kinds = [type(module) for module in encoder.modules()]
    assert take_fast_gradients_(encoder.model) > 10
    assert [type(module) for module in encoder.modules()] == kinds
    assert list(encoder.state_dict()) == list(known.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # evaluation: bit for bit, in both precisions
        assert torch.equal(encoder.vector(images), known.vector(images))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.vector(images), known.vector(images))
    for one in (encoder, known):
        one.vector(images).square().mean().backward()
    for ours, usual in zip(encoder.parameters(), known.parameters(), strict=True):  # float32: bit for bit
        assert torch.equal(ours.grad, usual.grad)  # type: ignore[arg-type]


def test_a_copy_has_layers_of_its_own() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False))
    take_fast_gradients_(layer)
    other = copy.deepcopy(layer)
    nn.init.zeros_(other[0].weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert other(torch.rand(1, 4, 5, 5)).abs().sum() == 0
        assert layer(torch.rand(1, 4, 5, 5)).abs().sum() > 0
