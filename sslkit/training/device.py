"""Which device, which precision, and how a batch gets there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sslkit import place
from sslkit.config import AUTO
from sslkit.errors import UserError, nearest

Precision = Literal["float32", "bfloat16"]


def pick_device(wanted: str = AUTO) -> torch.device:
    """ "auto": a CUDA device, else Apple's, else the CPU. Of several processes each gets a CUDA device.

    Raises:
        UserError: no such device here, or fewer than processes.
    """
    if place.placed() and torch.cuda.is_available() and wanted in (AUTO, "cuda"):
        if place.local_count() > torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UserError(f"{place.local_count()} processes and {count} CUDA devices", f"--devices {count}")
        torch.cuda.set_device(place.local())
        return torch.device("cuda", place.local())
    if wanted == AUTO:
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        torch.zeros(1, device=wanted)
        return torch.device(wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"no device {wanted!r} here", f"--device {pick_device()} works") from None


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """ "auto": bfloat16 where the chip multiplies it natively, else float32."""
    if wanted in ("float32", "bfloat16"):
        return "bfloat16" if wanted == "bfloat16" else "float32"
    if wanted != AUTO:
        known = (AUTO, *get_args(Precision))
        raise UserError(f"--precision: {wanted!r} is not one of {', '.join(known)}", nearest(wanted, known))
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX, from the kernel's own list; elsewhere than on Linux the answer is no."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Mixed precision for the encoder; frequency work leaves it by itself."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """A batch's tensors on the device. Pictures travel as uint8 and become float in [0, 1] there."""
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    return {
        name: value.float().div_(255) if value.dtype == torch.uint8 else value
        for name, value in moved.items()
    }
