"""What a model costs in FLOPs, and what a device could do at most."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PEAKS = {
    r"B200": 2250,
    r"H200": 989,
    r"H100 PCIe": 756,
    r"H100 80GB HBM3": 989,
    r"A100": 312,
    r"L40S": 362,
    r"L4": 121,
    r"A10": 125,
    r"RTX 4090": 165,
    r"RTX 3090": 71,
}
"""Name of a GPU → TFLOP/s of dense bfloat16 products with float32 sums, from NVIDIA's data sheets."""


def counted_flops(loss: Callable[[], Tensor]) -> float:
    """FLOPs of a loss and its gradient, as torch counts them: matrix products and convolutions.

    A multiplication with its addition is two. Fourier transforms and everything between the products are
    left out, as usual for a model's FLOPs; attention is written out so that its products are seen.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that the device could do at most: a GPU's by its data sheet, a CPU's measured; 0: unknown."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return known_peak(name) if precision == "bfloat16" else 0.0
    return _measured_peak(precision) if device.type == "cpu" else 0.0


def known_peak(name: str) -> float:
    """FLOP/s of dense bfloat16 products of a GPU by its name; 0: not in the table."""
    found = [peak for chip, peak in PEAKS.items() if re.search(rf"\b{chip}\b(?! D| Laptop)", name)]
    return found[0] * 1e12 if found else 0.0


def _measured_peak(precision: str, side: int = 2048, repeats: int = 5) -> float:
    """The best of several products of two square matrices."""
    matrix = torch.rand(side, side, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
