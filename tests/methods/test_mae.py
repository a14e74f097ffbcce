"""MAE against its card's numbers, the paper's formulas written as loops, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import batch_of, unfreshened
from torch import Tensor, nn

from sslkit.core.errors import UserError
from sslkit.losses.targets import patchify
from sslkit.methods.base import Clock, Info
from sslkit.methods.masked.mae import MAE, visible_count
from sslkit.models.encoder import Encoder
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, parameter_groups

CLOCK = Clock(step=0, steps=100, steps_per_epoch=10)
SMALL = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}
VITS = ["test_vit", "vit_little_patch16_reg4_gap_256", "deit3_small_patch16_224"]


def make(backbone: str = "test_vit", size: int = 32, patch: int | None = 8, **knobs: Any) -> MAE:
    torch.manual_seed(0)
    encoder = Encoder(backbone, size, patch_size=patch)
    return MAE(MAE.Config(**{**SMALL, **knobs}), encoder, Info(count=16, size=size, native=size))


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(("patches", "visible"), [(196, 49), (256, 64), (64, 16)])
def test_visible_counts(patches: int, visible: int) -> None:
    assert visible_count(patches, 0.75) == visible
    assert visible_count(64, 0.9) == 6  # rounded down


@pytest.mark.parametrize(("patch", "expected"), [(4, 0.979167), (16, 0.998698)])
def test_zero_prediction_costs_what_the_card_says(patch: int, expected: float) -> None:
    method = make(size=64, patch=patch)
    nn.init.zeros_(method.decoder.head.weight)
    assert method(batch_of(random(4, 3, 64, 64)), CLOCK)["loss"].item() == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------- loss


def test_masks_hide_all_patches_but_those_the_encoder_sees() -> None:
    method = make(size=64)
    seen: list[Tensor] = []
    tokens = method.encoder.tokens

    def spy(images: Tensor, keep: Tensor) -> Any:
        seen.append(keep)
        return tokens(images, keep=keep)

    method.encoder.tokens = spy  # type: ignore[assignment, method-assign]
    hidden = method.guess(random(6, 3, 64, 64), torch.arange(6), CLOCK).hidden
    assert hidden.sum(1).tolist() == [48] * 6
    for row, keep in zip(hidden, seen[0], strict=True):
        assert sorted(keep.tolist()) == (~row).nonzero().flatten().tolist()
    assert len({tuple(row.tolist()) for row in hidden}) == 6  # each image has its own


def test_masks_depend_on_seed_epoch_and_image_alone() -> None:
    method, pictures, index = make(), random(4, 3, 32, 32), torch.tensor([7, 3, 7, 900])

    def hidden(clock: Clock, order: list[int]) -> Tensor:
        return method.guess(pictures, index[order], clock).hidden

    first = hidden(CLOCK, [0, 1, 2, 3])
    assert torch.equal(first[0], first[2])
    assert torch.equal(hidden(CLOCK.at(9), [3, 2, 1, 0]), first.flip(0))
    for other in (CLOCK.at(10), Clock(0, 100, 10, seed=1)):
        assert not torch.equal(hidden(other, [0, 1, 2, 3]), first)


def test_every_patch_is_hidden_as_often() -> None:
    index = torch.arange(4000)
    method = make(size=32)
    method.encoder.tokens = lambda images, keep: (images[:, :0, 0], images.new_zeros(4000, 4, 64))  # type: ignore
    method.decoder.forward = lambda *given: None  # type: ignore[assignment, method-assign]
    hidden = method.guess(torch.zeros(4000, 1, 32, 32), index, CLOCK).hidden.double().mean(0)
    torch.testing.assert_close(hidden, torch.full((16,), 0.75).double(), rtol=0, atol=0.03)


def slow_decoder(method: MAE, image: Tensor, hidden: Tensor) -> Tensor:
    """[N, 3 P²] for one image, token by token: what is encoded or the mask token, and a position."""
    decoder, places = method.decoder, (~hidden).nonzero().flatten().tolist()
    tokens = method.encoder.tokens(image[None], keep=torch.tensor([places]))  # in raster order
    sequence = []
    for place in range(len(hidden)):
        token = decoder.embed(tokens.patch[0, places.index(place)]) if place in places else decoder.mask_token
        row, column = divmod(place, 4)
        waves = [(wave, at) for at in (column, row) for wave in (math.sin, math.cos)]
        position = [wave(at / 10000 ** (i / 8)) for wave, at in waves for i in range(8)]  # 4 · 8 = 32 wide
        sequence.append(token + torch.tensor(position))
    x = torch.cat([decoder.embed(tokens.prefix[0]), torch.stack(sequence)])[None]
    for block in decoder.blocks:
        x = block(x)
    pixels: Tensor = decoder.head(decoder.norm(x))[0, tokens.prefix.shape[1] :]
    return pixels


@pytest.mark.parametrize("backbone", VITS)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_forward_is_the_paper_s_formula(backbone: str, norm_pix: bool) -> None:
    method = unfreshened(make(backbone, norm_pix=norm_pix))
    pictures = random(3, 3, 32, 32)
    found = method.guess(pictures, torch.arange(3), CLOCK)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(())
    for number in range(3):
        slow = slow_decoder(method, pictures[number], found.hidden[number])
        torch.testing.assert_close(found.pixels[number], slow, rtol=0, atol=1e-4)
        for place in found.hidden[number].nonzero().flatten().tolist():
            row, column = divmod(place, 4)
            cell = pictures[number, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            wanted = ((cell.permute(1, 2, 0) - mean) / std).flatten()
            if norm_pix:
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            total = total + (slow[place] - wanted).square().mean()
    out = method(batch_of(pictures), CLOCK)
    assert out["loss"].item() == pytest.approx(total.item() / 36, rel=1e-4)
    torch.testing.assert_close(out["embedding"], found.visible.mean(1).detach())
    assert not out["embedding"].requires_grad
    assert not out["flat"].requires_grad


def test_hidden_pixels_never_reach_the_encoder() -> None:
    method = unfreshened(make())
    pictures, index = random(2, 3, 32, 32), torch.arange(2)
    before = method.guess(pictures, index, CLOCK)
    cover = before.hidden.reshape(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    after = method.guess(torch.where(cover, 1 - pictures, pictures), index, CLOCK)
    assert torch.equal(before.visible, after.visible)
    assert torch.equal(before.pixels, after.pixels)
    assert not torch.equal(before.visible, method.guess(1 - pictures, index, CLOCK).visible)


def test_flat_patches_are_counted() -> None:
    pictures = random(2, 3, 32, 32)
    pictures[0, :, :, :16] = 0.5 + 0.01 * pictures[0, :, :, :16]  # half of one of two images
    assert make()(batch_of(pictures), CLOCK)["flat"].item() == pytest.approx(0.25)


# ------------------------------------------------------------------------- initialisation, weight decay


@pytest.mark.parametrize("backbone", VITS)
def test_positions_are_fixed_sines_and_cosines_and_zero_for_the_prefix(backbone: str) -> None:
    model = make(backbone).encoder.model
    width, position = model.embed_dim, model.pos_embed
    assert not position.requires_grad
    prefix = position.shape[1] - 16
    assert prefix == (0 if model.no_embed_class else model.num_prefix_tokens)
    assert not position[:, :prefix].any()
    quarter = width // 4
    for row in range(4):
        for column in range(4):
            found = position[0, prefix + 4 * row + column]
            for part, (at, wave) in enumerate(
                [(column, math.sin), (column, math.cos), (row, math.sin), (row, math.cos)]
            ):
                expected = [wave(at / 10000 ** (i / quarter)) for i in range(quarter)]
                own = found[part * quarter : (part + 1) * quarter]
                torch.testing.assert_close(own, torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_vit_without_positions_is_refused() -> None:
    encoder = Encoder("test_vit", 32)
    encoder.model.pos_embed = None
    with pytest.raises(UserError, match="plain patch embedding with positions, which test_vit lacks"):
        MAE(MAE.Config(**SMALL), encoder, Info(count=16, size=32, native=32))


def test_matrices_are_xavier_uniform_and_tokens_normal() -> None:
    method = make("vit_tiny_patch16_224", 32, 4)
    checked = 0
    for name, parameter in method.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            out, inside = parameter.flatten(1).shape
            bound = math.sqrt(6 / (out + inside))
            assert 0.97 * bound < parameter.abs().max() <= bound, name
            checked += 1
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name
    assert checked == 1 + 12 * 4 + 2 + 2 * 4
    assert method.encoder.model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert 0.01 < method.decoder.mask_token.std() < 0.03


def test_no_weight_decay_for_vectors_and_tokens_and_no_update_of_positions() -> None:
    method = make()
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decays = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}  # type: ignore[attr-defined]
        for group in parameter_groups(method, 0.05, MAE.overrides)
    }
    assert {"encoder.model.cls_token", "decoder.mask_token", "decoder.norm.weight"} <= decays[0.0]
    assert {"decoder.embed.weight", "decoder.head.weight"} <= decays[0.05]
    assert decays[0.0] | decays[0.05] == set(names.values()) - {"encoder.model.pos_embed"}


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [("vit_base_patch16_224", 111_907_840), ("vit_large_patch16_224", 329_541_888)],
)
def test_number_of_weights_is_the_official_one(backbone: str, weights: int) -> None:
    """The official count takes in the decoder's fixed positions, a buffer here."""
    with torch.device("meta"):
        method = make(backbone, 224, None, decoder_width=512, decoder_depth=8, decoder_heads=16)
    assert sum(p.numel() for p in method.parameters()) + 197 * 512 == weights


@pytest.mark.parametrize("backbone", VITS)
def test_the_gradient_reaches_every_weight_but_the_positions(backbone: str) -> None:
    method = unfreshened(make(backbone))
    method(batch_of(random(4, 3, 32, 32)), CLOCK)["loss"].backward()
    for name, parameter in method.named_parameters():
        if name == "encoder.model.pos_embed":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_autocast_leaves_the_loss_in_float32() -> None:
    method = unfreshened(make())
    exact = method(batch_of(random(4, 3, 32, 32)), CLOCK)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch_of(random(4, 3, 32, 32)), CLOCK)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("backbone", "knobs", "message"),
    [
        ("test_resnet", {}, "mae drops tokens, and test_resnet has none"),
        ("test_vit", {"mask_ratio": 0.95}, "method.mask_ratio: 0.95 leaves nothing of 16 patches"),
        ("test_vit", {"mask_ratio": 0.0}, "method.mask_ratio: 0.0 leaves everything of 16 patches"),
        (
            "test_vit",
            {"decoder_width": 100, "decoder_heads": 3},
            "method.decoder_width: 100 is not a multiple of 12 (3 heads)",
        ),
    ],
)
def test_what_can_not_work_is_refused(backbone: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(backbone, 32, 8 if backbone == "test_vit" else None, **knobs)
    assert error.value.message == message


# ---------------------------------------------------------------------------------- pictures and training


@pytest.mark.parametrize("norm_pix", [True, False])
def test_panels_show_visible_patches_and_predictions_in_pixels(norm_pix: bool) -> None:
    method = make(norm_pix=norm_pix).eval()
    pictures = random(3, 3, 32, 32)
    hidden = method.guess(pictures, torch.arange(3), Clock(0, 1, 1)).hidden
    cover = hidden.reshape(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
    target = patchify(method.encoder.normalize(pictures), 8)
    if norm_pix:
        target = (target - target.mean(-1, True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    method.decoder.forward = lambda *given: target  # type: ignore[method-assign]
    panels = method.panels(batch_of(pictures))
    assert list(panels) == ["image", "visible", "prediction", "composite"]
    torch.testing.assert_close(panels["prediction"], pictures, rtol=0, atol=1e-5)
    torch.testing.assert_close(panels["composite"], pictures, rtol=0, atol=1e-5)
    assert torch.equal(panels["visible"], torch.where(cover, 0.5, pictures))
    method.decoder.forward = lambda *given: target * 0 - 9  # type: ignore[method-assign]
    panels = method.panels(batch_of(pictures))
    assert torch.equal(panels["composite"][~cover], pictures[~cover])
    assert all(0 <= panel.min() <= panel.max() <= 1 for panel in panels.values())
    assert not torch.equal(panels["composite"][cover], pictures[cover])


def test_pictures_of_another_size_are_predicted_too() -> None:
    method = make().eval()
    assert method.panels(batch_of(random(2, 3, 48, 48)))["composite"].shape == (2, 3, 48, 48)


def test_views_are_the_paper_s() -> None:
    crop = make().transform().views["image"]  # type: ignore[attr-defined]
    assert (crop.size, crop.scale, crop.flip) == (32, (0.2, 1.0), 0.5)


def test_eight_images_are_learnt() -> None:
    """The smoke test: with the masks of one epoch, the hidden patches of a few fixed images are learnt."""
    method = make()
    pictures = nn.functional.interpolate(random(8, 3, 8, 8), scale_factor=4, mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], lr=6e-3, betas=(0.9, 0.95)
    )
    steps = 100
    schedule = CosineSchedule(optimizer, steps, warmup=10, warmup_lr=0.0, min_lr=0.0)
    clock = Clock(0, steps, steps_per_epoch=steps)
    done = train(
        method,
        [batch_of(pictures)] * steps,
        optimizer,
        schedule,
        clock.rest(),
        device=torch.device("cpu"),
        clip=0.0,
    )
    losses = [step.metrics["loss"].item() for step in done]
    assert losses[-1] < 0.85 < losses[0]  # predicting the mean costs 0.99
