"""The machine: devices and their FFTs, cores, memory, disk, and what the operating system allows."""

from __future__ import annotations

import locale
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from sslkit.core.console import counted
from sslkit.core.device import pick_device, pick_precision
from sslkit.core.errors import first_line
from sslkit.core.files import text_of
from sslkit.data.loading.limits import open_files
from sslkit.data.loading.workers import reading_workers, usable_cores
from sslkit.testing.doctor.finding import Finding
from sslkit.testing.doctor.operations import operations_finding

GIGABYTE = 1e9
SHARED_MEMORY = 0.5e9
"""Bytes; workers hand batches over in /dev/shm, and containers often give 64 MB."""
DISK = 5e9
OPEN_FILES = 1024


def machine_findings(runs: Path) -> Iterator[Finding]:
    """Everything about the machine; `runs` is where runs would be written."""
    for device in devices():
        yield _device(device)
        yield fft_finding(device)
        yield operations_finding(device)
    yield _choice()
    yield _cores()
    yield from _memory()
    yield from _shared_memory()
    yield _disk(runs)
    yield from _open_files()
    yield _locale()


def devices() -> list[torch.device]:
    """The CPU and all accelerators."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return found + [torch.device("mps")] * torch.backends.mps.is_available()


def fft_finding(device: torch.device) -> Finding:
    """`rfft2` on the device against the definition of the transform, sums of products in float64."""
    images = torch.rand(2, 12, 10, generator=torch.Generator().manual_seed(0))
    first, second = (_dft_matrix(side) for side in (12, 10))
    expected = (first @ images.to(torch.complex128) @ second)[..., :6]
    try:
        difference = float((torch.fft.rfft2(images.to(device)).cpu() - expected).abs().max())
    except (RuntimeError, NotImplementedError) as problem:
        return Finding(
            f"FFT {device}",
            "warning",
            f"none: {first_line(problem)}",
            "filters are computed on the CPU: slower",
        )
    text = f"rfft2 is off by {difference:.0e} from the definition"
    return Finding.judged(
        f"FFT {device}", difference < 1e-5, text, "reinstall torch; do not train here", "error"
    )


def _dft_matrix(side: int) -> torch.Tensor:
    """exp(-2πi jk / side), complex128 [side, side]."""
    steps = torch.arange(side, dtype=torch.float64)
    return torch.exp(torch.outer(steps, steps) * (-2j * torch.pi / side))


def _device(device: torch.device) -> Finding:
    if device.type != "cuda":
        text = counted(torch.get_num_threads(), "thread") if device.type == "cpu" else "Apple's GPU"
        return Finding(str(device), "ok", f"{text}, {pick_precision('auto', device)}")
    try:
        free, total = torch.cuda.mem_get_info(device)
        torch.ones(8, device=device).sum().item()
    except RuntimeError as problem:
        reason = first_line(problem)
        return Finding(str(device), "error", f"does not work: {reason}", "check nvidia-smi and the driver")
    size = f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
    text = f"{torch.cuda.get_device_name(device)}, {size}, {pick_precision('auto', device)}"
    return Finding.judged(str(device), free > 0.2 * total, text, "another program uses it: nvidia-smi")


def _choice() -> Finding:
    device = pick_device()
    return Finding("auto", "ok", f"would train on {device} in {pick_precision('auto', device)}")


def _cores() -> Finding:
    """Cores that this process may use, by affinity and by a container's limit."""
    usable, limit = usable_cores(), core_limit(Path("/sys/fs/cgroup"))
    workers = counted(reading_workers(pick_device().type == "cpu"), "worker")
    text = f"{usable} of {os.cpu_count()}, {workers} by default"
    if limit is None or limit >= usable:
        return Finding("cores", "ok", text)
    return Finding(
        "cores",
        "warning",
        f"{text}, and the container may use {limit:g}",
        f"--workers {max(1, int(limit) - 1)}, and OMP_NUM_THREADS={max(1, int(limit))}",
    )


def core_limit(root: Path) -> float | None:
    """Cores' worth of time that a control group allows, version 2 or 1; None: no limit."""
    quota, period = [*text_of(root / "cpu.max").split(), "", ""][:2]
    if not period:
        files = (root / "cpu" / f"cpu.cfs_{word}_us" for word in ("quota", "period"))
        quota, period = (text_of(file).strip() for file in files)
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _memory() -> Iterator[Finding]:
    """A container's limit of memory, if there is one."""
    root = Path("/sys/fs/cgroup")
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        word = text_of(file).strip()
        if word.isdigit() and int(word) < 1 << 50:
            gigabytes = int(word) / GIGABYTE
            cure = "more memory for the container, or --workers 0 and a smaller --micro-batch"
            yield Finding.judged("memory", gigabytes > 4, f"the container may use {gigabytes:.1f} GB", cure)


def _shared_memory() -> Iterator[Finding]:
    place = Path("/dev/shm")
    if place.is_dir():
        usage = shutil.disk_usage(place)
        text = f"{usage.free / GIGABYTE:.2f} of {usage.total / GIGABYTE:.2f} GB free"
        cure = "docker run --shm-size=2g, or --workers 0"
        yield Finding.judged("/dev/shm", usage.free >= SHARED_MEMORY, text, cure)


def _disk(runs: Path) -> Finding:
    """Free space where runs would be, and whether that place can be written."""
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        return Finding("disk", "error", f"{place} can't be written", "work in another folder, or give --out")
    free = shutil.disk_usage(place).free
    return Finding.judged(
        "disk", free >= DISK, f"{free / GIGABYTE:.1f} GB free for {runs}", "free some, or --out"
    )


def _open_files() -> Iterator[Finding]:
    if sys.platform == "win32":
        return
    limit = open_files()
    text = "no limit" if limit is None else f"{limit} at once"
    well = limit is None or limit >= OPEN_FILES
    yield Finding.judged("open files", well, text, f"ulimit -n {OPEN_FILES * 4}")


def _locale() -> Finding:
    names = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    well = names <= {"utf-8", "utf8"}
    return Finding.judged(
        "locale", well, " and ".join(sorted(names)), "export LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    )
