"""Heads and decoders against written-out formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslkit.models.heads import PixelDecoder, Prototypes, TokenDecoder, mlp


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_decoder_is_its_convolution_and_pixel_shuffle(layout: torch.memory_format) -> None:
    decoder = PixelDecoder(5, 4)
    convolution, shuffle = decoder
    features = torch.randn(2, 5, 2, 3).to(memory_format=layout).requires_grad_()
    sources = [features, *decoder.parameters()]
    ours, expected = decoder(features), shuffle(convolution(features))
    torch.testing.assert_close(ours, expected)
    slope = torch.randn(2, 3, 8, 12)
    for got, wanted in zip(
        torch.autograd.grad(ours, sources, slope), torch.autograd.grad(expected, sources, slope), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    assert [*decoder.state_dict()] == ["0.weight", "0.bias"]


def test_mlp_has_norm_and_activation_between_its_layers() -> None:
    kinds = [type(layer).__name__ for layer in mlp([4, 5, 6, 7], batch_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [tuple(p.shape) for p in mlp([4, 5, 6], batch_norm=True).parameters()] == [
        (5, 4), (5,), (5,), (6, 5), (6,),
    ]  # fmt: skip
    plain = mlp([4, 5, 6], batch_norm=False, activation=nn.GELU)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "GELU", "Linear"]
    assert plain[0].bias is not None


def test_rows_have_length_one_and_logits_are_cosines() -> None:
    head = Prototypes([12, 32, 16], 64, batch_norm=False, norm_last_layer=True)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.direction.mul_(3)
        assert torch.allclose(head.rows().norm(dim=1), torch.ones(64))
        vectors = 100 * torch.rand(50, 12, generator=random)
        logits = head(vectors)
        points = head.mlp(vectors)
    expected = (points @ head.direction.T) / points.norm(dim=1)[:, None] / head.direction.norm(dim=1)
    torch.testing.assert_close(logits, expected)
    assert logits.abs().max() <= 1 + 1e-6
    free = Prototypes([12, 32, 16], 64, batch_norm=False, norm_last_layer=False)
    with torch.no_grad():
        free.length.mul_(2)
    assert torch.allclose(free.rows().norm(dim=1), torch.full((64,), 2.0))


def test_resting_rows_get_no_gradient() -> None:
    head = Prototypes([6, 5, 4], 8, batch_norm=True, norm_last_layer=False)
    head(torch.randn(3, 6), rest=True).sum().backward()
    assert (head.direction.grad, head.length.grad) == (None, None)
    assert all(parameter.grad is not None for parameter in head.mlp.parameters())


def test_a_decoder_puts_tokens_back_where_they_were() -> None:
    """Without blocks: each patch gets its own token, or the mask token, beside its position."""
    decoder = TokenDecoder(6, 8, 0, 2, (2, 2), 5)
    prefix, visible, order = torch.randn(1, 1, 6), torch.randn(1, 2, 6), torch.tensor([[2, 0, 3, 1]])
    found = decoder(prefix, visible, order.argsort(dim=1), (2, 2))
    embedded = {2: decoder.embed(visible[0, 0]), 0: decoder.embed(visible[0, 1])}
    for place in range(4):
        token = embedded.get(place, decoder.mask_token) + decoder.position[0, place]
        torch.testing.assert_close(found[0, place], decoder.head(decoder.norm(token)))
    assert decoder(prefix, visible, torch.arange(6)[None], (2, 3)).shape == (1, 6, 5)
