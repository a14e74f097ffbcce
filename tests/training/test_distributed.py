"""Two processes on this machine: what they tell each other, and every method's step against that of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from sslkit.augmentations import batch
from sslkit.core.distributed import collectives
from sslkit.frequency import spectral_error
from sslkit.frequency.losses import Reduction
from sslkit.methods import TEMPLATE, card, names, short_name
from sslkit.methods.base import Clock
from sslkit.models.norm import BatchNorm1d
from sslkit.testing.contract import BACKBONES, compare_processes
from sslkit.testing.contract.two_processes import BACKBONE

pytestmark = pytest.mark.slow

WORLD = 2
GROUPS = 40
PATIENCE = 300  # seconds; the pair takes about ten
METHODS = [name for name in names() if BACKBONES[BACKBONE] in card(name).facts["backbones"]]


# -------------------------------------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all methods, and of one that compares an image with its neighbours without gathering them."""
    lonely = tmp_path_factory.mktemp("methods") / "lonely.py"
    text = TEMPLATE.read_text(encoding="utf-8")
    old = "self.encoder.normalize(images)\n"
    lonely.write_text(text.replace(old, old + "        error = error - error.mean(0)\n"), encoding="utf-8")
    found = compare_processes([*METHODS, str(TEMPLATE), str(lonely)])
    return {short_name(name): text for name, text in found.items()}


@pytest.mark.parametrize("name", [*METHODS, TEMPLATE.stem])
def test_two_processes_do_the_step_of_one(differences: dict[str, str], name: str) -> None:
    assert differences[name] == ""


def test_a_difference_is_seen(differences: dict[str, str]) -> None:
    assert differences["lonely"].startswith("the loss differs by ")


# ------------------------------------------------------------------------------------------ functions


def rows(count: int = 6) -> Tensor:
    """float32 [count, 3], not centred"""
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(3)) + 2


def own_rows() -> Tensor:
    return rows().chunk(collectives.world_size())[collectives.rank()].requires_grad_()


def coupled(every: Tensor, mine: Tensor) -> Tensor:
    """A loss in which each row meets all rows, each with its own weight: the mean over this process's."""
    return (torch.tanh(mine @ every.T / 20) * torch.arange(len(every))).sum(1).mean()


def conversation() -> dict[str, Tensor]:
    """What one process has to say; the same lines run alone and in a pair."""
    mine, said = own_rows(), {}
    said["gathered"] = collectives.gather(mine)
    coupled(collectives.gather_with_gradient(mine), mine).backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    said["gradient of gathered"] = collectives.gather(mine.grad) / collectives.world_size()

    mine = own_rows()
    (collectives.all_reduce_sum(mine.sum(0)).square().sum() / collectives.world_size()).backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    said["gradient of total"] = collectives.gather(mine.grad)

    mine, norm = own_rows(), BatchNorm1d(3)
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(4))
    answer = norm(mine)
    (answer**3).mean().backward()
    assert mine.grad is not None
    said["normalised"] = collectives.gather(answer)
    said["gradient of normalised"] = collectives.gather(mine.grad) / collectives.world_size()
    images = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    keep_low = torch.tensor([True, False, False, True, True, True])  # the second process lacks a task
    count = 6 // collectives.world_size()
    part = slice(count * collectives.rank(), count * (collectives.rank() + 1))
    prediction = images[part].flip(3).requires_grad_()
    for reduction in get_args(Reduction):
        error = spectral_error(prediction, images[part], keep_low[part], torch.arange(1.0, 7.0)[part])
        loss = error.reduce(reduction)
        said[f"{reduction} loss"] = collectives.gather(loss.detach()[None]).mean()
        (slope,) = torch.autograd.grad(loss, prediction)
        said[f"gradient of {reduction}"] = collectives.gather(slope) / collectives.world_size()
    index, clock = torch.arange(6)[part], Clock(5, 9, 3)
    for name in batch.names():
        augment = batch.load(name)
        views = augment(augment.Config())({"first": images[part].repeat(1, 2, 2, 2)[:, :3]}, index, clock)
        said |= {f"{name}: {view}": collectives.gather(value) for view, value in views.items()}
    return said | {f"norm.{name}": tensor for name, tensor in norm.state_dict().items()}


def talk(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for number in range(GROUPS):  # with `destroy_process_group` alone torch 2.6 stood still after about five
        meeting = f"file://{folder}/meeting-{number}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
        collectives.gather(torch.rand(8, 64))
        dist.all_reduce(torch.rand(100_000))
        collectives.end_group()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    assert (collectives.rank(), collectives.world_size()) == (rank, WORLD)
    torch.save(conversation(), f"{folder}/{rank}.pt")
    collectives.end_group()


def test_a_pair_says_what_one_says(tmp_path: Path) -> None:
    alone: dict[str, Any] = conversation()
    assert torch.equal(alone["gathered"], rows())
    pair: Any = multiprocessing.spawn(talk, (str(tmp_path),), nprocs=WORLD, join=False)  # type: ignore[no-untyped-call]
    began = time.monotonic()
    while not pair.join(1):
        if time.monotonic() - began > PATIENCE:
            for process in pair.processes:
                process.kill()
            pytest.fail("the pair stands still")
    for rank in range(WORLD):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert set(together) == set(alone)
        for name, tensor in alone.items():
            assert torch.allclose(together[name], tensor, atol=1e-6), name
