"""Randomness without state: every draw is a function of (seed, epoch, image index, stream).

Nothing here remembers anything, so results do not depend on the number of workers or on where a run
was interrupted: image 17 of epoch 3 gets the same crop on any machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

_WORD = (1 << 64) - 1


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _stream_key(seed: int, stream: str) -> int:
    """A 64-bit key for one named use of one seed; streams with different names are independent."""
    return _hashed(seed, stream)


@lru_cache(maxsize=256)
def _hashed(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, epoch: int, index: int, stream: str = "view") -> np.random.Generator:
    """A NumPy generator for one image of one epoch (Philox: counter based, so creating one is cheap)."""
    key: Any = _Key(_stream_key(seed, stream), ((epoch << 40) ^ index) & _WORD)
    return np.random.Generator(np.random.Philox(key))


class _Key(ISeedSequence):
    """Philox's key as a seed; for `Philox(key=…)` NumPy asks the system for entropy and throws it away."""

    def __init__(self, *words: int) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.array(self.words, dtype)


def uniform(seed: int, epoch: int, index: Tensor, stream: str) -> Tensor:
    """One draw from U[0, 1) per image, on the device of `index`.

    Args:
        index: int64 [B], the images' stable positions in the data set.
        stream: what the draw is for; different names give independent draws.

    Returns:
        float32 [B]; the same numbers on every device (integer arithmetic, SplitMix64, Steele et al. 2014).
    """
    return uniforms(seed, epoch, index, [stream])[0]


def uniforms(seed: int, epoch: int, index: Tensor, streams: Sequence[str]) -> Tensor:
    """`uniform` for several streams, float32 [streams, *index's shape], in hardly more operations."""
    return _shift_right(_bits(seed, epoch, index, streams), 40).to(torch.float32) * 2.0**-24


def normal(seed: int, epoch: int, index: Tensor, shape: Sequence[int], stream: str) -> Tensor:
    """Independent draws from N(0, 1) for every image, on the device of `index` and without a host sync.

    Args:
        index: int64 [B], the images' stable positions in the data set.
        shape: of one image's draws.
        stream: what the draws are for; different names give independent draws.

    Returns:
        float32 [B, *shape]: SplitMix64 counts through each image's draws, Box–Muller makes two normals of one
        word. At most 5.77 from zero, as the uniforms behind them have 24 bits.
    """
    count = math.prod(shape)
    counter = torch.arange((count + 1) // 2, device=index.device)
    bits = _mix(_bits(seed, epoch, index, [stream])[0, :, None] + counter * _signed(0x9E3779B97F4A7C15))
    radius = ((_shift_right(bits, 40) + 1) * 2.0**-24).log_().mul_(-2).sqrt_()  # of (0, 1]: no log of zero
    angle = (_shift_right(bits, 8) & 0xFFFFFF) * (math.pi * 2.0**-23)
    pair = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)  # [B, 2 · half]
    return pair[:, :count].reshape(-1, *shape)


def _bits(seed: int, epoch: int, index: Tensor, streams: Sequence[str]) -> Tensor:
    """64 random bits for each stream and image, int64 [streams, *index's shape]."""
    keys = [_signed((_stream_key(seed, stream) + epoch * 0x9E3779B97F4A7C15) & _WORD) for stream in streams]
    mixed = _mix(index.to(torch.int64))
    return _mix(torch.stack([mixed + key for key in keys]))


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >= (1 << 63) else word


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch has no uint64 arithmetic, and `>>` on int64 copies the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64; overflow wraps, as it must."""
    value = value + _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shift_right(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift_right(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift_right(value, 31)


def permutation(count: int, seed: int, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
    """Positions `start` … `stop` of a keyed permutation of `range(count)`.

    A balanced Feistel network over the smallest even number of bits that holds `count`, with cycle
    walking for values that fall outside. Time and memory grow with `stop - start`, not with `count`:
    a sampler can resume in the middle of ten billion images at once.

    Returns:
        int64 [stop - start], each value in [0, count), no value twice in one epoch.
    """
    if not 0 <= start <= stop <= count:
        raise ValueError(f"permutation: 0 <= start <= stop <= {count} expected, got {start}, {stop}")
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    keys = np.random.Philox(key=np.array([_stream_key(seed, "order"), epoch], dtype=np.uint64)).random_raw(6)
    values = np.arange(start, stop, dtype=np.uint64)
    pending = np.arange(values.size)
    while pending.size:
        values[pending] = _feistel(values[pending], half, keys)
        pending = pending[values[pending] >= count]
    return values.astype(np.int64)


def sample(count: int, most: int, seed: int) -> list[int]:
    """At most so many of `range(count)`, ascending: the first of `permutation`."""
    return sorted(permutation(count, seed, 0, 0, min(most, count)).tolist())


def _feistel(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Six rounds on 2·half bits: a bijection whatever the round function is."""
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_mix_words(right + key) & mask)
    return (left << np.uint64(half)) | right


def _mix_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser on uint64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
