"""What training asks of a device beside matrix products: keyed draws, decompositions, copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.core import rng
from sslkit.core.device import to_device
from sslkit.core.errors import first_line
from sslkit.testing.doctor.finding import Finding


def operations_finding(device: torch.device) -> Finding:
    """Each of CHECKS on the device: none of them may give other figures than on the CPU."""
    name, wrong = f"torch {device}", []
    for what, holds in CHECKS.items():
        try:
            if not holds(device):
                wrong.append(f"{what}: other values than on the CPU")
        except (RuntimeError, NotImplementedError) as problem:
            wrong.append(f"{what}: {first_line(problem)}")
    text = "; ".join(wrong) or f"{', '.join(CHECKS)} as on the CPU"
    return Finding.judged(name, not wrong, text, "another version of torch, or --device cpu", "error")


def _draws(device: torch.device) -> bool:
    """Integers of 64 bits wrap around and shift as NumPy's do: every draw is one of SplitMix64."""
    index = torch.arange(1000)
    return torch.equal(_uniform(index.to(device)).cpu(), _uniform(index))


def _uniform(index: Tensor) -> Tensor:
    return rng.uniform(0, 3, index, "doctor")


def _singular_values(device: torch.device) -> bool:
    matrix = _matrix()
    return _near(torch.linalg.svdvals(matrix.to(device)), torch.linalg.svdvals(matrix.double()))


def _orthogonal(device: torch.device) -> bool:
    """Q is orthogonal and Q R the matrix; their signs are free."""
    matrix = _matrix()
    q, r = torch.linalg.qr(matrix.to(device))
    return _near(q @ r, matrix.double()) and _near(q.mT @ q, torch.eye(q.shape[1], dtype=torch.float64))


def _copies(device: torch.device) -> bool:
    """A batch is whole on the device though the host drops its own at once and writes over its memory."""
    for number in range(8):
        copy = to_device({"image": torch.full((1 << 20,), float(number))}, device)["image"]
        torch.full((1 << 20,), -1.0)  # most likely where the batch was
        if not bool((copy == number).all()):
            return False
    return True


def _matrix() -> Tensor:
    return torch.rand(40, 12, generator=torch.Generator().manual_seed(0))


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found.cpu().double() - expected).abs().max() < 1e-4)


CHECKS: dict[str, Callable[[torch.device], bool]] = {
    "keyed draws": _draws,
    "singular values": _singular_values,
    "QR": _orthogonal,
    "copies": _copies,
}
