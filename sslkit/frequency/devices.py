"""What devices can do: autocast that has to be off, and FFTs that some of them lack."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, on devices that know it: spectra are never computed in sixteen bits."""
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _knows_autocast(kind: str) -> bool:
    """A constant for the compiler: torch 2.6 can't translate the question."""
    return torch.amp.is_autocast_available(kind)


def fourier_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU, with one warning, where the device has no FFT (older MPS, some NPUs).

    For filters, the masked loss and corruptions; the other functions of `sslkit.frequency` do not fall back.
    """
    return device if device.type == "cpu" or _has_fourier(device) else torch.device("cpu")


@lru_cache
def _has_fourier(device: torch.device) -> bool:
    try:
        torch.fft.irfft2(torch.fft.rfft2(torch.zeros(2, 2, device=device)))
    except NotImplementedError:
        warnings.warn(f"{device.type} has no FFT: frequency work runs on the CPU", stacklevel=2)
        return False
    return True
