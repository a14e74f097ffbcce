"""Recovery from memory that runs out: fewer images at once, and the state before the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock
from sslkit.models.memories import Memory
from sslkit.training.run.folder import RunFolder


class OutOfMemory(UserError):
    """There is too little memory for a step, and its update was not begun.

    Attributes:
        at_once: images in memory with which it may go on; 0: their number is not the matter.
    """

    def __init__(self, message: str, hint: str, at_once: int = 0) -> None:
        super().__init__(message, hint, code=1)
        self.at_once = at_once


def least(network: Any) -> tuple[int, int]:
    """The fewest images at once that a network takes, and the number of which they must be a multiple."""
    return getattr(network, "minimum_batch", 1), getattr(network, "multiple", 1)


def smaller(size: int, whole: int, minimum: int, multiple: int = 1) -> int:
    """About half of `size` images at once, such that no part of a batch of `whole` is under `minimum`.

    Args:
        multiple: each part must be one of this number: 2 where images are mixed in pairs.

    Raises:
        OutOfMemory: there is no such number.
    """
    for half in range(-(-size // 2), max(minimum, 1) - 1, -1):
        fits = half < size and not half % multiple
        if fits and (whole % half == 0 or whole % half >= minimum):
            return half
    raise OutOfMemory(
        f"out of memory with {size} of {whole} images at once, and fewer are impossible", processes.LESS
    )


def fewer(size: int, whole: int, network: Any, clock: Clock) -> int:
    """`smaller` in the middle of a run.

    Raises:
        OutOfMemory: there is no such number, or several processes train, of which the others already wait
            for this one's gradients.
    """
    here = processes.here(clock.step + 1)
    try:
        half = smaller(size, whole, *least(network))
    except OutOfMemory as none:
        raise OutOfMemory(here + none.message, none.hint) from None
    if collectives.world_size() > 1:
        cure = f"--resume goes on with {half} at once; the batch of a step stays"
        raise OutOfMemory(f"{here}out of memory with {size} images at once", cure, half)
    return half


class Buffers:
    """The buffers of a method that checkpoints hold: a forward pass moves statistics.

    Those of a `Memory` are left out: it is written after the step, and a bank may be as large as the data.

    Copied before each step, as memory may run out after they have moved. Random generators are not put back,
    which matters with drop path only. Room for copies is taken once, one tensor for all of a dtype, and
    written over: 0.1 ms a step for the 60 buffers of a ResNet-18 on one CPU core, where its step takes 0.4 s.
    """

    def __init__(self, method: nn.Module) -> None:
        saved = method.state_dict().keys()
        self._groups: dict[torch.dtype, list[tuple[nn.Module, str]]] = {}
        self.memories = [module for module in method.modules() if isinstance(module, Memory)]
        written_later = {id(part) for memory in self.memories for part in memory.modules()}
        for path, module in method.named_modules():
            if id(module) in written_later:
                continue
            for name, buffer in module.named_buffers(recurse=False):
                if f"{path}.{name}".lstrip(".") in saved:
                    self._groups.setdefault(buffer.dtype, []).append((module, name))
        self._flat = {dtype: _flat(self._present(dtype)) for dtype in self._groups}
        self._copies = {dtype: _parts(flat, self._present(dtype)) for dtype, flat in self._flat.items()}

    @contextmanager
    def kept(self, clock: Clock) -> Iterator[None]:
        """Whatever fails inside leaves them as they were, so that the last finished step can be saved.

        Raises:
            OutOfMemory: memory ran out.
        """
        for dtype, copies in self._copies.items():
            torch._foreach_copy_(copies, self._present(dtype))
        try:
            yield
        except Exception as problem:
            self.restore_()
            if not processes.memory_ran_out(problem):
                raise
            raise OutOfMemory(f"{processes.here(clock.step + 1)}out of memory", processes.LESS) from None

    def restore_(self) -> None:
        """Put back what `kept` found, and forget what was noted since."""
        for memory in self.memories:
            memory.forget()
        for dtype, copies in self._copies.items():
            torch._foreach_copy_(self._present(dtype), copies)

    def settle(self, clock: Clock, finite: Tensor) -> None:
        """Let every memory write what the step has noted, in the order in which the method has them."""
        for memory in self.memories:
            memory.settle(clock, finite)

    def restore_unless_(self, finite: Tensor) -> None:
        """`restore_` if a bool on their device says no, which the host does not learn; a few launches.

        A choice and no product, as 0 · NaN is NaN.
        """
        for dtype, flat in self._flat.items():
            present = self._present(dtype)
            torch._foreach_copy_(present, _parts(torch.where(finite, _flat(present), flat), present))

    def _present(self, dtype: torch.dtype) -> list[Tensor]:
        return [getattr(module, name) for module, name in self._groups[dtype]]


def _flat(tensors: list[Tensor]) -> Tensor:
    """All values, one tensor after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _parts(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of what `_flat` made, in the shapes of the tensors `like`."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def note_at_once(run: RunFolder, asked: int, micro_batch: int) -> None:
    """Write into run.json how many images at once there was memory for.

    Before any checkpoint: that of the step may exist already, and is never rewritten.

    Args:
        asked: the setting with which that was found.
    """
    run.update(at_once={"asked": asked, "micro_batch": micro_batch})


def images_at_once(run: RunFolder, asked: int, state: Mapping[str, Any]) -> int:
    """With how many images at once a run goes on: the fewest that it has come to; 0: the whole batch.

    Args:
        asked: the setting. Where it is another one than when a number was found, it has the last word.
        state: of the newest checkpoint; may be empty.
    """
    known = run.facts.get("at_once") or {}
    if known and known["asked"] != asked:
        known = {}
        run.update(at_once=None)
    saved = state.get("micro_batch", 0) if state.get("config", {}).get("run.micro_batch") == asked else 0
    return min((number for number in (asked, saved, known.get("micro_batch", 0)) if number), default=0)
