"""Which device a process takes, what it saves of it, and what runs out there. GPUs are imagined."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.device import autocast, idle_within, pick_device, pick_precision, to_device
from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError
from sslkit.training.loop import generators, session
from sslkit.training.loop.job import agreed
from sslkit.training.loop.session import Session
from sslkit.training.run import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two GPUs, as torch would tell of it; the devices that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "set_device",
        lambda device: chosen.append(
            torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        ),
    )
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.empty(size, device="meta"))
    return chosen


def placed(monkeypatch: pytest.MonkeyPatch, rank: int, world: int = 2) -> None:
    for name, value in {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }.items():
        monkeypatch.setenv(name, str(value))


# --------------------------------------------------------------------------------------------- which one


@pytest.mark.parametrize("asked", ["auto", "cuda", "cuda:0", "cuda:1"])
def test_each_process_takes_a_gpu_of_its_own(
    asked: str, gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for rank in (0, 1):
        placed(monkeypatch, rank)
        taken.append(pick_device(asked))
    assert taken == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert gpus == taken


def test_more_processes_than_gpus_are_refused(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed(monkeypatch, 0, world=4)
    with pytest.raises(UserError, match="4 processes and 2 CUDA devices"):
        pick_device("cuda:0")


def test_one_process_gets_the_gpu_it_names_and_keeps_its_numbers(gpus: list[torch.device]) -> None:
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [torch.device("cuda:1")]
    assert pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == CPU
    assert len(gpus) == 1


@pytest.mark.parametrize("wanted", ["cuda:1", "cuda:x", "tpu", "mps:7", "cpu:-3", ""])
def test_what_is_not_there_is_one_line(wanted: str) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError, match=f"no device '{wanted}' here"):
        pick_device(wanted)


@pytest.mark.parametrize(("world", "written"), [(1, "cuda:1"), (2, "cuda")])
def test_several_processes_write_no_number_into_config_toml(
    tiny: Callable[..., PretrainConfig], world: int, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("run")
    config = replace(config, run=replace(config.run, device="cuda:1"))
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    run = agreed(config.run)
    assert (run.device, run.devices) == (written, world)


# ------------------------------------------------------------------------------------------- what is saved


def test_a_run_on_the_cpu_opens_no_gpu(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("a GPU's generator was asked for")

    monkeypatch.setattr(torch.cuda, "get_rng_state", refused)
    monkeypatch.setattr(torch.cuda, "set_rng_state", refused)
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    path = checkpoint.write(tmp_path, 1, layer, optimizer, {})
    assert [name for name in load_file(path / "optimizer.safetensors") if "generator" in name] == [
        "generator.cpu"
    ]
    checkpoint.restore(path, layer, optimizer)


def test_the_generator_of_the_device_that_trains_is_saved_and_put_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = {0: torch.zeros(16, dtype=torch.uint8), 1: torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: states.update({device.index: state})
    )
    monkeypatch.setattr(generators, "device_of", lambda method: torch.device("cuda:1"))
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    path = checkpoint.write(tmp_path, 1, layer, optimizer, {})
    states[1] = torch.zeros(16, dtype=torch.uint8)
    checkpoint.restore(path, layer, optimizer)
    assert states[1].tolist() == list(range(16))
    assert states[0].sum() == 0


def test_on_a_cpu_neither_gpu_nor_pinned_memory_is_touched() -> None:
    """In a process of its own, where torch believes in a GPU: whatever opens it fails, as there is none."""
    program = """
import torch
torch.cuda.is_available = lambda: True
from sslkit.data.sources.fractal import *
from sslkit.data.loading.loader import data_loader
loader = data_loader([torch.ones(2)] * 4, [[0, 1], [2, 3]], torch.stack, 0)
assert not loader.pin_memory
print(len(list(loader)), torch.cuda.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", "False"], done.stderr


# ---------------------------------------------------------------------------------------- how it gets there


class Recorded(torch.Tensor):
    """Notes how it is moved."""

    moves: ClassVar[list[bool]] = []

    def to(self, *_: Any, non_blocking: bool = False, **__: Any) -> torch.Tensor:
        self.moves.append(non_blocking)
        return torch.zeros(1)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_cuda_is_not_waited_for(device: str) -> None:
    """CUDA's copies, which need a device, are looked at in tests/training/test_gpu_rehearsal.py."""
    Recorded.moves.clear()
    to_device({"image": torch.zeros(1).as_subclass(Recorded)}, torch.device(device))
    assert Recorded.moves == [False]


# --------------------------------------------------------------------------------------- what float32 means


@pytest.mark.parametrize(("precision", "rounded"), [("tf32", True), ("float32", False)])
def test_one_word_decides_for_products_and_convolutions(
    precision: Any, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        with autocast(torch.device("cuda"), precision):
            pass
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (rounded, rounded)
        newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
        assert newer in (None, "tf32" if rounded else "ieee")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (9, 0)])
def test_precisions_of_a_gpu(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    if capability < (8, 0):
        with pytest.raises(UserError, match="cuda has none, NVIDIA's GPUs do from Ampere on"):
            pick_precision("tf32", device)
    else:
        assert pick_precision("tf32", device) == "tf32"
        assert pick_precision("auto", device) == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_tf32_is_refused_where_there_is_none(device: str) -> None:
    with pytest.raises(UserError, match=f"tf32 .run.precision.: {device} has none"):
        pick_precision("tf32", torch.device(device))


# ---------------------------------------------------------------------------------------------- what runs out


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
        "[enforce fail at alloc_cpu.cpp:83] data. DefaultCPUAllocator: not enough memory: you tried to "
        "allocate 9 bytes.",
        "CUDA error: out of memory\nCUDA kernel errors might be reported at some other API call",
        "CUDA driver error: out of memory",
        "HIP error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "MPS backend out of memory (MPS allocated: 17.99 GB, other allocations: 1.23 GB, max allowed: 18.13 "
        "GB). Tried to allocate 512.00 MB on private pool.",
        "Invalid buffer size: 24.00 GiB",
        "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
        "std::bad_alloc",
    ],
)
def test_memory_that_runs_out_is_recognised(text: str) -> None:
    assert processes.memory_ran_out(RuntimeError(text))
    with pytest.raises(UserError, match=r"^step 7: out of memory$"), processes.watched(lambda: 7):
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
        RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("out of memory"),
        UserError("out of memory"),
    ],
)
def test_other_faults_are_not_taken_for_it(problem: Exception) -> None:
    assert not processes.memory_ran_out(problem)


def test_the_cpu_s_own_words_are_known() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert processes.memory_ran_out(told.value)


# ------------------------------------------------------------------------------------------- a lost process


class Stream:
    """What a GPU has still to do: nothing, or for some looks, or for ever."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize(("looks", "done"), [(0, True), (3, True), (float("inf"), False)])
def test_a_gpu_that_waits_for_ever_is_not_waited_for(
    looks: float, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", lambda: Stream(looks))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    assert idle_within(0.5, torch.device("cuda")) is done
    assert idle_within(0.0, CPU)


@pytest.mark.parametrize(("idle", "saved"), [(True, [7]), (False, [])])
def test_what_can_t_be_copied_is_not_saved(
    idle: bool, saved: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[int] = []
    one = Session.__new__(Session)
    one.device, one.console = torch.device("cuda:0"), Console()
    one.writer = SimpleNamespace(settle=lambda: None)  # type: ignore[assignment]
    monkeypatch.setattr(one, "_save", kept.append)
    monkeypatch.setattr(session, "world_size", lambda: 2)
    monkeypatch.setattr(session, "idle_within", lambda seconds, device: idle)
    one._keep(7)
    assert kept == saved
    assert ("step 7 is not saved: cuda:0 waits" in capsys.readouterr().err) is not idle
