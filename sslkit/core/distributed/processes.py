"""Processes that train together: how one joins the others, and what their hosts exchange.

Tensors travel in torch's default group, on their device (see collectives.py). Objects and requests to
stop travel here, in a gloo group of their own, so that no host waits for a device. With one process these
are no-ops.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sslkit.core.distributed import environment
from sslkit.core.distributed.collectives import end_group, rank, world_size
from sslkit.core.errors import UserError

Value = TypeVar("Value")

LESS = "a smaller --size or backbone, or --precision bfloat16"
"""The cure where fewer images at once don't help."""

_ANSWER = 5.0  # seconds for the others to say that they are there


class Lost(UserError):
    """Another process is gone, or has not answered for the whole time-out."""


class Group:
    """This process's connection to the others, from `joined` on."""

    def __init__(self, store: Any, patience: timedelta) -> None:
        self.store = store
        self.hosts: Any = dist.new_group(backend="gloo", timeout=patience)
        self._asked: tuple[Any, Tensor] | None = None

    def exchange(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over the processes, as of the call before this one; zeros at first.

        One call late, so that no host waits for another.
        """
        mine = torch.tensor(list(values))
        work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self.hosts, async_op=True)
        before, self._asked = self._asked, (work, mine)
        if before is None:
            return [0] * len(mine)
        before[0].wait()
        return [int(value) for value in before[1].tolist()]

    def silent(self) -> str:
        """The processes that do not answer within _ANSWER seconds, for a message."""
        asked, names = time.monotonic(), {str(number) for number in range(world_size())}
        with suppress(Exception):  # the store may be gone as well
            self.store.set(f"sslkit/here/{rank()}", "yes")
            while names and time.monotonic() - asked < _ANSWER:
                names -= {name for name in names if self.store.check([f"sslkit/here/{name}"])}
                time.sleep(0.1)
        return ", ".join(sorted(names - {str(rank())}, key=int)) or "unknown"


_group: Group | None = None
_ended: Group | None = None


@contextmanager
def joined(device: torch.device, patience: float) -> Iterator[None]:
    """Inside, this process exchanges with the others, if it was started as one of several.

    Args:
        patience: seconds after which one that says nothing counts as lost.
    """
    global _group, _ended
    if not environment.placed() or dist.is_initialized():
        yield
        return
    for name, value in environment.variables().items():
        os.environ.setdefault(name, value)
    limit = timedelta(seconds=patience)
    store, number, count = next(rendezvous("env://", timeout=limit))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)
    _group = Group(store, limit)
    try:
        yield
    finally:
        _ended, _group = _group, None  # kept, for the reason of `collectives.end_group`
        with suppress(RuntimeError):  # the others may be gone
            end_group()


@contextmanager
def watched(step: Callable[[], int]) -> Iterator[None]:
    """torch's errors about a process that is gone become `Lost`, which names the silent ones.

    Memory that runs out where nothing else handles it becomes a UserError.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if memory_ran_out(problem):
            raise UserError(f"{here(step())}out of memory", LESS, code=1) from None
        if _group is None or not _of_others(str(problem)):
            raise
        raise Lost(
            f"{here(step())}lost contact with the others (silent: {_group.silent()})",
            "see what the other processes say; --resume goes on from the newest checkpoint",
            code=1,
        ) from None


_OUT_OF_MEMORY = (
    "out of memory",  # "CUDA error: …", "CUDA driver error: …", "HIP error: …", "MPS backend …", NCCL's
    "allocate memory",  # DefaultCPUAllocator, by system: "can't …", "not enough memory: you tried to …"
    "you tried to allocate",
    "invalid buffer size",  # MPS, of one tensor that is too large
    "alloc_failed",  # CUBLAS_STATUS_…, CUDNN_STATUS_…, CUFFT_…, CUSOLVER_STATUS_…, CUSPARSE_STATUS_…
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_…, …_HOST_…
    "unable to find an engine",  # cuDNN, where no workspace fits: torch swallows what the allocator said
    "unable to find a valid cudnn algorithm",
    "bad_alloc",  # oneDNN's and other C++
)


def memory_ran_out(problem: Exception) -> bool:
    """Whether the exception says so. Only torch's allocators on GPUs have an exception of their own."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem).lower() for text in _OUT_OF_MEMORY)


def here(step: int) -> str:
    """ "process 1 of 2, step 7: ", as far as there are several, and a step."""
    process = [f"process {rank()} of {world_size()}"] if world_size() > 1 else []
    parts = [*process, *([f"step {step}"] if step else [])]
    return f"{', '.join(parts)}: " if parts else ""


def _of_others(text: str) -> bool:
    words = (
        "closed by peer",
        "timed out",
        "timeout",
        "reset by peer",
        "gloo",
        "nccl",
        "broken pipe",
        "store",
    )
    return any(word in text.lower() for word in words)


def exchange(values: Sequence[int]) -> list[int]:
    """The largest of each value over the processes; with several, as of the call before this one."""
    return list(values) if _group is None else _group.exchange(values)


def post(topic: str, number: int) -> None:
    """A number for the others, which they find even after this process has ended."""
    if _group is not None:
        with suppress(Exception):  # the store may be gone
            _group.store.set(f"sslkit/{topic}", str(number))


def read_post(topic: str) -> int:
    """The number that a process has posted; 0: none has."""
    if _group is not None:
        with suppress(Exception):
            if _group.store.check([f"sslkit/{topic}"]):
                return int(_group.store.get(f"sslkit/{topic}"))
    return 0


def broadcast_object(value: Value) -> Value:
    """The first process's value."""
    if _group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group.hosts)
    return values[0]


def all_gather_objects(value: Value) -> list[Value]:
    """The values of all processes, in the order of ranks."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_group.hosts)
    return values


def add_up(values: Tensor) -> None:
    """Make a tensor on the CPU the sum of those of all processes."""
    if _group is not None:
        dist.all_reduce(values, group=_group.hosts)


def wait() -> None:
    """Until every process is here."""
    all_gather_objects(None)


def run_on_first(work: Callable[[], Value]) -> Value:
    """The result of `work` in the first process, sent to all; if it fails there, the others exit silently."""
    problem: UserError | None = None
    result: Any = None
    if rank() == 0:
        try:
            result = work()
        except UserError as found:
            problem = found
    code, result = broadcast_object((problem.code if problem else 0, result))
    if problem:
        raise problem
    if code:
        raise SystemExit(code)
    return result  # type: ignore[no-any-return]
