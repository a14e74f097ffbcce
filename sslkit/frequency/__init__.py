"""Frequency-domain operations on batches of images: exact, fast, differentiable, without shifts."""

from sslkit.frequency.degradations import add_noise, blur, super_resolution
from sslkit.frequency.filters import apply_mask, corrupt, high_pass, low_pass
from sslkit.frequency.full_spectrum import focal_spectral_loss, spectral_loss
from sslkit.frequency.losses import SpectralError, masked_spectral_loss, spectral_error
from sslkit.frequency.masks import (
    SHAPES,
    Cutoff,
    band,
    butterworth,
    disc,
    full_mask,
    gaussian,
    kept_bins,
    rhombus,
    square,
    strongest,
    symmetrise,
)
from sslkit.frequency.resampling import amplitudes, random_field, spectrum_crop, swap_amplitude
from sslkit.frequency.spectra import power_spectrum, radial_profile

__all__ = [
    "SHAPES",
    "Cutoff",
    "SpectralError",
    "add_noise",
    "amplitudes",
    "apply_mask",
    "band",
    "blur",
    "butterworth",
    "corrupt",
    "disc",
    "focal_spectral_loss",
    "full_mask",
    "gaussian",
    "high_pass",
    "kept_bins",
    "low_pass",
    "masked_spectral_loss",
    "power_spectrum",
    "radial_profile",
    "random_field",
    "rhombus",
    "spectral_error",
    "spectral_loss",
    "spectrum_crop",
    "square",
    "strongest",
    "super_resolution",
    "swap_amplitude",
    "symmetrise",
]
