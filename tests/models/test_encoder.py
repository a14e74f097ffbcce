"""The encoder against timm by hand, and against slow loops over single patches."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from helpers import map_with_hidden
from torch import Tensor

from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder, require_maps

SWIN = "swin_tiny_patch4_window7_224"
VITS = [
    "test_vit",  # class token
    "test_vit2",
    "test_vit3",  # would pool its register too
    "vit_little_patch16_reg4_gap_256",  # registers without position, no class token
    "deit3_small_patch16_224",  # class token without position
    "deit_tiny_patch16_224",
]


@cache
def encoder(name: str, size: int = 64) -> Encoder:
    """An encoder whose every parameter is random: fresh ones hide mistakes behind zeros and ones."""
    torch.manual_seed(0)
    made = Encoder(name, size).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def normalized(batch: Tensor) -> Tensor:
    """ImageNet's mean and deviation, written out once more."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torch.stack([(batch[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


# ---------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("name", VITS)
def test_vector_of_a_vit_is_the_mean_of_its_patch_tokens(name: str) -> None:
    made, batch = encoder(name), images(2, 3, 64, 64)
    tokens = made.model.forward_features(normalized(batch))
    patches = tokens[:, tokens.shape[1] - 16 :]
    torch.testing.assert_close(made.vector(batch), patches.mean(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"img_size": 64, "global_pool": "avg", "fc_norm": False}),
        ("test_resnet", {}),
        ("test_convnext", {}),
        (SWIN, {"img_size": 64}),
    ],
)
def test_vector_equals_plain_timm(name: str, arguments: dict[str, object]) -> None:
    made, batch = encoder(name), images(2, 3, 64, 64)
    plain = timm.create_model(name, num_classes=0, **arguments).eval()
    plain.load_state_dict(made.model.state_dict())
    with torch.no_grad():
        expected = plain(normalized(batch))
    assert expected.shape == (2, made.width)
    torch.testing.assert_close(made.vector(batch), expected, rtol=0, atol=1e-5)


def test_normalize_and_back() -> None:
    made, batch = encoder("test_resnet"), images(2, 3, 8, 8)
    torch.testing.assert_close(made.normalize(batch), normalized(batch))
    torch.testing.assert_close(made.denormalize(made.normalize(batch)), batch)


# ------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(
    ("name", "family", "stride"),
    [("test_vit", "vit", 16), ("test_resnet", "cnn", 32), ("test_convnext", "cnn", 32), (SWIN, "swin", 32)],
)
def test_final_map_has_the_layout_of_the_image(name: str, family: str, stride: int) -> None:
    height, width = (64, 64) if family == "swin" else (64, 128)  # Swin takes one size only
    made, batch = encoder(name), images(2, 3, height, width)
    assert (made.family, made.stride) == (family, stride)
    found = made.maps(batch)
    assert [tuple(m.shape) for m in found] == [(2, made.width, height // stride, width // stride)]
    features = made.model.forward_features(normalized(batch))
    for row in range(height // stride):
        for column in range(width // stride):
            expected = {
                "vit": lambda r, c: features[:, 1 + r * (width // stride) + c],
                "swin": lambda r, c: features[:, r, c],
                "cnn": lambda r, c: features[:, :, r, c],
            }[family](row, column)
            torch.testing.assert_close(found[0][:, :, row, column], expected)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", SWIN])
def test_maps_of_layers(name: str) -> None:
    made, batch = encoder(name), images(2, 3, 64, 64)
    found = made.maps(batch, layers=[0, -1])
    infos = [made.model.feature_info[i] for i in (0, -1)]
    expected = [(2, i["num_chs"], 64 // i["reduction"], 64 // i["reduction"]) for i in infos]
    assert [tuple(m.shape) for m in found] == expected


# ----------------------------------------------------------------------------------------------- tokens


def slow_tokens(made: Encoder, image: Tensor, hidden: set[int], token: Tensor, kept: list[int]) -> Tensor:
    """Tokens [1, p + k, D] of one image [3, H, W]: patch by patch, in plain Python, at the built size."""
    model, side = made.model, made.stride
    pixels = normalized(image[None])[0]
    columns = image.shape[2] // side
    count = 0 if model.no_embed_class else model.num_prefix_tokens
    position = model.pos_embed[0]
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    sequence = []
    for place in kept:
        row, column = divmod(place, columns)
        patch = pixels[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        embedded = token if place in hidden else weight.flatten(1) @ patch.flatten() + bias
        sequence.append(embedded + position[count + place])
    prefix = [t[0, i] for t in (model.cls_token, model.reg_token) if t is not None for i in range(t.shape[1])]
    prefix = [t + position[i] if count else t for i, t in enumerate(prefix)]
    x = torch.stack(prefix + sequence)[None]
    return model.norm(model.blocks(model.norm_pre(x)))


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
def test_tokens_without_mask_are_forward_features(name: str, shape: tuple[int, int]) -> None:
    made, batch = encoder(name), images(2, 3, *shape)
    found = made.tokens(batch)
    assert found.prefix.shape[1] == made.model.num_prefix_tokens
    assert found.patch.shape[1] == shape[0] * shape[1] // 256
    expected = made.model.forward_features(normalized(batch))
    torch.testing.assert_close(torch.cat(list(found), dim=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "vit_little_patch16_reg4_gap_256", "deit3_small_patch16_224"])
def test_mask_and_keep_equal_a_slow_loop(name: str) -> None:
    made, batch = encoder(name), images(2, 3, 64, 64)
    token = torch.randn(made.width, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [0, 5, 15]] = True
    mask[1, [2, 3]] = True
    keep = torch.tensor([[15, 0, 7], [3, 4, 5]])
    everything = [list(range(16))] * 2
    cases = [(mask, None, everything), (None, keep, keep.tolist()), (mask, keep, keep.tolist())]
    for used_mask, used_keep, kept in cases:
        found = torch.cat(list(made.tokens(batch, used_mask, token, used_keep)), dim=1)
        for b in range(2):
            hidden = set() if used_mask is None else set(used_mask[b].nonzero().flatten().tolist())
            expected = slow_tokens(made, batch[b], hidden, token, kept[b])
            torch.testing.assert_close(found[b : b + 1], expected, rtol=0, atol=1e-4)


def test_hidden_pixels_do_not_matter() -> None:
    made, batch = encoder("test_vit"), images(1, 3, 64, 64)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 1
    other = batch.clone()
    other[:, :, 16:32, 16:32] = 0.0
    token = torch.ones(made.width)
    assert torch.equal(made.tokens(batch, mask, token).patch, made.tokens(other, mask, token).patch)
    assert not torch.equal(made.tokens(batch).patch, made.tokens(other).patch)


@pytest.mark.parametrize("name", ["test_vit", "deit3_small_patch16_224", SWIN, "swinv2_tiny_window8_256"])
def test_masked_map_is_the_map_with_the_token_for_hidden_patches(name: str) -> None:
    """Against timm's own forward, with the patch embedding of hidden cells replaced on the way."""
    made, batch = encoder(name), images(2, 3, 64, 64)
    side = made.model.feature_info[0]["reduction"]
    token = torch.randn(made.model.feature_info[0]["num_chs"], generator=torch.Generator().manual_seed(2))
    mask = images(2, 64 // side, 64 // side) < 0.5
    expected = map_with_hidden(made, batch, mask, token)
    found = made.masked_map(batch, mask, token)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, made.maps(batch)[0], atol=1e-2)
    torch.testing.assert_close(made.masked_map(batch, mask & False, token), made.maps(batch)[0])


def test_tokens_are_for_vits_and_a_mask_needs_its_token() -> None:
    with pytest.raises(UserError, match="test_resnet has no tokens"):
        encoder("test_resnet").tokens(images(1, 3, 64, 64))
    with pytest.raises(ValueError, match="mask_token"):
        encoder("test_vit").tokens(images(1, 3, 64, 64), mask=torch.zeros(1, 16, dtype=torch.bool))


# ---------------------------------------------------------------------------------------- names and sizes


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [("vit_tiny_patch16_224", 70, 64), ("test_resnet", 50, 64), ("test_vit", 8, 16), (SWIN, 72, 64)],
)
def test_sizes_with_a_remainder_are_refused_with_one_that_fits(name: str, size: int, fits: int) -> None:
    with pytest.raises(UserError, match=f"{name}.* {size}") as caught:
        Encoder(name, size)
    assert caught.value.code == 2
    if name != SWIN:  # timm itself speaks first there
        assert f"--size {fits}" in caught.value.hint


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown backbone 'vit_smal_patch16_224'") as caught:
        Encoder("vit_smal_patch16_224", 64)
    assert "'vit_small_patch16_224'" in caught.value.hint


def test_patch_size_of_a_vit() -> None:
    made = Encoder("test_vit", 32, patch_size=4).eval()
    assert made.stride == 4
    assert made.tokens(images(1, 3, 32, 32)).patch.shape == (1, 64, made.width)


def test_names_that_only_look_like_a_vit_are_built() -> None:
    made = encoder("vit_relpos_small_patch16_224")
    assert made.family == "transformer"
    assert made.vector(images(1, 3, 64, 64)).shape == (1, made.width)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", SWIN])
def test_maps_are_checked_without_computing_one(name: str) -> None:
    made = encoder(name, 224 if name == SWIN else 64)
    calls = []
    first = next(module for module in made.model.modules() if isinstance(module, torch.nn.Conv2d))
    handle = first.register_forward_hook(lambda module, inputs, output: calls.append(output.device.type))
    require_maps(made)
    handle.remove()
    assert calls == []


@pytest.mark.parametrize("shape", [(), (96, 2, 3)])
def test_a_backbone_without_a_square_map_is_refused(shape: tuple[int, ...]) -> None:
    class Other(Encoder):
        map_shape = shape  # type: ignore[assignment]

    with pytest.raises(UserError, match="test_resnet at 64 px gives no square map"):
        require_maps(Other("test_resnet", 64))
