"""SimMIM against its card's numbers, the paper's formula written as loops, and what must not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import batch_of, unfreshened
from torch import Tensor, nn

from sslkit.augmentations.masking import hidden_count
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock, Info
from sslkit.methods.masked.simmim import SimMIM
from sslkit.models.encoder import Encoder
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, parameter_groups

CLOCK = Clock(step=0, steps=100, steps_per_epoch=10)
SWIN = "swin_tiny_patch4_window7_224"
BACKBONES = [("test_vit", 32, 4, 8), ("test_vit3", 32, 8, 8), (SWIN, 96, None, 16)]


def make(backbone: str = "test_vit", size: int = 32, patch: int | None = 4, **knobs: Any) -> SimMIM:
    torch.manual_seed(0)
    encoder = Encoder(backbone, size, patch_size=patch)
    return SimMIM(SimMIM.Config(**{"unit": 8, **knobs}), encoder, Info(count=16, size=size, native=size))


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def covered(method: SimMIM, count: int, size: int) -> Tensor:
    """bool [count, 3, size, size]: the hidden pixels of images 0 … count - 1, cell by cell."""
    mask, side = method.mask(size, torch.arange(count), CLOCK), method.patch
    pixels = torch.zeros(count, 3, size, size, dtype=torch.bool)
    for picture, row, column in mask.nonzero().tolist():
        pixels[picture, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = True
    return pixels


# ------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(
    ("size", "unit", "patch", "hidden", "units"),
    [
        (192, 32, 16, 22, 36),
        (224, 32, 16, 30, 49),
        (96, 16, 8, 22, 36),
        (32, 8, 4, 10, 16),
        (32, 4, 4, 39, 64),
    ],
)
def test_masks_are_squares_of_the_card_s_number(
    size: int, unit: int, patch: int, hidden: int, units: int
) -> None:
    assert hidden_count(units, 0.6) == hidden
    method = make(size=size, patch=patch, unit=unit)
    mask = method.mask(size, torch.arange(5), CLOCK)
    assert mask.shape == (5, size // patch, size // patch)
    times, side = unit // patch, size // unit
    for picture in mask:
        count = 0
        for row in range(side):
            for column in range(side):
                cells = picture[row * times : (row + 1) * times, column * times : (column + 1) * times]
                assert cells.all() or not cells.any()
                count += bool(cells.all())
        assert count == hidden
    assert len({tuple(picture.flatten().tolist()) for picture in mask}) == 5


def test_masks_depend_on_seed_epoch_and_image_alone() -> None:
    method, index = make(), torch.tensor([7, 3, 7, 900])
    first = method.mask(32, index, CLOCK)
    assert torch.equal(first[0], first[2])
    assert torch.equal(method.mask(32, index.flip(0), CLOCK.at(9)), first.flip(0))
    for other in (CLOCK.at(10), Clock(0, 100, 10, seed=1)):
        assert not torch.equal(method.mask(32, index, other), first)


def test_every_square_is_hidden_as_often() -> None:
    share = make().mask(32, torch.arange(4000), CLOCK).double().mean(0)
    torch.testing.assert_close(share, torch.full((8, 8), 10 / 16).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("size", "unit"), [(192, 32), (224, 32), (128, 32), (96, 16), (64, 16), (32, 8), (8, 2), (36, 4)]
)
def test_auto_unit_is_the_paper_s_or_a_quarter_of_a_small_image(size: int, unit: int) -> None:
    assert SimMIM.resolve(SimMIM.Config(), "vit", Info(100, size, size))["unit"][0] == unit


# ------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(("backbone", "size", "patch", "unit"), BACKBONES)
def test_forward_is_the_paper_s_formula(backbone: str, size: int, patch: int | None, unit: int) -> None:
    method = unfreshened(make(backbone, size, patch, unit=unit)).eval()
    pictures = random(2, 3, size, size)
    mask = method.mask(size, torch.arange(2), CLOCK)
    features = method.encoder.masked_map(pictures, mask, method.mask_token)
    stride, convolution = method.encoder.stride, method.head[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (pictures - mean[:, None, None]) / std[:, None, None]
    grid = torch.einsum("bdhw,kd->bhwk", features, convolution.weight[:, :, 0, 0]) + convolution.bias
    side = size // stride
    predicted = grid.reshape(2, side, side, 3, stride, stride).permute(0, 3, 1, 4, 2, 5).reshape(wanted.shape)
    pixels = covered(method, 2, size)
    expected = (predicted - wanted).abs()[pixels].mean()
    out = method(batch_of(pictures), CLOCK)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(out["embedding"], features.mean((2, 3)).detach())
    assert not out["embedding"].requires_grad


def test_a_zero_prediction_of_noise_costs_the_mean_of_a_half_normal() -> None:
    method = make()
    for parameter in method.head.parameters():
        nn.init.zeros_(parameter)
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = method(batch_of(method.encoder.denormalize(noise)), CLOCK)["loss"]
    assert loss.item() == pytest.approx(0.798, abs=0.01)


def test_pixel_shuffle_writes_channels_in_the_card_s_order() -> None:
    shuffled = make().head[1](torch.arange(48.0).reshape(1, 48, 1, 1))
    assert shuffled.shape == (1, 3, 4, 4)
    assert shuffled[0, 1].flatten().tolist() == list(range(16, 32))


@pytest.mark.parametrize(("backbone", "size", "patch", "unit"), BACKBONES)
def test_hidden_pixels_do_not_matter(backbone: str, size: int, patch: int | None, unit: int) -> None:
    method = unfreshened(make(backbone, size, patch, unit=unit)).eval()
    pictures, index = random(2, 3, size, size), torch.arange(2)
    mask, pixels = method.mask(size, index, CLOCK), covered(method, 2, size)

    def seen(images: Tensor) -> Any:
        return method.head(method.encoder.masked_map(images, mask, method.mask_token))

    plain = seen(pictures)
    assert plain.shape == pictures.shape
    assert torch.equal(seen(torch.where(pixels, 1 - pictures, pictures)), plain)
    assert not torch.equal(seen(torch.where(pixels, pictures, 1 - pictures)), plain)


# ------------------------------------------------------------------------- initialisation, weight decay


@pytest.mark.parametrize(("backbone", "size", "patch", "unit"), BACKBONES)
def test_the_gradient_reaches_every_weight(backbone: str, size: int, patch: int | None, unit: int) -> None:
    method = unfreshened(make(backbone, size, patch, unit=unit))
    method(batch_of(random(2, 3, size, size)), CLOCK)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        if size != 96 or "relative_position" not in name:  # 96 px leave whole stages in one window
            assert parameter.grad.abs().max() > 0, name


def test_no_weight_decay_for_vectors_positions_and_tokens() -> None:
    method = make()
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decays = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}  # type: ignore[attr-defined]
        for group in parameter_groups(method, 0.05, SimMIM.overrides)
    }
    assert {"mask_token", "encoder.model.cls_token", "encoder.model.pos_embed", "head.0.bias"} <= decays[0.0]
    assert {"head.0.weight", "encoder.model.patch_embed.proj.weight"} <= decays[0.05]
    assert decays[0.0] | decays[0.05] == set(names.values())


def test_initialisation_is_the_official_one() -> None:
    method = make("vit_tiny_patch16_224", 32, 4)
    for tensor in (method.mask_token, method.encoder.model.blocks[0].attn.qkv.weight):
        assert 0.015 < tensor.abs().max() <= 0.02 * (1 + 1e-6)
    swin = make(SWIN, 64, None, unit=16)
    torch.manual_seed(0)
    plain = Encoder(SWIN, 64).model.state_dict()
    for name, tensor in swin.encoder.model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name
    assert 0.03 < swin.mask_token.abs().max() < 0.1  # not truncated at a deviation


def test_autocast_leaves_the_loss_in_float32() -> None:
    method = unfreshened(make())
    exact = method(batch_of(random(4, 3, 32, 32)), CLOCK)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch_of(random(4, 3, 32, 32)), CLOCK)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("knobs", "message", "hint"),
    [
        ({"unit": 32}, "method.unit: 32 px at mask_ratio 0.6 hides all 1 of 32 px", "smaller squares"),
        (
            {"mask_ratio": 0.95},
            "method.unit: 8 px at mask_ratio 0.95 hides all 16 of 32 px",
            "smaller squares",
        ),
        (
            {"unit": 2},
            "method.unit: 2 must divide the image (32 px) and be a multiple of the patch (4 px)",
            "try -s method.unit=4",
        ),
        (
            {"unit": 12},
            "method.unit: 12 must divide the image (32 px) and be a multiple of the patch (4 px)",
            "try -s method.unit=8",
        ),
    ],
)
def test_squares_that_hide_all_or_do_not_fit_are_refused(
    knobs: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as error:
        make(**knobs)
    assert error.value.message == message
    assert hint in error.value.hint


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mambaout_femto"])
def test_backbones_without_patches_are_refused(backbone: str) -> None:
    with pytest.raises(UserError, match="simmim puts a mask token in place of patches, and"):
        make(backbone, 64, None)


# ---------------------------------------------------------------------------------- pictures and training


def test_panels_show_visible_squares_and_predictions_in_pixels() -> None:
    method = make().eval()
    pictures, pixels = random(3, 3, 32, 32), covered(method, 3, 32)
    wanted = method.encoder.normalize(pictures)
    method.head = Answer(wanted)  # type: ignore[assignment]
    panels = method.panels(batch_of(pictures))
    assert list(panels) == ["image", "visible", "prediction", "composite"]
    torch.testing.assert_close(panels["prediction"], pictures, rtol=0, atol=1e-5)
    assert torch.equal(panels["visible"], torch.where(pixels, 0.5, pictures))
    method.head = Answer(wanted * 0 - 9)  # type: ignore[assignment]
    panels = method.panels(batch_of(pictures))
    assert torch.equal(panels["composite"], torch.where(pixels, 0.0, pictures))
    assert all(0 <= panel.min() <= panel.max() <= 1 for panel in panels.values())


class Answer(nn.Module):
    """A head that knows what to say."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, features: Tensor) -> Tensor:
        return self.answer


def test_views_are_the_paper_s() -> None:
    crop = make().transform().views["image"]  # type: ignore[attr-defined]
    assert (crop.size, crop.scale, crop.flip) == (32, (0.67, 1.0), 0.5)
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))


def test_eight_images_are_learnt() -> None:
    """The smoke test: with the masks of one epoch, the hidden squares of a few fixed images are learnt."""
    method = make(patch=8)
    pictures = nn.functional.interpolate(random(8, 3, 8, 8), scale_factor=4, mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
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
        clip=5.0,
    )
    losses = [step.metrics["loss"].item() for step in done]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(("size", "unit"), [(224, 28), (84, 14), (56, 8)])
def test_squares_of_patches_of_14_pixels(size: int, unit: int) -> None:
    """Whole patches; at 56 px the patch is another one, of 8, as there would be 4 × 4 of its own."""
    found = SimMIM.resolve(SimMIM.Config(), "vit", Info(100, size, size, "eva02_tiny_patch14_224"))
    assert found["unit"][0] == unit
