"""The distance between two batches in the frequency domain, masked as MFM trains it.

With F the orthonormal 2-D DFT and Δ = F prediction - F target, a bin costs (|Δ|² + 1e-12)^(gamma / 2): its
modulus at gamma = 1. One real FFT of the difference replaces two complex ones, and the gradient is one
inverse FFT (the transform is unitary), taken while the spectrum is still in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslkit.frequency.filters import check_images, check_keep_low
from sslkit.frequency.masks import Cutoff, at_least_float32, column_weights, kept_bins, low_mask
from sslkit.frequency.pruned import PrunedDFT, pruned_for

Reduction = Literal["pooled", "per_sample", "balanced"]
FLOOR = 1e-12  # inside the root, so that its gradient at zero is finite (official)
CHUNK_BYTES = (
    2**23
)  # of a difference: bounds the extra memory; smaller ones lose to thread barriers on a busy CPU


@dataclass(frozen=True)
class SpectralError:
    """The masked distance of each image, before any reduction."""

    total: Tensor  # [B], summed over channels and over the scored bins of the full plane
    count: Tensor  # [B], how many values were summed
    keep_low: Tensor  # bool [B]

    def reduce(self, reduction: Reduction = "pooled") -> Tensor:
        """A scalar; 0 where nothing is scored (an empty batch, a mask that keeps all).

        "pooled": every scored bin of the batch weighs the same (official): at radius 16 of 224², an image
        that predicts high frequencies weighs 62 times one that predicts low ones. "per_sample": every image
        weighs the same. "balanced": the two tasks weigh the same; a task without images is left out.
        """
        if reduction == "pooled":
            return _ratio(self.total.sum(), self.count.sum())
        if reduction == "per_sample":
            return _ratio(_ratio(self.total, self.count).sum(), (self.count > 0).sum())
        if reduction == "balanced":
            total, count = self._sums()
            return _ratio(_ratio(total, count).sum(), (count > 0).sum())
        raise ValueError(f"reduction is {reduction!r}, expected 'pooled', 'per_sample' or 'balanced'")

    def by_task(self) -> dict[str, Tensor]:
        """The mean over scored bins of each task, named by what is predicted: "low" or "high".

        Detached scalars for a log, computed without a host sync; NaN where no image has the task. The low
        frequencies are predicted from high-pass inputs.
        """
        total, count = self._sums()
        low, high = (total.detach() / count).unbind()
        return {"low": low, "high": high}

    def _sums(self) -> tuple[Tensor, Tensor]:
        predicts = torch.stack([~self.keep_low, self.keep_low])  # [2, B]: low, high
        return (predicts * self.total).sum(1), (predicts * self.count).sum(1)


def spectral_error(
    prediction: Tensor, target: Tensor, keep_low: Tensor, radius: Cutoff, gamma: float = 1.0
) -> SpectralError:
    """Each image's distance to its target over the frequencies that its input lacked.

    prediction, target: float [B, C, H, W], in the space where they are compared (MFM: both normalised by
    mean and std). keep_low: bool [B], as given to `corrupt`: True scores the high frequencies, False the
    low ones. radius: a number > 0, radii [B], or a half-plane mask. gamma > 0. Differentiable once, in both
    batches. Sums are float32 (float64 for float64 batches) whatever the batches or autocast say.
    """
    check_pair(prediction, target, gamma)
    check_keep_low(keep_low, prediction)
    height, width = prediction.shape[-2:]
    low = low_mask(radius, prediction)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    bins = kept_bins(low, width).flatten()  # [1] or [B]
    count = torch.where(keep_low, height * width - bins, bins) * prediction.shape[1]
    flat_radius = None if isinstance(radius, Tensor) else radius
    total: Tensor = _SpectralSum.apply(prediction, target, keep_low, low, flat_radius, gamma)
    return SpectralError(total, count.to(dtype), keep_low)


def masked_spectral_loss(
    prediction: Tensor,
    target: Tensor,
    keep_low: Tensor,
    radius: Cutoff,
    gamma: float = 1.0,
    reduction: Reduction = "pooled",
) -> Tensor:
    """MFM's loss (Xie et al., ICLR 2023, arXiv 2206.07706): a scalar; see `spectral_error`."""
    return spectral_error(prediction, target, keep_low, radius, gamma).reduce(reduction)


@dataclass(frozen=True)
class _Part:
    """Images that are transformed and scored alike."""

    index: slice | Tensor
    weight: Tensor  # how much each bin of the (half or band) spectrum counts, broadcastable to it
    pruned: PrunedDFT | None


class _SpectralSum(torch.autograd.Function):
    """Σ weight · (|Δ|² + floor)^(gamma / 2) per image, and its gradient by one inverse FFT."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        keep_low: Tensor,
        low: Tensor,
        radius: float | None,
        gamma: float,
    ) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad[:2])
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        total = prediction.new_zeros(len(prediction), dtype=dtype)
        gradient = torch.empty_like(prediction, dtype=dtype) if wants_gradient else None
        with torch.autocast(prediction.device.type, enabled=False):
            for part in _parts(prediction, keep_low, low, radius):
                difference = at_least_float32(prediction[part.index]) - at_least_float32(target[part.index])
                summed, slope = _distance(difference, part, gamma, wants_gradient)
                total[part.index] = summed
                if gradient is not None and slope is not None:
                    gradient[part.index] = slope
        ctx.save_for_backward(gradient)
        ctx.dtypes = prediction.dtype, target.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient * slope[:, None, None, None]
        for_prediction = scaled.to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        for_target = -scaled.to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return for_prediction, for_target, None, None, None, None


def _parts(images: Tensor, keep_low: Tensor, low: Tensor, radius: float | None) -> Iterator[_Part]:
    """The batch cut by task and cache size on the CPU; whole elsewhere, where picking images would sync."""
    pruned = None if radius is None else pruned_for(images, radius)
    if images.device.type != "cpu" or low.ndim > 2:
        keep = keep_low[:, None, None, None]
        yield _Part(slice(None), torch.where(keep, 1 - low, low), None)
        return
    size = max(1, CHUNK_BYTES // (images[:1].numel() * 4)) if len(images) else 1
    for index in torch.split(keep_low.nonzero()[:, 0], size):
        yield _Part(index, 1 - low, None)
    for index in torch.split((~keep_low).nonzero()[:, 0], size):
        yield _Part(index, low if pruned is None else pruned.restrict(low), pruned)


def _distance(
    difference: Tensor, part: _Part, gamma: float, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The summed distance [B] of one part and its gradient [B, C, H, W] in the difference."""
    size = difference.shape[-2:]
    spectrum = part.pruned.analyse(difference) if part.pruned else torch.fft.rfft2(difference, norm="ortho")
    parts = torch.view_as_real(spectrum)  # real arithmetic: faster, and what compilers understand
    power = parts.square().sum(-1).add_(FLOOR)
    value = power.sqrt() if gamma == 1 else power.pow(gamma / 2)
    columns = column_weights(size[1], difference.device)[: spectrum.shape[-1]].to(value.dtype)
    total = (value * (part.weight * columns)).sum((1, 2, 3))
    if not wants_gradient:
        return total, None
    # No column weights here: they belong to the one-sided sum, the inverse restores both halves by itself.
    parts.mul_((value.div_(power).mul_(part.weight * gamma))[..., None])
    if part.pruned:
        return total, part.pruned.synthesise(spectrum)
    return total, torch.fft.irfft2(spectrum, s=size, norm="ortho")


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return total / count.where(count > 0, 1)


def check_pair(prediction: Tensor, target: Tensor, gamma: float) -> None:
    check_images(prediction, "prediction")
    check_images(target, "target")
    if prediction.shape != target.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected the prediction's {tuple(prediction.shape)}"
        )
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}, expected > 0")
