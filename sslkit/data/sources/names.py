"""A million file names without a million Python objects.

A list of texts costs some 60 bytes a name beyond its letters, and every process that only looks at one
writes into its reference count, so that a forked worker ends with its own copy of all. Here all names are
one run of bytes. (Labels are an ordinary tuple: pre-training, which has the large sets, has none.)
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 14  # names handled at once: what is temporary stays small beside the whole


class Names(Sequence[str]):
    """An immutable sequence of texts, kept as the bytes that the file system knows them by.

    It equals any sequence of the same texts, and has no hash. What is not UTF-8 in a name survives
    (`os.fsencode`, `os.fsdecode`).
    """

    __slots__ = ("_blob", "_ends")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blob, self._ends = _joined(map(os.fsencode, texts))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        """`texts` itself where it is Names already."""
        return texts if isinstance(texts, Names) else cls(texts)

    @classmethod
    def of_bytes(cls, names: Iterable[bytes]) -> Names:
        """The names as `os.fsencode` has them, taken one after the other."""
        return cls.of_parts(*_joined(names))

    @classmethod
    def of_parts(cls, blob: bytes, ends: NDArray[np.int64]) -> Names:
        """From all bytes, and where each name begins and the last one ends, int64 [N + 1]."""
        made = cls.__new__(cls)
        made._blob, made._ends = blob, ends
        return made

    @property
    def parts(self) -> tuple[bytes, NDArray[np.int64]]:
        """What `of_parts` takes."""
        return self._blob, self._ends

    def __reduce__(self) -> tuple[Callable[..., Names], tuple[Any, ...]]:
        return Names.of_parts, self.parts

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | Names:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        position = range(len(self))[index]
        return os.fsdecode(self._blob[self._ends[position] : self._ends[position + 1]])

    def take(self, indices: Iterable[int]) -> Names:
        """The names at `indices`, which count from 0, in that order."""
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        first, last = self._ends[chosen].tolist(), self._ends[chosen + 1].tolist()
        return Names.of_bytes(self._blob[start:stop] for start, stop in zip(first, last, strict=True))

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.as_bytes())

    def as_bytes(self) -> Iterator[bytes]:
        """Each name as bytes."""
        for first in range(0, len(self), _CHUNK):
            ends = self._ends[first : first + _CHUNK + 1].tolist()
            yield from (self._blob[start:stop] for start, stop in pairwise(ends))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._blob == other._blob and np.array_equal(self._ends, other._ends)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # it would have to be the hash of the equal tuple of a million texts

    def __repr__(self) -> str:
        return f"Names({[*self[:3]]}{f' and {len(self) - 3} more' if len(self) > 3 else ''})"


def _joined(names: Iterable[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    blob, ends = bytearray(), array("q", [0])
    for name in names:
        blob += name
        ends.append(len(blob))
    return bytes(blob), np.array(ends, dtype=np.int64)


def common_folder(names: Iterable[bytes]) -> bytes:
    """The deepest folder, with its separator, that all names lie in; empty where there is none."""
    separator, common = os.fsencode(os.sep), None
    for name in names:
        if common is None:
            common = name
        elif not name.startswith(common):
            same = (mine == theirs for mine, theirs in zip(common, name, strict=False))
            common = common[: next((i for i, equal in enumerate(same) if not equal), len(name))]
    return b"" if common is None else common[: common.rfind(separator) + 1]
