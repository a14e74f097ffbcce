"""MFM against its paper and official code: numbers, literal formulas, and what must not matter."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from frequency_reference import (
    MEAN,
    STD,
    canonical,
    normalised,
    official_corrupt,
    official_loss,
    official_mask,
)
from helpers import batch_of, unfreshened
from torch import Tensor, nn

from sslkit.core.errors import UserError
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources.image_set import open_images
from sslkit.frequency import spectral_error
from sslkit.methods.base import Clock, Info
from sslkit.methods.frequency.mfm import MFM
from sslkit.models.encoder import Encoder
from sslkit.models.init import initialize_vit_
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, parameter_groups

CLOCK = Clock(step=0, steps=100, steps_per_epoch=10)
RADIUS = 4.0
REDUCTIONS = ("pooled", "per_sample", "balanced")


def make(
    backbone: str = "test_vit", size: int = 32, patch: int | None = 8, kind: type[MFM] = MFM, **knobs: Any
) -> Any:
    torch.manual_seed(0)
    encoder = Encoder(backbone, size, patch_size=patch)
    config = MFM.Config(**{"radius": RADIUS, "low_share": 0.5, **knobs})
    return kind(config, encoder, Info(count=16, size=size, native=size))


def images(count: int, size: int = 32) -> Tensor:
    """float64 [count, 3, size, size] in [0, 1]"""
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------------------- head


def test_head_writes_channels_in_the_order_colour_row_column() -> None:
    method = make(size=48, patch=16)
    convolution = method.head[0]
    assert convolution.weight.shape == (3 * 16 * 16, method.encoder.width, 1, 1)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.copy_(torch.randn(768))
        pixels = method.head(torch.zeros(1, method.encoder.width, 2, 3))
    assert pixels.shape == (1, 3, 32, 48)
    for colour in range(3):
        for row in range(16):
            for column in range(16):
                expected = convolution.bias[colour * 256 + row * 16 + column]
                assert (pixels[0, colour, row::16, column::16] == expected).all()


@pytest.mark.parametrize(
    ("backbone", "encoder", "head"),
    [
        # The card counts the official ViT, whose attention has no bias for keys; timm's has one.
        ("vit_small_patch16_224", 21_661_056 + 12 * 384, 295_680),
        ("vit_base_patch16_224", 85_789_440 + 12 * 768, 590_592),
        ("resnet50", 25_557_032 - 2048 * 1000 - 1000, 6_294_528),
    ],
)
def test_number_of_weights_is_the_official_one(backbone: str, encoder: int, head: int) -> None:
    with torch.device("meta"):
        method = make(backbone, 224, None)
    assert sum(p.numel() for p in method.encoder.parameters()) == encoder
    assert sum(p.numel() for p in method.head.parameters()) == head
    assert sum(p.numel() for p in method.parameters()) == encoder + head


# ------------------------------------------------------------------------- initialisation, weight decay


def test_initialisation_is_the_official_one() -> None:
    method = make()
    deviation = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))
    for name, parameter in method.encoder.model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            block = re.fullmatch(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.weight", name)
            shrink = math.sqrt(2 * (int(block[1]) + 1)) if block else 1.0
            bound = 0.02 / shrink
            assert 0.9 * bound < parameter.abs().max() <= bound * (1 + 1e-6), name
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(deviation / shrink, rel=0.06), name


def test_fine_tuning_does_not_truncate() -> None:
    model = make().encoder.model
    initialize_vit_(model, bound=2.0)
    weight = model.blocks[0].attn.qkv.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert weight.abs().max() > 0.05


def test_weights_as_mae_s_follow_the_width() -> None:
    method = make(initialization="mae")
    for name, parameter in method.encoder.model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            out, inside = parameter.flatten(1).shape
            bound = math.sqrt(6 / (out + inside))
            assert 0.95 * bound < parameter.abs().max() <= bound, name
    position = method.encoder.model.pos_embed
    assert not position.requires_grad
    assert position[0, -1].abs().max() <= 1  # sines and cosines


def test_head_keeps_torch_s_own_initialisation() -> None:
    method = make()
    bound = 1 / math.sqrt(method.encoder.width)  # kaiming_uniform with a = √5, fan-in D
    for parameter in method.head.parameters():
        assert 0.95 * bound < parameter.abs().max() <= bound


def test_other_backbones_keep_timm_s_initialisation() -> None:
    torch.manual_seed(0)
    plain = Encoder("test_resnet", 32).model.state_dict()
    for name, tensor in make("test_resnet", 32, None).encoder.model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_no_weight_decay_for_vectors_position_and_class_token() -> None:
    method = make()
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decays: dict[float, set[str]] = {}
    for group in parameter_groups(method, 0.05, MFM.overrides):
        decays[group["weight_decay"]] = {names[id(p)] for p in group["params"]}  # type: ignore
    assert set(decays) == {0.0, 0.05}
    assert decays[0.0] | decays[0.05] == set(names.values())
    block = "encoder.model.blocks.0."
    assert {name for name in decays[0.05] if name.startswith(block)} == {
        block + part + ".weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {name for name in decays[0.05] if ".blocks." not in name} == {
        "encoder.model.patch_embed.proj.weight",
        "head.0.weight",
    }
    assert {"encoder.model.pos_embed", "encoder.model.cls_token", "head.0.bias"} <= decays[0.0]


# ------------------------------------------------------------------------------------------------- loss


class Answer(MFM):
    """A network with a known answer: nothing, what it was shown, or the truth."""

    answer = "zero"
    truth: Tensor

    def predict(self, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        shown = self.encoder.normalize(corrupted)
        answers = {"zero": torch.zeros_like(shown), "echo": shown}
        prediction = self.encoder.normalize(self.truth) if self.answer == "truth" else answers[self.answer]
        return prediction, prediction


@pytest.mark.parametrize(
    ("answer", "low_input", "high_input"),
    [("zero", 0.02238078, 0.37989449), ("echo", 0.02238077, 0.88284159), ("truth", 1e-6, 1e-6)],
)
def test_known_answers_cost_what_the_card_says(answer: str, low_input: float, high_input: float) -> None:
    for share, expected in ((1.0, low_input), (0.0, high_input)):
        method = make(kind=Answer, radius=16.0, low_share=share).double()
        method.answer, method.truth = answer, canonical(224)
        loss = method(batch_of(canonical(224)), CLOCK)["loss"]
        assert loss.item() == pytest.approx(expected, abs=3e-8)


def test_the_loss_pools_over_the_bins_of_the_batch() -> None:
    method = make(kind=Answer, radius=16.0).double()
    draws = method.keep_low(torch.arange(100), CLOCK)
    index = torch.stack([draws.nonzero()[0, 0], (~draws).nonzero()[0, 0]])  # one low-pass, one high-pass
    pair = torch.cat([canonical(224), canonical(224).flip(2)])
    loss = method({"image": pair, "index": index}, CLOCK)["loss"]
    assert loss.item() == pytest.approx(0.02803106, abs=2e-8)


def by_hand(method: Any, pictures: Tensor, keep_low: Tensor) -> Tensor:
    """The network written out: filter, clamp, normalise, timm's model, one matrix product, one reshape."""
    model, convolution = method.encoder.model, method.head[0]
    shown = normalised(official_corrupt(pictures, keep_low, method.config.radius))
    tokens = model.forward_features(shown)[:, 1:]  # [B, n, D]
    patches = tokens @ convolution.weight[:, :, 0, 0].T + convolution.bias
    side, stride = pictures.shape[-1] // method.encoder.stride, method.encoder.stride
    grid = patches.reshape(len(pictures), side, side, 3, stride, stride)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(pictures.shape)


def exact_constants(method: Any) -> Any:
    """In float64, mean and deviation included."""
    method.double()
    method.encoder.mean, method.encoder.std = MEAN[None], STD[None]
    return method


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_forward_is_the_official_formula(gamma: float) -> None:
    method = exact_constants(unfreshened(make(gamma=gamma)))
    pictures = images(8)
    keep_low = method.keep_low(torch.arange(8), CLOCK)
    assert 0 < keep_low.sum() < 8
    expected = by_hand(method, pictures, keep_low)
    out = method(batch_of(pictures), CLOCK)
    target = normalised(pictures)
    loss = official_loss(expected, target, keep_low, RADIUS, gamma)
    assert out["loss"].item() == pytest.approx(loss.item(), rel=1e-10)
    for task, chosen in (("loss_high", keep_low), ("loss_low", ~keep_low)):
        own = official_loss(expected[chosen], target[chosen], keep_low[chosen], RADIUS, gamma)
        assert out[task].item() == pytest.approx(own.item(), rel=1e-10)
        assert not out[task].requires_grad
    features = method.encoder.model.forward_features(normalised(official_corrupt(pictures, keep_low, RADIUS)))
    torch.testing.assert_close(out["embedding"], features[:, 1:].mean(1).detach())
    assert not out["embedding"].requires_grad
    loss.backward()
    by_formula = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()
    out["loss"].backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, by_formula[name], rtol=1e-7, atol=1e-12)


def test_reductions_weigh_images_or_tasks() -> None:
    pictures = images(7)
    out = {name: make(reduction=name)(batch_of(pictures.float()), CLOCK) for name in REDUCTIONS}
    by_task = [out["pooled"]["loss_low"].item(), out["pooled"]["loss_high"].item()]
    highs = int(make().keep_low(torch.arange(7), CLOCK).sum())
    bins = int(official_mask(32, 32, RADIUS).sum())
    weights = {
        "pooled": [(7 - highs) * bins, highs * (1024 - bins)],
        "per_sample": [7 - highs, highs],
        "balanced": [1, 1],
    }
    for name, weight in weights.items():
        expected = np.average(by_task, weights=weight)
        assert out[name]["loss"].item() == pytest.approx(expected, rel=1e-5), name


def test_clamps_show_the_network_what_they_say() -> None:
    pictures, flags = images(4), torch.tensor([True, False, True, False])
    raw = official_corrupt(pictures, flags, RADIUS, clamp=False)
    half = raw + torch.tensor([0, 0.5, 0, 0.5]).double()[:, None, None, None]
    for clamp, expected in (("official", raw.clamp(0, 1)), ("none", raw), ("half", half.clamp(0, 1))):
        shown = make(clamp=clamp).task(pictures, torch.arange(4), CLOCK, flags).inputs
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-12)


class Tinted(MFM):
    """Adds something of one's own to the prediction."""

    tint: Tensor | float = 0.0

    def predict(self, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        prediction, features = super().predict(corrupted)
        return prediction + self.tint, features


@pytest.mark.parametrize("low_input", [True, False])
def test_kept_bins_of_the_prediction_are_free(low_input: bool) -> None:
    method = unfreshened(make(kind=Tinted, low_share=float(low_input))).double()
    pictures, noise = images(4), images(4).flip(0) * 9
    clean = method(batch_of(pictures), CLOCK)["loss"]
    flags = torch.full((4,), low_input)
    method.tint = official_corrupt(noise, flags, RADIUS, clamp=False)
    assert method(batch_of(pictures), CLOCK)["loss"].item() == pytest.approx(clean.item(), rel=1e-9)
    method.tint = official_corrupt(noise, ~flags, RADIUS, clamp=False)
    assert method(batch_of(pictures), CLOCK)["loss"] > 2 * clean


def test_removed_bins_never_reach_the_network() -> None:
    method = unfreshened(make(low_share=1.0)).double()
    smooth = images(2) * 0.2 + 0.4  # far from the clamp
    grain = official_corrupt(images(2).flip(0) * 0.3, torch.tensor([False, False]), RADIUS, clamp=False)
    seen = [method(batch_of(pictures), CLOCK)["embedding"] for pictures in (smooth, smooth + grain)]
    torch.testing.assert_close(*seen, rtol=0, atol=1e-12)
    seen = [method(batch_of(pictures), CLOCK)["embedding"] for pictures in (smooth, smooth * 0.9)]
    assert (seen[0] - seen[1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------- the baselines


@pytest.mark.parametrize("corruption", ["sr", "deblur", "denoise"])
def test_baselines_score_every_frequency(corruption: str) -> None:
    """The card's loss of a zero prediction, and in training the full complex FFT of the difference."""
    answer = make(kind=Answer, radius=16.0, corruption=corruption).double()
    metrics = answer(batch_of(canonical(224)), CLOCK)
    assert metrics["loss"].item() == pytest.approx(0.02803106, abs=3e-8)
    assert set(metrics) == {"loss", "embedding"}
    method = exact_constants(unfreshened(make(corruption=corruption)))
    pictures = images(4)
    prediction, _ = method.predict(method.task(pictures, torch.arange(4), CLOCK).inputs)
    difference = torch.fft.fft2(prediction - normalised(pictures), norm="ortho")
    expected = (difference.real**2 + difference.imag**2 + 1e-12).sqrt().mean()
    assert method(batch_of(pictures), CLOCK)["loss"].item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_whole_spectrum_as_target() -> None:
    """The paper's ablation: inputs stay as they are, the loss is the full complex FFT of the difference."""
    method = exact_constants(unfreshened(make(target="all")))
    pictures, index = images(4), torch.arange(4)
    drawn, usual = method.task(pictures, index, CLOCK), make().task(pictures, index, CLOCK)
    torch.testing.assert_close(drawn, usual, rtol=0, atol=0)  # what is shown, and how it is called
    prediction, _ = method.predict(usual.inputs)
    difference = torch.fft.fft2(prediction - normalised(pictures), norm="ortho")
    expected = (difference.real**2 + difference.imag**2 + 1e-12).sqrt().mean()
    metrics = method(batch_of(pictures), CLOCK)
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert set(metrics) == {"loss", "embedding"}


def test_super_resolution_is_bicubic_down_and_up() -> None:
    pictures = images(2)
    small = nn.functional.interpolate(pictures, scale_factor=1 / 4, mode="bicubic").clamp(0, 1)
    expected = nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
    shown = make(corruption="sr", factor=4).task(pictures, torch.arange(2), CLOCK).inputs
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-12)


def test_every_image_has_its_own_blur_of_a_size_in_the_paper_s_range() -> None:
    """The blur of an impulse tells its kernel's size: how many pixels it reaches."""
    impulse = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    impulse[..., 32, 32] = 1
    index = torch.arange(400)
    shown = make(size=64, corruption="deblur").task(impulse.expand(400, -1, -1, -1), index, CLOCK).inputs
    sizes = (shown[:, 0, 32] > 0).sum(1)
    counts = torch.bincount(sizes, minlength=22)
    assert counts[7:22:2].min() > 25  # 50 expected each, deviation 6.6
    assert counts.sum() == counts[7:22:2].sum() == 400
    assert shown[sizes == 7][0, 0, 32, 32].item() == pytest.approx(0.02383578, abs=1e-8)
    assert shown[sizes == 21][0, 0, 32, 32].item() == pytest.approx(0.00684234, abs=1e-8)


def test_noise_is_the_paper_s_and_belongs_to_the_image() -> None:
    method, pictures = make(corruption="denoise"), images(64) * 0 + 0.5
    index = torch.arange(64)
    shown = method.task(pictures, index, CLOCK).inputs
    assert (shown - pictures).std().item() == pytest.approx(75 / 255, rel=0.01)
    assert shown.min() < 0 < 1 < shown.max()
    alone = method.task(pictures[9:10], index[9:10], CLOCK).inputs
    assert torch.equal(alone, shown[9:10])
    assert not torch.equal(shown, method.task(pictures, index, CLOCK.at(10)).inputs)  # another epoch


# ------------------------------------------------------------------------------------------ the ablations


@pytest.mark.parametrize("shape", ["square", "rhombus", "gaussian", "butterworth"])
def test_other_masks_part_the_spectrum_as_their_names_say(shape: str) -> None:
    """Against a full complex FFT with the mask written down here, for inputs and for the loss."""
    offset = torch.arange(32, dtype=torch.float64) - 16
    row, column = offset.abs()[:, None], offset.abs()[None]
    squared = row**2 + column**2
    low = {
        "square": ((row < RADIUS) & (column < RADIUS)).double(),
        "rhombus": (row + column < RADIUS).double(),
        "gaussian": torch.exp(-squared / (2 * RADIUS**2)),
        "butterworth": 1 / (1 + (squared / RADIUS**2) ** 2),
    }[shape]
    pictures, flags = images(4), torch.tensor([True, False, True, False])
    kept = torch.fft.ifftshift(torch.where(flags[:, None, None], low, 1 - low), dim=(-2, -1))[:, None]
    method = unfreshened(make(mask=shape, clamp="none"))
    inputs, keep_low, cutoff = method.task(pictures, torch.arange(4), CLOCK, flags)
    expected = torch.fft.ifft2(torch.fft.fft2(pictures) * kept).real
    torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-6)
    score = torch.fft.fft2(pictures, norm="ortho").abs() * (1 - kept)
    error = spectral_error(torch.zeros_like(pictures), pictures, keep_low, cutoff)
    assert error.reduce().item() == pytest.approx((score.sum() / (3 * (1 - kept).sum())).item(), rel=1e-5)


def test_radii_are_drawn_within_the_range_and_belong_to_the_image() -> None:
    index, pictures = torch.arange(2000), torch.zeros(2000, 1, 32, 32)
    method = make(radius_range=(0.5, 2.0))
    radii = method.cutoff(pictures, index, CLOCK)
    assert 0.5 * RADIUS <= radii.min() < 0.51 * RADIUS
    assert 1.99 * RADIUS < radii.max() < 2 * RADIUS
    assert radii.mean().item() == pytest.approx(1.25 * RADIUS, rel=0.02)
    assert torch.equal(method.cutoff(pictures[7:8], index[7:8], CLOCK), radii[7:8])
    assert make().cutoff(pictures, index, CLOCK) == RADIUS  # a number: the fast way
    assert make(mask="gaussian", radius_range=(0.5, 2.0)).cutoff(pictures, index, CLOCK).shape == (
        2000,
        1,
        32,
        17,
    )


def test_an_adaptive_mask_keeps_each_image_s_strongest_bins() -> None:
    wave = torch.arange(32) * (2 * math.pi / 32)
    tones = [torch.cos(3 * wave)[None], torch.cos(11 * wave)[:, None]]
    pictures = torch.stack([0.5 + 0.3 * tone.expand(3, 32, 32) for tone in tones]) + 0.01 * images(2).float()
    method = make(mask="adaptive", strongest_share=3 / 1024, clamp="none")
    flags = torch.tensor([True, True])
    kept = method.task(pictures, torch.arange(2), CLOCK, flags).inputs
    left = method.task(pictures, torch.arange(2), CLOCK, ~flags).inputs
    assert kept.std((2, 3)).min() > 0.2
    assert left.std((2, 3)).max() < 0.01
    torch.testing.assert_close(kept + left, pictures)


@pytest.mark.parametrize(("share", "count", "lows"), [(0.5, 8, 4), (0.3, 64, 19), (0.0, 5, 0), (1.0, 5, 5)])
def test_stratified_flags_are_a_fixed_number(share: float, count: int, lows: int) -> None:
    method = make(low_share=share, stratified=True)
    for epoch in range(5):
        assert method.keep_low(torch.arange(count) + 100, Clock(epoch, 5, 1)).sum() == lows


def test_stratified_flags_fall_on_every_image_equally_often() -> None:
    method = make(low_share=0.25, stratified=True)
    drawn = torch.stack([method.keep_low(torch.arange(8), Clock(epoch, 2000, 1)) for epoch in range(2000)])
    assert (drawn.double().mean(0) - 0.25).abs().max() < 0.04  # four deviations


def test_the_teacher_sees_the_clean_image_and_follows_slowly() -> None:
    method = unfreshened(make(teacher_weight=0.5, teacher_momentum=0.9))
    batch = batch_of(images(4).float())
    metrics = method(batch, CLOCK)
    with torch.no_grad():
        plain = make().requires_grad_(False)
        plain.load_state_dict(method.state_dict(), strict=False)
        student = method.student_head(metrics["embedding"])
        teacher = method.teacher.maps(batch["image"])[0].mean((2, 3))
        cosine = (student * teacher).sum(1) / student.norm(dim=1) / teacher.norm(dim=1)
    assert metrics["loss_teacher"].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    expected = plain(batch, CLOCK)["loss"] + 0.5 * metrics["loss_teacher"]
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    metrics["loss"].backward()
    assert all(weight.grad is None for weight in method.teacher.parameters())
    assert all(weight.grad is not None for weight in method.student_head.parameters())
    name = "model.blocks.0.attn.qkv.weight"
    before = method.teacher.get_parameter(name).clone()
    method.after_step(CLOCK)
    mixed = 0.9 * before + 0.1 * method.encoder.get_parameter(name)
    torch.testing.assert_close(method.teacher.get_parameter(name), mixed)
    assert not hasattr(make(), "teacher")
    method.prepare(open_images(["fractal:2"]))  # --init changes the encoder after it was built
    assert torch.equal(method.teacher.get_parameter(name), method.encoder.get_parameter(name))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"radius": 64.0}, "method.radius: 64.0 keeps every bin of 32 px, nothing is masked"),
        (
            {"target": "all", "reduction": "balanced"},
            "method.reduction: balanced weighs two tasks, but with target = all every bin is one",
        ),
        ({"corruption": "sr", "factor": 64}, "method.factor: 64 leaves nothing of 32 px"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(**knobs)
    assert error.value.message == message


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(dtype: torch.dtype) -> None:
    class Recorded(MFM):
        def predict(self, corrupted: Tensor) -> tuple[Tensor, Tensor]:
            self.answer, features = super().predict(corrupted)
            return self.answer, features

    method = unfreshened(make(kind=Recorded))
    pictures = images(6).float()
    with torch.autocast("cpu", dtype):
        loss = method(batch_of(pictures), CLOCK)["loss"]
    assert method.answer.dtype == dtype
    assert loss.dtype == torch.float32
    keep_low = method.keep_low(torch.arange(6), CLOCK)
    expected = official_loss(
        method.answer.double(), normalised(pictures.double()), keep_low, method.config.radius
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [3e4, -3e4])
def test_half_precision_predictions_of_any_size_have_a_finite_loss(value: float) -> None:
    method = make(low_share=0.0)
    nn.init.constant_(method.head[0].bias, value)  # its square is beyond float16
    with torch.autocast("cpu", torch.float16):
        loss = method(batch_of(images(2).float()), CLOCK)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(
    ("backbone", "size", "patch"),
    [
        ("test_vit", 32, 8),
        ("test_vit3", 32, 8),
        ("test_resnet", 64, None),
        ("test_convnext", 64, None),
        ("swin_tiny_patch4_window7_224", 64, None),
    ],
)
def test_the_gradient_reaches_every_weight(backbone: str, size: int, patch: int | None) -> None:
    method = unfreshened(make(backbone, size, patch))
    method.train()
    method(batch_of(images(4, size).float()), CLOCK)["loss"].backward()
    # A ConvNeXt's last norm comes after pooling, where a map to predict from no longer exists.
    left_out = ("encoder.model.head.norm.",)
    for name, parameter in method.named_parameters():
        if not name.startswith(left_out):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


# ------------------------------------------------------------------------------------------------ flags


def flags_met(workers: int, epochs: int) -> dict[tuple[int, int], bool]:
    """(epoch, image) → flag, as training with so many workers meets them."""
    method, pictures = make(low_share=0.4), open_images(["fractal:12"])
    batches = pretraining_loader(
        pictures, method.transform(), batch_size=4, seed=3, start_step=0, steps=3 * epochs,
        steps_per_epoch=3, workers=workers,
    )  # fmt: skip
    met = {}
    for step, batch in enumerate(batches):
        clock = Clock(step, 3 * epochs, 3, seed=3)
        for index, flag in zip(batch["index"], method.keep_low(batch["index"], clock), strict=True):
            met[clock.epoch, int(index)] = bool(flag)
    return met


def test_flags_do_not_depend_on_the_workers() -> None:
    alone = flags_met(workers=0, epochs=2)
    assert flags_met(workers=2, epochs=2) == alone
    assert len(alone) == 24
    assert 0 < sum(alone.values()) < 24


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_flags_have_the_share_that_is_asked_for(share: float) -> None:
    method, index = make(low_share=share), torch.arange(100_000)
    drawn = method.keep_low(index, CLOCK)
    assert drawn.double().mean().item() == pytest.approx(share, abs=0.005)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.keep_low(index[order], CLOCK), drawn[order])


def test_flags_are_drawn_anew_in_every_epoch_and_for_every_seed() -> None:
    method, index = make(), torch.arange(10_000)
    first = method.keep_low(index, Clock(0, 100, 10))
    assert torch.equal(first, method.keep_low(index, Clock(9, 100, 10)))  # the same epoch
    for other in (Clock(10, 100, 10), Clock(0, 100, 10, seed=1)):
        assert (first == method.keep_low(index, other)).double().mean().item() == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("family", "size", "native", "radius", "share"),
    [("vit", 224, 500, 16.0, 0.5), ("cnn", 224, 224, 16.0, 0.3), ("vit", 224, 32, 2.29, 0.5)],
)
def test_radius_follows_what_the_images_hold(
    family: str, size: int, native: int, radius: float, share: float
) -> None:
    chosen = MFM.resolve(MFM.Config(), family, Info(100, size, native))
    assert (chosen["radius"][0], chosen["low_share"][0]) == (radius, share)


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("vit", "vit_tiny_patch16_224", "mae"),
        ("vit", "deit_small_patch16_224", "mae"),
        ("vit", "vit_base_patch16_224", "official"),
        ("vit", "vit_large_patch14_dinov2", "official"),
        ("cnn", "", "official"),
    ],
)
def test_first_weights_follow_the_width(family: str, name: str, kind: str) -> None:
    info = Info(100, 224, 224, name)
    assert MFM.resolve(MFM.Config(), family, info)["initialization"][0] == kind


def test_a_hybrid_gets_the_weights_of_mae_too() -> None:
    method = make("vit_tiny_r_s16_p8_224", 64, None, initialization="mae")
    weight = method.encoder.model.patch_embed.proj.weight.flatten(1)
    bound = math.sqrt(6 / sum(weight.shape))
    assert 0.95 * bound < weight.abs().max() <= bound
    assert method.encoder.model.pos_embed[0, 1:].square().sum(1).allclose(torch.tensor(192 / 2))


def test_views_are_the_paper_s() -> None:
    crop = make(crop_scale=(0.2, 1.0), flip=0.5).transform().views["image"]
    assert (crop.size, crop.scale, crop.flip) == (32, (0.2, 1.0), 0.5)
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))


# --------------------------------------------------------------------------------------------- pictures


def test_panels_are_pictures_and_the_composite_joins_kept_and_predicted_bins() -> None:
    method = exact_constants(unfreshened(make())).eval()
    pictures = images(5)
    with torch.no_grad():
        panels = method.panels(batch_of(pictures))
        flags = torch.tensor([True, True, True, False, False])
        answer = by_hand(method, pictures, flags)
    assert list(panels) == ["image", "corrupted", "prediction", "composite"]
    for panel in panels.values():
        assert panel.shape == pictures.shape
        assert 0 <= panel.min() <= panel.max() <= 1
    answer = (answer * STD + MEAN).numpy()
    low = np.fft.ifftshift(official_mask(32, 32, RADIUS).numpy())
    for row in range(5):
        kept = low if flags[row] else 1 - low
        mixed = np.fft.fft2(pictures[row].numpy()) * kept + np.fft.fft2(answer[row]) * (1 - kept)
        composite = np.fft.ifft2(mixed).real.clip(0, 1)
        np.testing.assert_allclose(panels["composite"][row].numpy(), composite, atol=1e-7)
        np.testing.assert_allclose(panels["prediction"][row].numpy(), answer[row].clip(0, 1), atol=1e-7)
    torch.testing.assert_close(panels["corrupted"], official_corrupt(pictures, flags, RADIUS))


# --------------------------------------------------------------------------------------------- training


def test_sixteen_images_are_learnt() -> None:
    """The masked loss of a few fixed images falls far below that of the best answer that ignores the input.

    With squared distances: that answer is then their mean, and is left behind within the 200 steps.
    """
    method = make(gamma=2.0)
    coarse = images(16, 8).float()
    batch = batch_of(nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, betas=(0.9, 0.95))
    steps = 200
    schedule = CosineSchedule(optimizer, steps, warmup=10, warmup_lr=0.0, min_lr=0.0)
    clock = Clock(0, steps, steps_per_epoch=steps)  # one epoch, so the flags stay
    done = train(
        method, [batch] * steps, optimizer, schedule, clock.rest(), device=torch.device("cpu"), clip=3.0
    )  # fmt: skip
    losses = [step.metrics["loss"].item() for step in done]
    target = method.encoder.normalize(batch["image"])
    _, keep_low, cutoff = method.task(batch["image"], batch["index"], clock)
    error = spectral_error(target.mean(0).expand_as(target), target, keep_low, cutoff, gamma=2.0)
    print(losses[-1], error.reduce())
    assert losses[-1] < error.reduce() / 2
