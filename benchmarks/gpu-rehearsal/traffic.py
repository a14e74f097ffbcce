"""How many bytes a step moves: every operation reads its inputs and writes its outputs once.

What a cache holds back, or a library keeps between its own kernels, is not known here: a bound for operations
that are limited by memory, not for products.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import rehearsal  # before torch

# isort: split
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOTHING = (
    "aten::empty",
    "aten::new_empty",
    "aten::detach",
    "aten::record_stream",
    "aten::_local_scalar_dense",
)
"""Operations, by how their names begin, that touch no memory of the device."""
OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::_foreach_copy_", "aten::_foreach_zero_")
"""Operations that write over what they are given without a look at it."""


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered, by the phase of the log."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func._schema.name.startswith(NOTHING):
            self.bytes[rehearsal.LOG.phase] += _moved(func._schema, args, kwargs or {}, output)
        return output

    def outside(self, *phases: str) -> int:
        """Bytes moved in all phases but these."""
        return sum(size for phase, size in self.bytes.items() if phase not in phases)


def _moved(schema: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> int:
    values = [*zip(schema.arguments, args, strict=False)]
    values += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
    read, written = [], []
    for argument, value in values:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        found = _tensors(value)
        written += found if writes else []
        read += [] if writes and schema.name in OVERWRITES else found
    if not written:  # new tensors, or views of the old ones
        written = _tensors(output)
        places = {one.untyped_storage().data_ptr() for one in read}
        if any(one.untyped_storage().data_ptr() in places for one in written):
            return 0
    return sum(map(_size, read)) + sum(map(_size, written))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]


def _size(tensor: Tensor) -> int:
    """Bytes; what is repeated by a stride of 0 counts once."""
    own = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size]
    return math.prod(own) * tensor.element_size()
