"""All read-outs come from one pass, and are what the encoder's own methods give."""

from __future__ import annotations

import pytest
import torch
from helpers import unfreshened
from torch import nn

from sslkit.evaluation.probe.readout import available, read_out
from sslkit.models.encoder import Encoder


def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    return unfreshened(Encoder(name, 32)).eval()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "resnet10t", "test_convnext"])
def test_the_mean_is_the_encoders_vector(name: str) -> None:
    model, images = encoder(name), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = read_out(model, available(model))(images)
        assert torch.equal(found["mean"], model.vector(images))
        assert torch.equal(read_out(model, ["mean"])(images)["mean"], found["mean"])


def test_the_class_token_and_the_last_blocks_of_a_vit() -> None:
    """Against the tokens of the encoder's own pass, and its blocks seen by hooks."""
    model, images = encoder("vit_tiny_patch16_224"), torch.rand(2, 3, 32, 32)
    seen: list[torch.Tensor] = []
    blocks: nn.Sequential = model.model.blocks
    for block in list(blocks.children())[-4:]:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        tokens = model.tokens(images)
        expected = torch.cat([model.model.norm(output)[:, 1:].mean(1) for output in seen], 1)
        found = read_out(model, ["cls", "last4"])(images)
    assert set(found) == {"cls", "last4"}
    assert torch.allclose(found["cls"], tokens.prefix[:, 0], atol=1e-5)
    assert torch.allclose(found["last4"], expected, atol=1e-5)


def test_the_last_stages_of_a_cnn_are_pooled() -> None:
    model, images = encoder("resnet10t"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.maps(images, layers=[-4, -3, -2, -1])
        found = read_out(model, ["last4"])(images)["last4"]
    assert torch.allclose(found, torch.cat([map.mean((2, 3)) for map in maps], 1), atol=1e-5)


def test_only_a_vit_has_a_class_token() -> None:
    assert available(encoder("vit_tiny_patch16_224")) == ("mean", "cls", "last4")
    assert available(encoder("resnet10t")) == ("mean", "last4")
