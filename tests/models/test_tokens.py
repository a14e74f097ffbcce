"""Tokens of timm's Eva (DINOv3, EVA02, rotary ViTs) against timm's own forward, and methods on them."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from helpers import map_with_hidden
from torch import Tensor, nn

from sslkit.exporting import export
from sslkit.models.encoder import Encoder
from sslkit.models.tokens import tokens_of
from sslkit.models.weights import load_encoder, write_encoder
from sslkit.training.pretrain.config import pretrain_config
from sslkit.training.pretrain.pretrain import pretrain

ROTARY = {  # name → patch
    "vit_small_patch16_dinov3": 16,  # four registers, no added positions
    "eva02_tiny_patch14_224": 14,  # added positions too
    "vit_small_patch16_rope_mixed_ape_224": 16,  # an embedding for each block and head
}


@cache
def encoder(name: str) -> Encoder:
    """4 × 4 patches, all parameters random: fresh ones hide mistakes behind zeros and ones."""
    torch.manual_seed(0)
    made = Encoder(name, 4 * ROTARY[name]).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made


def images(name: str, rows: int = 4, columns: int = 4) -> Tensor:
    patch = ROTARY[name]
    return torch.rand(2, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(1))


class Keep(nn.Module):
    """What timm calls patch dropout, with chosen patches: timm itself then picks their rotations."""

    def __init__(self, keep: Tensor, prefix: int) -> None:
        super().__init__()
        self.keep, self.prefix = keep, prefix

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = x[:, self.prefix :].gather(1, self.keep[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, : self.prefix], patches], dim=1), self.keep


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_tokens_are_those_of_timm(name: str, grid: tuple[int, int]) -> None:
    made, batch = encoder(name), images(name, *grid)
    assert (made.family, made.stride) == ("vit", ROTARY[name])
    expected = made.model.forward_features(made.normalize(batch))
    torch.testing.assert_close(torch.cat(list(made.tokens(batch)), dim=1), expected, rtol=0, atol=1e-4)
    patches = expected[:, made.model.num_prefix_tokens :]
    torch.testing.assert_close(made.vector(batch), patches.mean(1), rtol=0, atol=1e-4)
    raster = made.maps(batch)[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(raster, patches, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ROTARY)
def test_kept_patches_take_their_rotations_along(name: str) -> None:
    made, batch = encoder(name), images(name)
    keep = torch.tensor([[15, 0, 7], [3, 12, 5]])
    found = torch.cat(list(made.tokens(batch, keep=keep)), dim=1)
    made.model.patch_drop = Keep(keep, made.model.num_prefix_tokens)
    try:
        expected = made.model.forward_features(made.normalize(batch))
    finally:
        made.model.patch_drop = None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # All of them in another order are the same tokens in that order; a lost rotation would change them.
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    whole, shuffled = made.tokens(batch), made.tokens(batch, keep=order)
    wanted = whole.patch.gather(1, order[..., None].expand(-1, -1, made.width))
    torch.testing.assert_close(shuffled.patch, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(shuffled.prefix, whole.prefix, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ROTARY)
def test_what_is_left_out_or_hidden_does_not_matter(name: str) -> None:
    made, batch, patch = encoder(name), images(name), ROTARY[name]
    other = batch.clone()
    other[:, :, patch : 2 * patch, patch : 2 * patch] = 0.0  # patch 5
    keep = torch.tensor([[0, 1, 15]] * 2)
    assert torch.equal(made.tokens(batch, keep=keep).patch, made.tokens(other, keep=keep).patch)
    mask, token = torch.zeros(2, 16, dtype=torch.bool), torch.ones(made.width)
    mask[:, 5] = True
    assert torch.equal(made.tokens(batch, mask, token).patch, made.tokens(other, mask, token).patch)
    assert not torch.allclose(made.tokens(batch).patch, made.tokens(other).patch)


@pytest.mark.parametrize("name", ROTARY)
def test_hidden_patches_enter_as_the_token(name: str) -> None:
    """Against timm's forward with the embedding of hidden patches replaced on the way."""
    made, batch = encoder(name), images(name)
    token = torch.randn(made.width, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    expected = map_with_hidden(made, batch, mask, token)
    torch.testing.assert_close(made.masked_map(batch, mask, token), expected, rtol=0, atol=1e-4)


def test_gradients_reach_everything_and_checkpointing_gives_the_same() -> None:
    torch.manual_seed(0)
    made = Encoder("eva02_tiny_patch14_224", 28)
    batch, token = torch.rand(2, 3, 28, 28), nn.Parameter(torch.zeros(192))
    mask = torch.tensor([[True, False, False, True]] * 2)

    def gradients() -> dict[str, Tensor]:
        made.zero_grad()
        token.grad = None
        made.tokens(batch, mask, token).patch.square().mean().backward()
        assert token.grad is not None
        found = {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}
        return {**found, "token": token.grad.clone()}

    plain = {name: gradient.clone() for name, gradient in gradients().items()}
    assert set(plain) == {name for name, _ in made.named_parameters()} | {"token"}
    assert float(plain["token"].abs().sum()) > 0
    made.checkpoint_activations_()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["mae", "simmim", "dino", "mfm"])
def test_methods_that_hide_patches_take_it(tmp_path: Path, method: str) -> None:
    settings = {
        "mae": ["method.decoder_depth=1"],
        "dino": ["method.outputs=64"],
    }
    flags = {"backbone": "eva02_tiny_patch14_224", "size": 56, "epochs": 1, "batch_size": 4, "workers": 0}
    flags |= {"device": "cpu", "precision": "float32", "out": tmp_path / "run"}
    run = pretrain(pretrain_config(["fractal:4"], method, settings=settings.get(method, []), flags=flags))
    made = load_encoder(run)
    assert made.family == "vit"
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"loss": NaN' not in lines
    assert '"loss": null' not in lines
    if method == "dino":
        assert export(run, tmp_path / "out").difference < 1e-5


def test_an_eva_without_chosen_pooling_opens_as_timm_has_it(tmp_path: Path) -> None:
    """Weights written before Eva counted as a ViT: config.json says the size and no pooling."""
    torch.manual_seed(0)
    name = "eva02_tiny_patch14_224"
    plain = timm.create_model(name, num_classes=0, img_size=28).eval()
    assert not isinstance(plain.fc_norm, nn.Identity)
    nn.init.normal_(plain.fc_norm.bias)
    made = Encoder(name, 28, fc_norm=None)
    made.model.load_state_dict(plain.state_dict())
    write_encoder(made, tmp_path, "model.safetensors", {})
    batch = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = plain(made.normalize(batch))
        found = load_encoder(tmp_path).vector(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_token_is_needed() -> None:
    made = encoder("eva02_tiny_patch14_224")
    with pytest.raises(ValueError, match="mask_token"):
        tokens_of(made.model, images("eva02_tiny_patch14_224"), torch.zeros(2, 16, dtype=torch.bool))
    assert math.isfinite(float(made.vector(images("eva02_tiny_patch14_224")).sum()))
