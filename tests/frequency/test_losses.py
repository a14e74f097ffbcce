"""Spectral losses and their gradients: closed forms, published numbers, autograd of the literal formula."""

from __future__ import annotations

import math

import pytest
import torch
from frequency_reference import (
    HIGH,
    LOW,
    canonical,
    normalised,
    official_corrupt,
    official_loss,
    official_masks,
)
from torch import Tensor

from sslkit.frequency import (
    disc,
    focal_spectral_loss,
    gaussian,
    kept_bins,
    losses,
    low_pass,
    masked_spectral_loss,
    spectral_error,
    spectral_loss,
)

SIZES = [(7, 7), (8, 8), (7, 8), (8, 7), (9, 12), (225, 225), (223, 224), (1, 5), (5, 1), (2, 2)]
MIXED = torch.tensor([True, False, True])


def gaussian_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient_of(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, inputs)])


GOLDEN = [(0.5, 0.09756897, 0.08446838), (1, 0.02238078, 0.37989449), (1.5, 0.03794405, 4.00582279)]
GOLDEN += [(2, 0.24251542, 43.30902626)]


@pytest.mark.parametrize(("gamma", "predict_high", "predict_low"), GOLDEN)
def test_canonical_image_has_the_published_loss(
    gamma: float, predict_high: float, predict_low: float
) -> None:
    target = normalised(canonical(224))
    zero = torch.zeros_like(target)
    low_in = masked_spectral_loss(zero, target, LOW, 16, gamma)
    assert low_in.item() == pytest.approx(predict_high, abs=1.1e-8)
    high_in = masked_spectral_loss(zero, target, HIGH, 16, gamma)
    assert high_in.item() == pytest.approx(predict_low, abs=1.1e-8)


def test_an_echo_has_the_published_loss() -> None:
    image = canonical(224)
    for keep, expected in ((LOW, 0.02238077), (HIGH, 0.88284159)):
        echo = normalised(official_corrupt(image, keep, 16))
        loss = masked_spectral_loss(echo, normalised(image), keep, 16)
        assert loss.item() == pytest.approx(expected, abs=1.1e-8)


def wave(cycles: int) -> Tensor:
    line = torch.cos(2 * math.pi * cycles * torch.arange(224, dtype=torch.float64) / 224)
    return line.expand(1, 1, 224, 224)


def impulse() -> Tensor:
    image = torch.zeros(1, 1, 224, 224, dtype=torch.float64)
    image[0, 0, 3, 5] = 1
    return image


CLOSED_FORMS = [
    (torch.full((1, 1, 224, 224), 0.1, dtype=torch.float64), 1.0e-6, 22.4 / 793 + 1e-6 * 792 / 793),
    (wave(5), 1.0e-6, 224 / 793 + 1e-6 * 791 / 793),
    (wave(112), 224 / 49383 + 1e-6, 1.0e-6),  # Nyquist: a column weight of 2 would double it
    (wave(16), 224 / 49383 + 1e-6, 1.0e-6),  # on the radius: not low
    (impulse(), 1 / 224, 1 / 224),
]


@pytest.mark.parametrize(("difference", "predict_high", "predict_low"), CLOSED_FORMS)
def test_closed_forms(difference: Tensor, predict_high: float, predict_low: float) -> None:
    zero = torch.zeros_like(difference)
    assert masked_spectral_loss(difference, zero, LOW, 16).item() == pytest.approx(predict_high, abs=1e-9)
    assert masked_spectral_loss(difference, zero, HIGH, 16).item() == pytest.approx(predict_low, abs=1e-9)


def test_tiny_images_have_the_published_loss() -> None:
    for size, radius, predict_high, predict_low in (
        (8, 3, 0.10658072, 0.17514864),
        (7, 2, 0.06269164, 0.50988986),
    ):
        target = canonical(size, channels=1)
        for keep, expected in ((LOW, predict_high), (HIGH, predict_low)):
            loss = masked_spectral_loss(torch.zeros_like(target), target, keep, radius)
            assert loss.item() == pytest.approx(expected, abs=1.1e-8)


def test_pooling_weighs_bins_and_not_images() -> None:
    image = normalised(canonical(224))
    target = torch.cat([image, image.flip(-2)])
    zero, keep = torch.zeros_like(target), torch.tensor([True, False])
    error = spectral_error(zero, target, keep, 16)
    assert error.reduce().item() == pytest.approx(0.02803106, abs=1e-8)
    assert error.reduce("per_sample").item() == pytest.approx(0.20113764, abs=1e-8)
    assert error.reduce("balanced").item() == pytest.approx(0.20113764, abs=1e-8)
    assert error.count.tolist() == [3 * 49383, 3 * 793]


def test_balanced_weighs_tasks_and_not_images() -> None:
    target = gaussian_noise(3, 3, 9, 8)
    zero = torch.zeros_like(target)
    error = spectral_error(zero, target, MIXED, 2)
    alone = [masked_spectral_loss(zero[k : k + 1], target[k : k + 1], MIXED[k : k + 1], 2) for k in range(3)]
    high = (alone[0] + alone[2]) / 2  # both score the same number of bins
    assert error.reduce("balanced").item() == pytest.approx(((high + alone[1]) / 2).item(), rel=1e-12)
    assert error.reduce("per_sample").item() == pytest.approx((sum(alone) / 3).item(), rel=1e-12)
    assert error.by_task()["high"].item() == pytest.approx(high.item(), rel=1e-12)
    assert error.by_task()["low"].item() == pytest.approx(alone[1].item(), rel=1e-12)


def test_a_task_without_images_is_left_out_and_logged_as_nan() -> None:
    prediction = gaussian_noise(2, 3, 8, 8).requires_grad_()
    keep = torch.tensor([True, True])
    error = spectral_error(prediction, torch.zeros_like(prediction), keep, 2)
    assert error.by_task()["low"].isnan()
    assert not error.by_task()["high"].requires_grad
    balanced = error.reduce("balanced")
    assert balanced.item() == pytest.approx(error.reduce().item())
    assert gradient_of(balanced, prediction).isfinite().all()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("radius", [1, 2, 3, 16])
def test_masked_loss_is_the_official_formula_at_any_size(height: int, width: int, radius: int) -> None:
    prediction, target = gaussian_noise(3, 2, height, width), gaussian_noise(3, 2, height, width, seed=1)
    got = masked_spectral_loss(prediction, target, MIXED, radius).item()
    assert got == pytest.approx(official_loss(prediction, target, MIXED, radius).item(), rel=1e-10)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (8, 7), (9, 8), (16, 17)])
@pytest.mark.parametrize("radius", [2, 3])
@pytest.mark.parametrize("gamma", [0.5, 1, 1.5, 2])
def test_gradient_is_that_of_the_official_formula(height: int, width: int, radius: int, gamma: float) -> None:
    target = gaussian_noise(3, 2, height, width, seed=1).requires_grad_()
    prediction = gaussian_noise(3, 2, height, width).requires_grad_()
    inputs = (prediction, target)
    got = gradient_of(masked_spectral_loss(*inputs, MIXED, radius, gamma), *inputs)
    expected = gradient_of(official_loss(*inputs, MIXED, radius, gamma), *inputs)
    assert (got - expected).norm() / expected.norm() < 1e-10


@pytest.mark.parametrize("reduction", ["pooled", "per_sample", "balanced"])
@pytest.mark.parametrize("size", [(7, 8), (8, 9), (16, 16)])  # 16: the pruned transform
def test_gradcheck(reduction, size) -> None:  # type: ignore[no-untyped-def]
    inputs = (
        gaussian_noise(3, 1, *size).requires_grad_(),
        gaussian_noise(3, 1, *size, seed=1).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda p, t: masked_spectral_loss(p, t, MIXED, 2, 1.5, reduction), inputs, fast_mode=True
    )


def test_soft_masks_and_radii_per_image_score_what_the_input_lost() -> None:
    prediction, target = gaussian_noise(3, 2, 9, 12), gaussian_noise(3, 2, 9, 12, seed=1)
    radii = torch.tensor([1.0, 2.5, 4.0])
    error = spectral_error(prediction, target, MIXED, radii)
    for k in range(3):
        alone = official_loss(prediction[k : k + 1], target[k : k + 1], MIXED[k : k + 1], float(radii[k]))
        assert (error.total / error.count)[k].item() == pytest.approx(alone.item(), rel=1e-10)
    soft = gaussian(9, 12, 3)
    as_mask = masked_spectral_loss(prediction, target, MIXED, disc(9, 12, 2.5).float())
    assert as_mask.item() == pytest.approx(masked_spectral_loss(prediction, target, MIXED, 2.5).item())
    both = spectral_error(prediction, target, MIXED, soft).total
    both = both + spectral_error(prediction, target, ~MIXED, soft).total
    everything = spectral_error(prediction, target, MIXED, torch.ones(9, 7) * 0.5).total * 2
    assert torch.allclose(both, everything, rtol=1e-6)


def test_equal_batches_cost_the_floor_and_have_no_gradient() -> None:
    for size in (8, 64):
        same = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = masked_spectral_loss(same, same.detach(), torch.tensor([True, False]), 3)
        assert loss.item() == pytest.approx(1e-6, rel=1e-5)
        assert torch.equal(gradient_of(loss, same), torch.zeros(same.numel()))


def test_constant_images_have_a_finite_gradient() -> None:
    for gamma in (0.5, 1.0, 2.0):
        flat = torch.full((2, 3, 16, 16), 0.25, requires_grad=True)
        loss = masked_spectral_loss(flat, torch.zeros(2, 3, 16, 16), torch.tensor([True, False]), 2, gamma)
        assert gradient_of(loss, flat).isfinite().all()


def test_gamma_two_is_parseval() -> None:
    prediction, target = gaussian_noise(2, 3, 9, 8), gaussian_noise(2, 3, 9, 8, seed=1)
    difference = prediction - target
    full = spectral_loss(prediction, target, gamma=2).item()
    assert full == pytest.approx(difference.square().mean().item() + 1e-12, rel=1e-12)
    keep = torch.tensor([False, False])
    masked = masked_spectral_loss(prediction, target, keep, 2, gamma=2).item()
    count = 2 * 3 * float(kept_bins(disc(9, 8, 2), 8))
    assert masked == pytest.approx(low_pass(difference, 2).square().sum().item() / count + 1e-12, rel=1e-12)


@pytest.mark.parametrize("size", [8, 64])
def test_images_of_a_batch_do_not_mix(size: int) -> None:
    prediction, target = gaussian_noise(3, 3, size, size), gaussian_noise(3, 3, size, size, seed=1)
    batch = spectral_error(prediction, target, MIXED, 3)
    for k in range(3):
        one = slice(k, k + 1)
        alone = spectral_error(prediction[one], target[one], MIXED[one], 3)
        assert batch.total[k].item() == pytest.approx(alone.total.item(), rel=1e-13)


def test_unmasked_loss_and_its_variants_have_the_published_values() -> None:
    target = normalised(canonical(224))
    zero = torch.zeros_like(target)
    assert spectral_loss(zero, target).item() == pytest.approx(0.02803106, abs=1e-8)
    assert spectral_loss(zero, target, patches=2).item() == pytest.approx(0.14027018, abs=1e-8)
    assert spectral_loss(zero, target, patches=4).item() == pytest.approx(0.19731024, abs=1e-8)
    expected = {(False, False): 0.00744707, (False, True): 0.00738523, (True, False): 0.00999024}
    expected[(True, True)] = 0.00997309
    for (logarithm, across_batch), value in expected.items():
        loss = focal_spectral_loss(zero, target, logarithm=logarithm, across_batch=across_batch)
        assert loss.item() == pytest.approx(value, abs=1e-8)


def test_unmasked_loss_of_white_noise_is_the_rayleigh_mean() -> None:
    white = gaussian_noise(1, 3, 224, 224)
    loss = spectral_loss(white, torch.zeros_like(white)).item()
    assert loss == pytest.approx(math.sqrt(math.pi) / 2, abs=0.002)


def test_focal_weight_passes_no_gradient() -> None:
    prediction = gaussian_noise(2, 2, 7, 8).requires_grad_()
    target = gaussian_noise(2, 2, 7, 8, seed=1)
    spectrum = torch.fft.fft2(prediction - target, norm="ortho").abs()
    weight = (spectrum / spectrum.amax((-2, -1), keepdim=True)).detach()
    expected = gradient_of((weight * spectrum).mean(), prediction)
    got = gradient_of(focal_spectral_loss(prediction, target), prediction)
    assert (got - expected).norm() / expected.norm() < 1e-9
    same = prediction.detach().clone().requires_grad_()
    assert torch.equal(
        gradient_of(focal_spectral_loss(same, prediction.detach()), same), torch.zeros(224).double()
    )


def test_float32_gates() -> None:
    prediction, target = gaussian_noise(4, 3, 224, 224), gaussian_noise(4, 3, 224, 224, seed=1)
    keep = torch.tensor([True, False, False, True])
    single = prediction.float().requires_grad_()
    prediction.requires_grad_()
    loss = masked_spectral_loss(single, target.float(), keep, 16)
    exact = official_loss(prediction, target, keep, 16)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    expected = gradient_of(exact, prediction)
    error = gradient_of(loss, single) - expected
    assert error.norm() / expected.norm() < 1e-5
    assert error.abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_predictions_are_scored_in_float32(dtype: torch.dtype) -> None:
    prediction = gaussian_noise(3, 3, 64, 64).to(dtype).requires_grad_()
    target = gaussian_noise(3, 3, 64, 64, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_spectral_loss(prediction, target, MIXED, 3)
    assert loss.dtype == torch.float32
    exact = official_loss(prediction.detach().double(), target.double(), MIXED, 3)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.dtype == dtype
    assert prediction.grad.isfinite().all()


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = gaussian_noise(7, 3, 16, 16).requires_grad_()
    target, keep = gaussian_noise(7, 3, 16, 16, seed=1), torch.arange(7) % 3 == 0
    whole = masked_spectral_loss(prediction, target, keep, 2)
    monkeypatch.setattr("sslkit.frequency.losses.CHUNK_BYTES", 2 * 3 * 16 * 16 * 4)
    chunked = masked_spectral_loss(prediction, target, keep, 2)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-14)
    assert (gradient_of(chunked, prediction) - gradient_of(whole, prediction)).abs().max() < 1e-16


def test_the_gradient_can_be_taken_twice_from_one_graph_and_not_of_itself() -> None:
    prediction = gaussian_noise(1, 1, 8, 8).requires_grad_()
    loss = masked_spectral_loss(prediction, torch.zeros_like(prediction), LOW, 2)
    (first,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    (second,) = torch.autograd.grad(loss, prediction, create_graph=True)
    assert torch.equal(first, second)
    assert not second.requires_grad


def test_nothing_scored_costs_nothing() -> None:
    empty = torch.zeros(0, 3, 8, 8, requires_grad=True)
    for reduction in ("pooled", "per_sample", "balanced"):
        loss = masked_spectral_loss(empty, empty, torch.zeros(0, dtype=torch.bool), 2, 1.0, reduction)  # type: ignore[arg-type]
        assert loss.item() == 0
        loss.backward()
    assert spectral_loss(empty, empty).item() == focal_spectral_loss(empty, empty).item() == 0
    images = torch.rand(2, 3, 4, 4)
    all_kept = spectral_error(images, images * 0, torch.tensor([True, True]), 99)
    assert [all_kept.reduce(r).item() for r in ("pooled", "per_sample", "balanced")] == [0, 0, 0]  # type: ignore[arg-type]


def test_any_mask_agrees_with_the_official_sum_on_the_full_plane() -> None:
    """Guards the half-plane's column weights for even and odd widths."""
    for height, width in ((6, 6), (6, 7)):
        prediction, target = gaussian_noise(3, 2, height, width), gaussian_noise(3, 2, height, width, seed=1)
        error = spectral_error(prediction, target, MIXED, 2)
        scored = 1 - official_masks(prediction.shape, MIXED, 2)
        assert torch.equal(error.count, 2 * scored.sum((1, 2, 3)))


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([True, False])
WRONG = [
    (r"target has shape \(2, 3, 8, 7\), expected", lambda: spectral_loss(IMAGES, IMAGES[..., :7])),
    ("gamma is 0, expected > 0", lambda: masked_spectral_loss(IMAGES, IMAGES, KEEP, 2, gamma=0)),
    ("reduction is 'mean', expected", lambda: masked_spectral_loss(IMAGES, IMAGES, KEEP, 2, 1, "mean")),  # type: ignore[arg-type]
    ("patches is 3, expected a divisor of 8 and 8", lambda: spectral_loss(IMAGES, IMAGES, patches=3)),
    (r"keep_low has shape \(1,\), expected \[2\]", lambda: masked_spectral_loss(IMAGES, IMAGES, KEEP[:1], 2)),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_errors_name_the_value_and_what_was_expected(message, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [True, False])
def test_a_large_batch_of_one_kind_alone(kind: bool) -> None:
    """A low_share of 0 or 1: no image has the other task."""
    random = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 64, 3, 96, 96, generator=random)
    assert prediction.nbytes > losses.WHOLE_BYTES
    keep_low = torch.full((64,), kind)
    prediction.requires_grad_()
    error = losses.spectral_error(prediction, target, keep_low, 7.0)
    (gradient,) = torch.autograd.grad(error.reduce("pooled"), prediction)
    for index in (0, 63):
        alone = losses.spectral_error(
            prediction[index : index + 1], target[index : index + 1], keep_low[:1], 7.0
        )
        torch.testing.assert_close(error.total[index : index + 1], alone.total, rtol=1e-5, atol=1e-3)
    assert gradient.abs().sum((1, 2, 3)).min() > 0
