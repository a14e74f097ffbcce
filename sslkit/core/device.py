"""Which device, which precision, and how a batch gets there."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sslkit.core.config.setting import AUTO
from sslkit.core.distributed import environment
from sslkit.core.errors import UserError, nearest
from sslkit.core.files import text_of

Precision = Literal["float32", "tf32", "bfloat16", "float16"]


def pick_device(wanted: str = AUTO) -> torch.device:
    """ "auto": a CUDA device, else Apple's, else the CPU. It becomes torch's current one.

    With several processes each gets a CUDA device of its own, whatever number was asked for: a config.toml
    may name the device of the one process that wrote it.

    Raises:
        UserError: no such device here, or fewer of them than processes.
    """
    if environment.placed() and torch.cuda.is_available() and kind(wanted) in (AUTO, "cuda"):
        if environment.local_count() > torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UserError(
                f"{environment.local_count()} processes and {count} CUDA devices", f"--devices {count}"
            )
        torch.cuda.set_device(environment.local())
        return torch.device("cuda", environment.local())
    if wanted == AUTO:
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(wanted)
        if device.type == "cuda" and device.index is not None:
            # Random generators, pinned memory and libraries' handles are those of the current device.
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"no device {wanted!r} here", f"--device {pick_device()} works") from None


def kind(device: str) -> str:
    """ "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def idle_within(seconds: float, device: torch.device) -> bool:
    """Whether the device finishes all the work it was given within that time.

    It is not simply waited for: an exchange with a process that is gone never finishes.
    """
    if device.type != "cuda":
        return True
    now = torch.cuda.Event()  # type: ignore[no-untyped-call]
    end = time.monotonic() + seconds
    now.record(torch.cuda.current_stream(device))
    while not now.query():  # type: ignore[no-untyped-call]
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """ "auto": bfloat16 where the chip multiplies it natively, float16 where a GPU has only that (V100, T4),
    else float32. Before it trains a network for which that is only likely, pretrain/fastest.py measures.

    Raises:
        UserError: no such precision, or not on this device.
    """
    known = (AUTO, *get_args(Precision))
    if wanted not in known:
        raise UserError(f"--precision: {wanted!r} is not one of {', '.join(known)}", nearest(wanted, known))
    if wanted == "tf32" and not _ampere(device):
        problem = f"--precision tf32 (run.precision): {device.type} has none, NVIDIA's GPUs do from Ampere on"
        raise UserError(problem, "--precision float32")
    if wanted == "float16" and device.type not in ("cuda", "cpu"):
        raise UserError(
            f"--precision float16 (run.precision) is not tried on {device.type}", "--precision float32"
        )
    if wanted != AUTO:
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bfloat16" if _ampere(device) else "float16" if _volta(device) else "float32"
    return "bfloat16" if device.type == "cpu" and cpu_bfloat16() else "float32"


def _ampere(device: torch.device) -> bool:
    """Whether it is an NVIDIA GPU that multiplies bfloat16 and TF32: of compute capability 8.0 or newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def _volta(device: torch.device) -> bool:
    """Whether it multiplies float16 much faster than float32. GTX 16xx do not, though as new as the T4."""
    new = torch.cuda.get_device_capability(device)[0] >= 7
    return new and "GTX 16" not in torch.cuda.get_device_name(device)


def cpu_bfloat16(root: Path = Path("/")) -> bool | None:
    """Whether it multiplies bfloat16: AVX512-BF16 or AMX in the kernel's own list. None: unknown.

    It is known on Linux only, for chips of Intel and AMD.

    Args:
        root: where `proc` is.
    """
    flags = re.search(r"^flags\s*:(.*)$", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    return any(name in flags[1].split() for name in ("avx512_bf16", "amx_bf16")) if flags else None


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Mixed precision for the encoder; functions of frequencies switch it off themselves.

    On CUDA it also decides, until the next call, what float32 means: TF32 in products and convolutions alike
    with "tf32", else in neither. torch by itself rounds those of convolutions alone, so that a CNN's float32
    would differ from a ViT's. It stays after the context, as the backward pass needs it too.
    """
    if device.type == "cuda":
        _round_float32(precision == "tf32")
    half = precision in ("bfloat16", "float16")
    return torch.autocast(device.type, getattr(torch, precision)) if half else nullcontext()


def _round_float32(to_tf32: bool) -> None:
    # The older of torch's two sets of switches: it is in every version and keeps the newer one in step, where
    # torch refuses to read the older one after the newer one alone was set.
    torch.backends.cuda.matmul.allow_tf32 = to_tf32
    torch.backends.cudnn.allow_tf32 = to_tf32


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """A batch's tensors on the device. Pictures travel as uint8 and become float in [0, 1] there.

    Pictures are [B, C, H, W], or [B, T, C, H, W]; bytes of a text or a map of labels stay what they are.

    Only CUDA copies what is not pinned before `to` returns; on MPS the batch could be freed before its copy.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if device.type == "cuda":
        moved = _sent_beside(tensors, device)
    else:
        moved = {name: value.to(device) for name, value in tensors.items()}
    pictures = {name for name, value in moved.items() if value.dtype == torch.uint8 and value.ndim >= 4}
    return {name: _fractions(value) if name in pictures else value for name, value in moved.items()}


def _sent_beside(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a CUDA device, copied by a stream of their own while the device computes.

    The host is a step ahead of the device wherever that is busy, so the batch of the next step arrives during
    this one, and no batch need be read earlier. What is computed with it waits for the copies, on the device.
    """
    here, beside = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(beside):
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    here.wait_stream(beside)
    for value in moved.values():
        value.record_stream(here)  # else their memory could be copied into while `here` still reads it
    return moved


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _fractions(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]: a CPU is faster in two passes, elsewhere one moves half of the bytes."""
    return pixels.float().div_(255) if pixels.device.type == "cpu" else pixels / 255
