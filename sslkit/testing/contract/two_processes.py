"""Two processes with half a batch each against one with the whole: the same step, the same state."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from sslkit.core.distributed import collectives
from sslkit.testing.contract.case import LATE, Case, cloned, outputs, trainable

WORLD = 2
BACKBONE = "test_vit"
"""Without batch norm, whose statistics are each process's own in the usual CNN."""
_TOLERANCE = 1e-5
NUDGE = 2.0**-22
"""Share by which images are changed to see how much a step amplifies rounding: a batch norm over the nearly
equal features of an untrained network does so a hundred times."""
_PATIENCE = timedelta(seconds=120)  # the other process imports torch on a busy machine


def compare_processes(names: Sequence[str]) -> dict[str, str]:
    """Why each method's step is another one in two processes; empty where it is the same.

    This process and one more, for all methods: most of the time goes into starting it. Loss, gradients and,
    after an SGD step and `after_step`, all parameters and buffers must agree within 1e-5 of the largest, or
    within ten times what images that differ in their last bits change.
    """
    with tempfile.TemporaryDirectory() as folder:
        other = multiprocessing.get_context("spawn").Process(target=_process, args=(1, names, folder))
        other.start()
        try:
            return _process(0, names, folder)
        finally:
            other.join()


def _process(rank: int, names: Sequence[str], folder: str) -> dict[str, str]:
    """One of the pair: every step alone first, then together; both return the same."""
    cases = {name: Case(name, BACKBONE) for name in names}
    alone = {name: _attempt(case) for name, case in cases.items()}
    nudged = {name: _attempt(case, NUDGE) for name, case in cases.items()}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD, timeout=_PATIENCE
    )
    try:
        reasons = {
            name: _difference(alone[name], nudged[name], _attempt(case)) for name, case in cases.items()
        }
        gathered: list[dict[str, str]] = [{}] * WORLD
        dist.all_gather_object(gathered, reasons)
    finally:
        collectives.end_group()
    return {name: gathered[0][name] or gathered[1][name] for name in names}


def _attempt(case: Case, nudge: float = 0.0) -> dict[str, Tensor] | str:
    try:
        return _step(case, nudge)
    except Exception as problem:  # an outcome of the test; what raises here raises in the other process too
        return case.describe(problem)


def _step(case: Case, nudge: float) -> dict[str, Tensor]:
    """This process's share of one SGD step: loss, gradients, and the state after it."""
    method, world = case.build(), collectives.world_size()
    batch = {name: value.chunk(world)[collectives.rank()] for name, value in case.batch.items()}
    if nudge:
        batch = {name: _nudged(value, nudge) for name, value in batch.items()}
    optimizer = torch.optim.SGD(trainable(method).values(), lr=0.1)
    loss = outputs(method, batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    found = {"the loss": collectives.all_reduce_sum(loss.detach()) / world}
    for name, weight in trainable(method).items():
        if weight.grad is not None:
            weight.grad = collectives.all_reduce_sum(weight.grad) / world
            found[f"the gradient of {name}"] = weight.grad.clone()
    optimizer.step()
    method.after_step(LATE)
    return {**found, **cloned(method.state_dict())}


def _nudged(value: Tensor, share: float) -> Tensor:
    """Images of which every other value is larger by a share; anything else as it is."""
    if not value.is_floating_point() or value.ndim < 4:
        return value
    odd = torch.arange(value.numel(), device=value.device).view(value.shape) % 2
    return value * (1 + share * odd)


def _difference(
    alone: dict[str, Tensor] | str, nudged: dict[str, Tensor] | str, together: dict[str, Tensor] | str
) -> str:
    for outcome in (alone, nudged, together):
        if isinstance(outcome, str):
            return outcome
    assert not isinstance(alone, str)
    assert not isinstance(nudged, str)
    assert not isinstance(together, str)
    for name, one in alone.items():
        far, rounding = (
            float((other[name].double() - one.double()).abs().max()) for other in (together, nudged)
        )
        if not far <= max(_TOLERANCE * max(1.0, float(one.double().abs().max())), 10 * rounding):
            return f"{name} differs by {far:.1e} between one process and two"
    return ""
