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
    r"B200": 2250,  # Blackwell data sheet: 4,500 with sparsity, HGX at 1,000 W
    r"H200": 989,  # nvidia.com/en-us/data-center/h200: 1,979 with sparsity, SXM
    r"H100 PCIe": 756,  # H100 data sheet: 1,513 with sparsity
    r"H100 80GB HBM3": 989,  # H100 data sheet: 1,979 with sparsity, SXM
    r"A100": 312,  # A100 data sheet nvidia-1758950: SXM and PCIe
    r"L40S": 362,  # L40S data sheet 28413
    r"L4": 121,  # Ada architecture white paper 2.1: 242 with sparsity
    r"A10": 125,  # A10 data sheet
}
"""Name of a GPU → TFLOP/s of dense bfloat16 products with float32 sums, as NVIDIA's sheets say.

Checked 2026-11-21 through what other public projects quote of these sheets, not in the sheets themselves.
GeForce cards are left out: what is quoted of theirs differs by a factor of two.
"""

_OTHERS = re.compile(r"\b(NVL|MIG)\b")
"""Cards and parts of cards by the same names that do less."""


def counted_flops(loss: Callable[[], Tensor]) -> float:
    """FLOPs of a loss and its gradient, as torch counts them: matrix products and convolutions.

    A multiplication with its addition is two. Fourier transforms and everything between the products are
    left out, as usual for a model's FLOPs; attention is written out so that its products are seen, and what
    is compiled runs as it was before.
    """
    eager = torch.compiler.set_stance("force_eager")
    with eager, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that the device could do at most: a GPU's by its data sheet, a CPU's measured; 0: unknown."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return known_peak(name) if precision in ("bfloat16", "float16") else 0.0
    return _measured_peak(precision) if device.type == "cpu" else 0.0


def known_peak(name: str) -> float:
    """FLOP/s of dense bfloat16 products of a GPU by its name; 0: not in the table."""
    found = [peak for chip, peak in PEAKS.items() if re.search(rf"\b{chip}\b", name)]
    return found[0] * 1e12 if found and not _OTHERS.search(name) else 0.0


def _measured_peak(precision: str, side: int = 2048, repeats: int = 5) -> float:
    """The best of several products of two square matrices."""
    matrix = torch.rand(side, side, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
