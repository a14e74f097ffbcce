"""Memories against slow loops; what a step leaves in them, and what a step that is left out does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.methods.base import Clock
from sslkit.models.memories import Assignments, Bank, Centroids, Memory, Queue, Running
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.optim import CosineSchedule

CLOCK = Clock(0, 4, 4)
YES, NO = torch.tensor(True), torch.tensor(False)


def settled(memory: Memory, *puts: tuple[Tensor | None, Tensor], finite: Tensor = YES) -> None:
    for index, rows in puts:
        memory.put(index, rows)
    memory.settle(CLOCK, finite)


@pytest.mark.parametrize("sizes", [[3], [3, 3, 3], [5, 4], [9], [2, 8, 1]])
def test_a_queue_holds_the_newest_rows_round_its_end(sizes: list[int]) -> None:
    queue = Queue(7, 4)
    expected, place = queue.rows.clone(), 0
    for size in sizes:
        rows = torch.rand(size, 4)
        settled(queue, (None, rows))
        for row in rows:
            expected[place % 7], place = row, place + 1
        assert torch.equal(queue.rows, expected)
        assert int(queue.pointer) == place % 7


def test_a_bank_moves_what_was_seen_and_nothing_else() -> None:
    bank = Bank(6, 4, momentum=0.25)
    before, index, rows = bank.rows.clone(), torch.tensor([4, 1, 4]), torch.rand(3, 4)
    settled(bank, (index, rows))
    assert torch.equal(bank.rows[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    for image, row in ((1, rows[1]), (4, rows[2])):  # of what came twice the last counts
        moved = 0.25 * before[image] + 0.75 * row
        torch.testing.assert_close(bank.rows[image], moved / moved.norm())


def test_assignments_count_and_weigh() -> None:
    labels = Assignments(8, 3)
    assert labels.counts().tolist() == [0, 0, 0]
    settled(labels, (torch.tensor([0, 1, 2, 3, 7]), torch.tensor([2, 2, 2, 2, 0])))
    assert labels.labels.tolist() == [2, 2, 2, 2, -1, -1, -1, 0]
    assert labels.counts().tolist() == [1, 0, 4]
    expected = torch.tensor([1.0, 1.0, 0.5])  # count^-0.5, an empty cluster as one of a single image
    torch.testing.assert_close(labels.weights(0.5), expected / expected.mean())


def test_centroids_are_means_of_the_bank_every_few_steps() -> None:
    bank, labels = Bank(5, 3), Assignments(5, 3)
    centroids = Centroids(bank, labels, every=2)
    labels.fill(torch.tensor([0, 0, 2, -1, 2]))
    old = centroids.rows.fill_(7).clone()
    centroids.settle(CLOCK, YES)
    assert torch.equal(centroids.rows, old)
    centroids.settle(CLOCK.at(1), NO)
    assert torch.equal(centroids.rows, old)
    centroids.settle(CLOCK.at(1), YES)
    for cluster, members in ((0, [0, 1]), (2, [2, 4])):
        mean = bank.rows[members].mean(0)
        torch.testing.assert_close(centroids.rows[cluster], mean / mean.norm())
    assert torch.equal(centroids.rows[1], old[1])  # empty
    assert list(centroids.state_dict()) == ["rows"]


def test_a_running_mean_is_one_of_the_whole_step() -> None:
    running = Running(3, momentum=0.9)
    rows = torch.rand(8, 3)
    settled(running, (None, rows[:6]), (None, rows[6:]))
    torch.testing.assert_close(running.value, 0.1 * rows.mean(0))


def memories() -> Iterator[tuple[Memory, Tensor | None, Tensor]]:
    index, rows = torch.tensor([3, 0, 2, 1]), torch.rand(4, 4)
    yield Queue(6, 4), None, rows
    yield Bank(5, 4), index, rows
    yield Assignments(5, 4), index, torch.tensor([3, 1, 1, 0])
    yield Running(4), None, rows


@pytest.mark.parametrize("which", range(4))
def test_parts_write_what_the_whole_writes_and_a_refused_step_nothing(which: int) -> None:
    memory, index, rows = list(memories())[which]
    parts, refused = copy.deepcopy(memory), copy.deepcopy(memory)
    settled(memory, (index, rows))
    settled(parts, *((None if index is None else index[i : i + 1], rows[i : i + 1]) for i in range(4)))
    spoiled = rows.clone().float()
    spoiled[0] = torch.nan
    before = copy.deepcopy(refused.state_dict())
    settled(refused, (index, spoiled if rows.is_floating_point() else rows), finite=NO)
    for name, value in memory.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
        assert torch.equal(refused.state_dict()[name], before[name])
        assert not torch.equal(value, before[name])


class Remembering(nn.Module):
    """Reads a queue and a bank, and notes rows; NaN in step `broken`, out of memory above `room` images."""

    def __init__(self, broken: int = -1, room: int = 99) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.queue, self.bank = Queue(6, 4), Bank(8, 4)
        self.broken, self.room, self.seen = broken, room, []  # type: ignore[var-annotated]

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        rows = F.normalize(batch["x"] * self.weight, dim=1)
        self.seen.append(self.queue.rows.clone())
        self.queue.put(None, rows)
        self.bank.put(batch["index"], rows)
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("full")
        loss = (rows @ self.queue.rows.T).square().mean()
        return {"loss": loss * torch.nan if clock.step == self.broken else loss}

    def after_step(self, clock: Clock) -> None:
        pass


def steps(method: nn.Module, micro_batch: int = 0) -> list[Step]:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    steady = CosineSchedule(optimizer, 10**9, warmup=0, warmup_lr=0.0, min_lr=0.0)
    random = torch.Generator().manual_seed(1)
    batches: list[dict[str, Any]] = [
        {"x": torch.rand(4, 4, generator=random), "index": torch.randperm(8, generator=random)[:4]}
        for _ in CLOCK.rest()
    ]
    device = torch.device("cpu")
    return list(
        train(method, batches, optimizer, steady, CLOCK.rest(), device=device, micro_batch=micro_batch)
    )


def twin(**given: int) -> Remembering:
    torch.manual_seed(0)
    return Remembering(**given)


def test_a_step_reads_what_was_there_before_it() -> None:
    method, parts = twin(), twin()
    steps(method)
    steps(parts, micro_batch=1)
    assert all(
        torch.equal(parts.seen[4 * step + i], method.seen[step]) for step in range(4) for i in range(4)
    )
    for name, value in method.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)


def test_a_step_that_is_left_out_or_begins_again_leaves_no_trace() -> None:
    method, broken, small = twin(), twin(broken=3), twin(room=2)
    taken = steps(broken)
    assert [bool(step.finite) for step in taken] == [True, True, True, False]
    assert torch.equal(broken.queue.rows, broken.seen[3])
    assert int(broken.queue.pointer) == 3 * 4 % 6
    steps(method)
    assert steps(small)[0].micro_batch == 2
    for name, value in method.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, msg=name)
