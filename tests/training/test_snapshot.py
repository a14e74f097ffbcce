"""Copies that a save writes: where they lie in pinned memory, and what is done where none can be had.

On a device they are tried in tests/training/test_gpu_rehearsal.py.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from sslkit.training.run import snapshot
from sslkit.training.run.snapshot import BLOCK, Place, Room, Snapshot, copied, packed


def test_places_lie_apart_and_within_their_blocks() -> None:
    numbers = random.Random(0)
    sizes = [numbers.choice([0, 1, 4, 1000, 1 << 20, BLOCK // 3, BLOCK - 1, 2 * BLOCK]) for _ in range(200)]
    places, lengths = packed(sizes)
    taken: dict[int, list[tuple[int, int]]] = {}
    for size, place in zip(sizes, places, strict=True):
        assert place.start % 64 == 0  # a view of any dtype begins there
        assert place.start + size <= lengths[place.block]
        taken.setdefault(place.block, []).append((place.start, place.start + size))
    for block, spans in taken.items():
        assert lengths[block] <= max(BLOCK, -(-max(end - start for start, end in spans) // 64) * 64)
        ordered = sorted(span for span in spans if span[0] < span[1])
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(ordered))
    assert sum(lengths) < 1.05 * sum(sizes) + BLOCK


def test_small_ones_fill_what_large_ones_leave() -> None:
    assert packed([64, BLOCK - 64, 100]) == ([Place(0, BLOCK - 64), Place(0, 0), Place(1, 0)], [BLOCK, 128])


@pytest.mark.skipif(torch.cuda.is_available(), reason="here memory can be pinned")
def test_where_no_memory_can_be_pinned_there_is_no_room() -> None:
    room, tensors = Room(), [torch.ones(3)]
    assert room.of(tensors) is None
    assert room.of(tensors) is None  # nor the next time
    assert room.of([]) == []


def test_more_than_its_share_of_memory_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(snapshot, "free_memory", lambda: 4 * 1024)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: asked.append(size))
    assert Room().of([torch.ones(257)]) is None
    assert not asked


def test_on_the_cpu_there_is_nothing_to_wait_for() -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    content = Snapshot({"weight": weight}, {"0.step": torch.tensor(3.0)})
    taken = copied(content, Room())
    before = weight.clone()
    weight.zero_()
    assert taken.copied is None
    assert torch.equal(taken.weights["weight"], before)
    assert taken.bytes == content.bytes == 4 * 97
