"""Which frequencies: masks over the half-plane that `torch.fft.rfft2` returns.

One layout everywhere: unshifted, [H, W // 2 + 1], zero frequency at [0, 0]. A bin's wave number is its
count of cycles per image, `ky` in -H/2 … H/2 and `kx` in 0 … W/2; the other half of the plane is the mirror
image, because images are real. A mask keeps (1, True) or removes (0, False) a frequency; soft masks lie in
between. Only `full_mask` leaves this layout, for pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from sslkit.frequency.devices import full_precision
from sslkit.frequency.transform import rfft2

Cutoff = float | Tensor
"""What is low: a radius in bins, radii [B] (one per image), or a mask over the half-plane,
[H, W // 2 + 1] or [B, 1, H, W // 2 + 1]."""


Device = torch.device | str | None


def wave_numbers(height: int, width: int) -> tuple[Tensor, Tensor]:
    """`ky` [H, 1] and `kx` [1, W // 2 + 1] of every half-plane bin, in cycles per image.

    Float64 on the CPU, as some devices (MPS) have none: masks move to their device once they are made.
    """
    rows = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)
    return rows.round()[:, None], columns.round()[None, :]


def disc(height: int, width: int, radius: float | Tensor, device: Device = None) -> Tensor:
    """True where ky² + kx² < radius² (strict, as in MFM's mask: 793 of 224² bins at radius 16).

    As for all the shapes here, `radius` is a number > 0 (result [H, W // 2 + 1], cached: do not write into
    it) or a tensor [B], one radius per image, on the device of the result ([B, 1, H, W // 2 + 1]).
    """
    return _mask(_disc, height, width, radius, device)


def square(height: int, width: int, radius: float | Tensor, device: Device = None) -> Tensor:
    """True where |ky| < radius and |kx| < radius: 961 bins at radius 16."""
    return _mask(_square, height, width, radius, device)


def rhombus(height: int, width: int, radius: float | Tensor, device: Device = None) -> Tensor:
    """True where |ky| + |kx| < radius: 481 bins at radius 16."""
    return _mask(_rhombus, height, width, radius, device)


def gaussian(height: int, width: int, radius: float | Tensor, device: Device = None) -> Tensor:
    """exp(-d² / 2 radius²): a soft low-pass without ringing. Float32 in (0, 1]."""
    return _mask(_gaussian, height, width, radius, device)


def butterworth(
    height: int, width: int, radius: float | Tensor, order: int = 2, device: Device = None
) -> Tensor:
    """1 / (1 + (d / radius)^(2 order)): ½ at the radius, steeper with the order. Float32."""
    if order < 1:
        raise ValueError(f"order is {order}, expected at least 1")
    return _mask(_butterworth, height, width, radius, device, order)


SHAPES: Mapping[str, Callable[..., Tensor]] = {
    "disc": disc,
    "square": square,
    "rhombus": rhombus,
    "gaussian": gaussian,
    "butterworth": butterworth,
}
"""What has a radius, by name: (height, width, radius, device=None) → mask."""


def band(height: int, width: int, inner: float, outer: float, device: Device = None) -> Tensor:
    """True where inner² <= ky² + kx² < outer²; the complement is a band-stop. Bool [H, W // 2 + 1]."""
    if not 0 <= inner < outer:
        raise ValueError(f"band from {inner} to {outer}, expected 0 <= inner < outer")
    squared = _squared(*wave_numbers(height, width))
    return ((squared >= inner**2) & (squared < outer**2)).to(device=device)


def strongest(images: Tensor, share: float) -> Tensor:
    """The `share` (0 < share <= 1) of bins in which each image has most power, its channels summed.

    The idea of FOLK's adaptive masks (Monsefi et al., arXiv 2409.10362), symmetrised so that both halves of
    a conjugate pair are kept or removed together. Bins as strong as the weakest kept one are kept too,
    hence a share can be exceeded by a pair, and by more where an image has equal powers.

    images: float [B, C, H, W]. Returns bool [B, 1, H, W // 2 + 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected 0 < share <= 1")
    height, width = images.shape[-2:]
    if images.numel() == 0:
        return torch.zeros(len(images), 1, height, width // 2 + 1, dtype=torch.bool, device=images.device)
    with full_precision(images.device):
        spectrum = torch.view_as_real(rfft2(at_least_float32(images.detach())))
    power = _mirror_own_columns(spectrum.square().sum((1, -1)), width)  # [B, H, W // 2 + 1]
    order = power.flatten(1).sort(dim=1, descending=True)
    weight = column_weights(width, images.device).expand(height, -1).reshape(-1)
    reached = weight[order.indices].cumsum(1) >= share * height * width
    threshold = order.values.gather(1, reached.int().argmax(1, keepdim=True))
    return (power >= threshold[:, :, None])[:, None]


def cutoff_of(mask: str, images: Tensor, radius: float | Tensor, share: float) -> Cutoff:
    """What is low in images [B, C, H, W] by the name of a mask: one of SHAPES, or "adaptive".

    radius: bins, a number or [B], of a shape. share: of bins that "adaptive" calls low, see `strongest`.
    A disc stays a radius, which is the quicker way.
    """
    if mask == "adaptive":
        return strongest(images, share)
    return radius if mask == "disc" else SHAPES[mask](*images.shape[-2:], radius, device=images.device)


def every_bin(images: Tensor) -> tuple[Tensor, Tensor]:
    """(keep_low, cutoff) of inputs [B, C, H, W] that kept nothing: all bins are missing, and scored."""
    low = torch.ones(len(images), dtype=torch.bool, device=images.device)
    return low, images.new_zeros(images.shape[-2], images.shape[-1] // 2 + 1)


def symmetrise(mask: Tensor) -> Tensor:
    """The half-plane mask [..., H, W // 2 + 1] that acts on real images as the full one does.

    mask: any real mask [..., H, W] over the full *unshifted* plane, symmetric or not (apply `ifftshift` to
    a centred one first). The real part of a filtered image depends only on the mean of mask(k) and
    mask(-k), and so does a sum of moduli over it; that mean is returned, float32.
    """
    if mask.ndim < 2 or mask.is_complex():
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected a real [..., H, W]")
    full = mask.float()
    mirrored = full.flip((-2, -1)).roll((1, 1), (-2, -1))
    return ((full + mirrored) / 2)[..., : mask.shape[-1] // 2 + 1]


def full_mask(mask: Tensor, width: int) -> Tensor:
    """A half-plane mask [..., H, W // 2 + 1] as a picture [..., H, W], zero frequency centred.

    `width` is W, which the half-plane alone does not tell (6 and 7 pixels both have 4 columns).
    """
    _check_half_plane(mask, mask.shape[-2], width)
    mirrored = mask.flip(-2).roll(1, -2).flip(-1)  # ky → -ky, kx → -kx
    mirrored = mirrored[
        ..., (width + 1) % 2 : mask.shape[-1] - 1
    ]  # zero, and the Nyquist of even widths, own no pair
    centred: Tensor = torch.fft.fftshift(torch.cat([mask, mirrored], -1), dim=(-2, -1))
    return centred


def kept_bins(mask: Tensor, width: int) -> Tensor:
    """How many bins of the full plane a half-plane mask keeps (793 for the disc of radius 16 at 224²).

    mask [..., H, W // 2 + 1] → float32 [...], exact up to 2²⁴ bins; soft masks count by their value.
    """
    _check_half_plane(mask, mask.shape[-2], width)
    return (mask.float() * column_weights(width, mask.device)).sum((-2, -1))


@lru_cache(maxsize=64)
def column_weights(width: int, device: torch.device) -> Tensor:
    """How often each half-plane column stands in the full plane: 2, but 1 for kx = 0 and an even width's
    Nyquist.

    Float32 [W // 2 + 1], cached: do not write into it. A sum over the full plane is the weighted sum over the
    half.
    """
    with torch.inference_mode(False):
        weights = torch.full((width // 2 + 1,), 2.0, device=device)
        # Slices are filled on the device; to one element a number is copied, and the host waits for the copy.
        weights[:1] = 1
        if width % 2 == 0:
            weights[-1:] = 1
        return weights


def low_mask(cutoff: Cutoff, images: Tensor) -> Tensor:
    """The mask a cut-off means for these images, float32, broadcastable to their half spectra."""
    batch, _, height, width = images.shape
    if not isinstance(cutoff, Tensor):
        return disc(height, width, cutoff, images.device).float()
    if cutoff.ndim < 2:
        mask = disc(height, width, cutoff.to(images.device))
    else:
        mask = cutoff.to(images.device)
        _check_half_plane(mask, height, width)
    if mask.ndim != 2 and tuple(mask.shape[:-2]) not in ((1, 1), (batch, 1)):
        shape = tuple(mask.shape[:-2])
        raise ValueError(f"radius or mask is for {shape}, expected [{batch}, 1] images, channels")
    return mask.float()


def at_least_float32(images: Tensor) -> Tensor:
    """FFTs know no bfloat16, and float16 only for powers of two: those are computed in float32."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def check_radius(radius: object) -> float:
    """`radius` as a float; ValueError or TypeError unless it is a number > 0 (fractions are welcome)."""
    if isinstance(radius, bool) or not isinstance(radius, (int, float)):
        raise TypeError(f"radius is {radius!r}, expected a number > 0")
    if not radius > 0:
        raise ValueError(f"radius is {radius}, expected > 0")
    return float(radius)


def _mask(
    formula: Callable[..., Tensor],
    height: int,
    width: int,
    radius: float | Tensor,
    device: Device,
    *options: int,
) -> Tensor:
    """A formula of (ky, kx, radius, *options), for one radius (exact, cached) or one for each image."""
    if not isinstance(radius, Tensor):
        place = torch.device(device or "cpu")
        return _cached_mask(formula, height, width, check_radius(radius), place, *options)
    if radius.ndim != 1:
        raise ValueError(f"radius has shape {tuple(radius.shape)}, expected one radius per image, [B]")
    waves = _cached_wave_numbers(height, width, radius.device)
    return formula(*waves, at_least_float32(radius)[:, None, None, None], *options)


@lru_cache(maxsize=64)
def _cached_wave_numbers(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`wave_numbers` as float32 on a device; a copy in every step would make the host wait."""
    with torch.inference_mode(False):
        rows, columns = wave_numbers(height, width)
        return rows.float().to(device), columns.float().to(device)


@lru_cache(maxsize=64)
def _cached_mask(
    formula: Callable[..., Tensor],
    height: int,
    width: int,
    radius: float,
    device: torch.device,
    *options: int,
) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor in the cache would break later training
        mask = formula(*wave_numbers(height, width), radius, *options)
        return (mask if mask.dtype == torch.bool else mask.float()).to(device)


def _squared(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.square() + columns.square()


def _disc(rows: Tensor, columns: Tensor, radius: float | Tensor) -> Tensor:
    return _squared(rows, columns) < radius**2


def _square(rows: Tensor, columns: Tensor, radius: float | Tensor) -> Tensor:
    return (rows.abs() < radius) & (columns < radius)


def _rhombus(rows: Tensor, columns: Tensor, radius: float | Tensor) -> Tensor:
    return rows.abs() + columns < radius


def _gaussian(rows: Tensor, columns: Tensor, radius: float | Tensor) -> Tensor:
    return torch.exp(_squared(rows, columns) / (-2 * radius**2))


def _butterworth(rows: Tensor, columns: Tensor, radius: float | Tensor, order: int) -> Tensor:
    return 1 / (1 + (_squared(rows, columns) / radius**2) ** order)


def _mirror_own_columns(power: Tensor, width: int) -> Tensor:
    """Columns that hold both members of a pair get equal values: rounding alone would part the pair."""
    # A slice and no list of columns, which would be copied to the device.
    own = slice(None, None, width // 2 if width % 2 == 0 else width)  # zero, and an even width's Nyquist
    column = power[..., own]
    power = power.clone()
    power[..., own] = (column + column.flip(-2).roll(1, -2)) / 2
    return power


def _check_half_plane(mask: Tensor, height: int, width: int) -> None:
    expected = (height, width // 2 + 1)
    if mask.ndim < 2 or tuple(mask.shape[-2:]) != expected:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected [..., {expected[0]}, {expected[1]}]")
