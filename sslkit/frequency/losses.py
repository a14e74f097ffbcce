"""The distance between two batches in the frequency domain, masked as MFM trains it.

With F the orthonormal 2-D DFT and Δ = F prediction - F target, a bin costs (|Δ|² + 1e-12)^(gamma / 2): its
modulus at gamma = 1. One real FFT of the difference replaces two complex ones, and the gradient is one
inverse FFT (the transform is unitary). In between only the gradient's spectrum is kept: half a plane, or the
few bins of the disc.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslkit.core.distributed import collectives
from sslkit.frequency.devices import fourier_device, full_precision
from sslkit.frequency.filters import check_images, check_keep_low
from sslkit.frequency.masks import Cutoff, at_least_float32, column_weights, kept_bins, low_mask
from sslkit.frequency.pruned import PrunedDFT, pruned_for
from sslkit.frequency.transform import irfft2, rfft2

Reduction = Literal["pooled", "per_sample", "balanced"]
FLOOR = 1e-12  # inside the root, so that its gradient at zero is finite (official)
CHUNK_BYTES = 2**22  # of a difference, on the CPU: bounds the extra memory and stays near the cache
WHOLE_BYTES = 2**20  # of a batch: below, sorting it by task costs more than it saves


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

        In several processes the counts are those of all, so that the mean over processes is what one
        process with all the images would get. (The official code pools by GPU.)
        """
        if reduction == "pooled":
            return _ratio(self.total.sum(), _shared(self.count.sum()))
        if reduction == "per_sample":
            return _ratio(_ratio(self.total, self.count).sum(), _shared((self.count > 0).sum()))
        if reduction == "balanced":
            total, count = self._sums()
            count = _shared(count)
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
    low = low_mask(radius, prediction)
    height, width = prediction.shape[-2:]
    bins = kept_bins(low, width).flatten()  # [1] or [B]
    count = torch.where(keep_low, height * width - bins, bins) * prediction.shape[1]
    flat_radius = None if isinstance(radius, Tensor) else radius
    place = fourier_device(prediction.device)
    tensors = (tensor.to(place) for tensor in (prediction, target, keep_low, low))
    total: Tensor = _SpectralSum.apply(*tensors, flat_radius, gamma)
    return SpectralError(total.to(prediction.device), count.to(total.dtype), keep_low)


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

    index: Tensor | None  # which images; None: the whole batch
    weight: Tensor  # how much each bin of the (half or band) spectrum counts, broadcastable to it
    pruned: PrunedDFT | None

    def difference(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.index is not None:
            prediction, target = prediction.index_select(0, self.index), target.index_select(0, self.index)
        return at_least_float32(prediction) - at_least_float32(target)


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
        computing = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        total = prediction.new_empty(len(prediction), dtype=computing)
        parts, slopes = [], []
        with full_precision(prediction.device):
            for part in _parts(prediction, keep_low, low, radius):
                summed, slope = _distance(part.difference(prediction, target), part, gamma)
                total[slice(None) if part.index is None else part.index] = summed
                if any(ctx.needs_input_grad[:2]):
                    parts.append((part.index, part.pruned))
                    slopes.append(slope)
        ctx.save_for_backward(*slopes)
        ctx.parts, ctx.shape, ctx.dtypes = parts, prediction.shape, (prediction.dtype, target.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        gradient = _gradient(ctx, scale, scale.dtype if wanted[1] else ctx.dtypes[0])
        for_prediction = gradient.to(ctx.dtypes[0]) if wanted[0] else None
        for_target = -gradient.to(ctx.dtypes[1]) if wanted[1] else None
        return for_prediction, for_target, None, None, None, None


def _gradient(ctx: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ scale · total's gradient in the prediction, a new [B, C, H, W]; what was saved stays as it is."""

    def images(index: Tensor | None, pruned: PrunedDFT | None, slope: Tensor) -> Tensor:
        with full_precision(scale.device):
            part = pruned.synthesise(slope) if pruned else irfft2(slope, ctx.shape[-2:], "ortho")
        return part.mul_((scale if index is None else scale[index])[:, None, None, None]).to(dtype)

    if ctx.parts[0][0] is None:
        return images(*ctx.parts[0], *ctx.saved_tensors)
    gradient: Tensor = scale.new_empty(ctx.shape, dtype=dtype)
    for (index, pruned), slope in zip(ctx.parts, ctx.saved_tensors, strict=True):
        gradient.index_copy_(0, index, images(index, pruned, slope))
    return gradient


def _parts(images: Tensor, keep_low: Tensor, low: Tensor, radius: float | None) -> Iterator[_Part]:
    """The batch cut by task and cache size on the CPU; whole elsewhere, where picking images would sync."""
    one = images[:1].numel() * 4
    if images.device.type != "cpu" or len(images) * one <= WHOLE_BYTES:
        yield _Part(None, torch.where(keep_low[:, None, None, None], 1 - low, low), None)
        return
    pruned = None if radius is None else pruned_for(images, radius)
    scored_low = low if pruned is None else pruned.restrict(low)
    for chosen, weight, transform in ((keep_low, 1 - low, None), (~keep_low, scored_low, pruned)):
        for index in torch.split(chosen.nonzero()[:, 0], max(1, CHUNK_BYTES // one)):
            if len(index):  # a low_share of 0 or 1 leaves a task without images
                yield _Part(
                    index, weight[index] if len(weight) > 1 and weight.ndim > 2 else weight, transform
                )


def _distance(difference: Tensor, part: _Part, gamma: float) -> tuple[Tensor, Tensor]:
    """The summed distance [B] of one part and the (half or band) spectrum of its gradient."""
    spectrum = part.pruned.analyse(difference) if part.pruned else rfft2(difference, norm="ortho")
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    power = torch.addcmul(real * real, imaginary, imaginary).add_(FLOOR)
    value = power.sqrt() if gamma == 1 else power.pow(gamma / 2)
    columns = column_weights(difference.shape[-1], difference.device)[: spectrum.shape[-1]].to(value.dtype)
    total = (value * (part.weight * columns)).sum((1, 2, 3))
    # No column weights here: they belong to the one-sided sum, the inverse restores both halves by itself.
    return total, spectrum.mul_(value.div_(power).mul_(part.weight * gamma))


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return total / count.where(count > 0, 1)


def _shared(count: Tensor) -> Tensor:
    """The mean of a count over all processes."""
    return collectives.all_reduce_sum(count) / collectives.world_size()


def check_pair(prediction: Tensor, target: Tensor, gamma: float) -> None:
    check_images(prediction, "prediction")
    check_images(target, "target")
    if prediction.shape != target.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected the prediction's {tuple(prediction.shape)}"
        )
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}, expected > 0")
