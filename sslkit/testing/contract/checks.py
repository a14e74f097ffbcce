"""The checks, one function each: nothing is returned where they hold, `Broken` raised where they do not."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from sslkit.core.errors import UserError
from sslkit.exporting.proof import TOLERANCE, reference, relative
from sslkit.exporting.timm import PlainTimm, export_timm
from sslkit.methods.base import Method
from sslkit.models.encoder import Encoder
from sslkit.models.weights import ENCODER_FILE, write_encoder
from sslkit.testing.contract.case import (
    BATCH,
    CPU,
    FIRST,
    LATE,
    Broken,
    Case,
    cloned,
    demand,
    differing,
    outputs,
    trainable,
)
from sslkit.training.loop.optim import build_optimizer, parameter_groups
from sslkit.training.pretrain.pictures import pictured_batch
from sslkit.training.run import checkpoint


def builds(case: Case) -> None:
    """On a family that the class names; any other is refused by a UserError of one line."""
    try:
        method = case.build()
    except UserError as refusal:
        demand(not case.accepted, f"names the family in `backbones`, but refuses it: {refusal}")
        demand("\n" not in refusal.message, f"the refusal has several lines: {refusal.message!r}")
        return
    demand(case.accepted, "builds on a family that `backbones` does not name")
    demand(isinstance(method.encoder, Encoder), "self.encoder is no Encoder")


def loss_is_differentiable(case: Case) -> None:
    method = case.build()
    loss = outputs(method, case.batch)["loss"]
    demand(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, not that of a scalar")
    demand(bool(loss.isfinite()), f"the loss is {loss.item()}")
    demand(loss.requires_grad, "the loss has no gradient")
    loss.backward()  # type: ignore[no-untyped-call]
    wild = [n for n, w in trainable(method).items() if w.grad is not None and not w.grad.isfinite().all()]
    demand(not wild, f"the gradient of {wild[:1]} is not finite")


def gradients_reach_all(case: Case) -> None:
    """Every trainable parameter in some step after epoch 0, no frozen one."""
    method = case.trained()
    for batch in case.batches:
        outputs(method, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    reached = {n for n, w in method.named_parameters() if w.grad is not None and bool(w.grad.any())}
    left = [name for name in trainable(method) if name not in reached]
    demand(not left, f"{left[:3]} get no gradient: use them, or requires_grad_(False)")
    frozen = sorted(reached - set(trainable(method)))
    demand(not frozen, f"{frozen[:3]} are frozen, but get a gradient")


def metrics_are_detached(case: Case) -> None:
    for name, value in outputs(case.build(), case.batch).items():
        if name == "loss":
            continue
        demand(not value.requires_grad, f"{name!r} carries a gradient: .detach() it")
        if name == "embedding":
            demand(value.ndim == 2, f"'embedding' has shape {tuple(value.shape)}, not [B, D]")
        else:
            demand(value.ndim == 0, f"{name!r} has shape {tuple(value.shape)}, not that of a scalar")


def after_step_leaves_weights(case: Case) -> None:
    method = case.trained()
    before = cloned(trainable(method))
    method.after_step(LATE)
    changed = differing(before, trainable(method))
    demand(not changed, f"after_step changes {changed[:3]}, which the optimizer trains")


def loss_falls(case: Case) -> None:
    """A dozen steps on one batch. The loss of some depends on a queue, a teacher or a centre, which change
    too: so trained and fresh weights are compared with that state as it is at the end.
    """
    method = case.build()
    fresh = cloned(trainable(method))
    case.train(method, LATE, repeat(case.batch))
    end = cloned(method.state_dict())
    trained = outputs(method, case.batch)["loss"]
    method.load_state_dict({**end, **fresh})
    untrained = outputs(method, case.batch)["loss"]
    demand(bool(trained < untrained), f"{trained.item():.4f} after training, {untrained.item():.4f} before")


def refused_step_changes_nothing(case: Case) -> None:
    """A loss that is not finite leaves weights, statistics and memories bit for bit as they were."""
    method = case.trained()
    before = cloned(method.state_dict())
    broken = {
        name: value * torch.nan if value.is_floating_point() else value for name, value in case.batch.items()
    }
    (step,) = case.train(method, LATE, repeat(broken), stop=1)
    demand(not bool(step.finite), "a batch of NaN gives a finite loss")
    changed = differing(before, method.state_dict())
    demand(not changed, f"{changed[:3]} change in a step that is left out")


def order_is_of_the_state(case: Case) -> None:
    """The same when it is asked again, of items that there are, and enough for the steps of an epoch."""
    method = case.build()
    order = method.order(FIRST)
    if order is None:
        return
    again = method.order(FIRST)
    count, needed = case.ready.info.count, FIRST.steps_per_epoch * BATCH
    demand(again is not None and torch.equal(order, again), "the order is another one when it is asked again")
    demand(order.dtype == torch.int64, f"the order is {order.dtype}, not int64")
    demand(needed <= len(order) <= count, f"the order has {len(order)} items, not {needed} to {count}")
    demand(0 <= int(order.min()) <= int(order.max()) < count, "the order names items that there are not")


def labels_change_nothing(case: Case) -> None:
    if "label" in case.facts["needs"]:
        return
    plain = outputs(case.build(), case.batch)["loss"]
    poisoned = {**case.batch, "label": torch.full((BATCH,), -(10**9))}
    demand(torch.equal(plain, outputs(case.build(), poisoned)["loss"]), "reads labels; declare them in needs")


def bfloat16_is_finite(case: Case) -> None:
    method = case.build()
    steps = case.train(method, FIRST, precision="bfloat16")
    demand(all(bool(step.finite) for step in steps), "a loss or gradient in bfloat16 is not finite")
    wild = [name for name, tensor in method.state_dict().items() if not bool(tensor.isfinite().all())]
    demand(not wild, f"{wild[:3]} are not finite after two steps in bfloat16")


def state_round_trips(case: Case) -> None:
    """All that counts is in the state dict: another instance that loads it has the same next loss."""
    method, other = case.trained(), case.build(seed=1)
    other.load_state_dict(method.state_dict())
    here, there = outputs(method, case.batch)["loss"], outputs(other, case.batch)["loss"]
    demand(torch.equal(here, there), f"the next loss is {here.item()}, or {there.item()} after loading")


def resume_is_exact(case: Case) -> None:
    """Two steps at once, or one, a checkpoint, and one by another instance that restores it."""
    whole, optimizer = _trainer(case)
    case.train(whole, FIRST, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        begun, optimizer = _trainer(case)
        case.train(begun, FIRST, optimizer=optimizer, stop=1)
        saved = checkpoint.write(Path(folder), 1, begun, optimizer, {})
        resumed, optimizer = _trainer(case, seed=1)
        checkpoint.restore(saved, resumed, optimizer)
        case.train(resumed, FIRST.at(1), optimizer=optimizer)
    changed = differing(whole.state_dict(), resumed.state_dict())
    demand(not changed, f"{changed[:3]} differ from those of an uninterrupted run")


def _trainer(case: Case, seed: int = 0) -> tuple[Method, torch.optim.Optimizer]:
    """A fresh method and the optimizer that its configuration asks for."""
    method, optim = case.build(seed), case.ready.config.optim
    groups = parameter_groups(method, optim.weight_decay, method.overrides)
    return method, build_optimizer(groups, optim, optim.lr)


def workers_change_nothing(case: Case) -> None:
    """The transform travels to two workers, and gives there what it gives here."""
    transform = case.build().transform()
    try:
        copy = pickle.loads(pickle.dumps(transform))
    except Exception as problem:
        raise Broken(f"the transform can't be pickled: {problem}") from None
    for here, there in zip(case.load(transform, 0), case.load(copy, 2), strict=True):
        tensors = {name: value for name, value in here.items() if isinstance(value, Tensor)}
        changed = differing(tensors, there)
        demand(not changed, f"{changed[:1]} depends on the worker: draw from the generator that is passed")


def encoder_exports(case: Case) -> None:
    """Plain timm opens the written encoder and computes the same vectors."""
    encoder = case.trained().eval().encoder
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_encoder(encoder, folder, ENCODER_FILE, {})
        export_timm(folder, folder / "exported")
        expected = reference(folder, encoder)
        with torch.no_grad():
            found = PlainTimm(f"local-dir:{folder / 'exported'}")(expected.images)
    difference = relative(found, expected.vectors)
    demand(difference <= TOLERANCE, f"the exported file's vectors differ by {difference:.1e}")


def panels_are_pictures(case: Case) -> None:
    method, batch = case.trained().eval(), pictured_batch(case.images, case.ready.config.data.size, CPU)
    with torch.no_grad():
        panels = method.panels(batch)
    for name, panel in panels.items():
        form = (len(batch["image"]), 3, *panel.shape[2:])
        demand(panel.ndim == 4 and panel.shape == form, f"panel {name!r} has shape {tuple(panel.shape)}")
        low, high = panel.min().item(), panel.max().item()
        demand(0 <= low <= high <= 1, f"panel {name!r} lies in [{low:.3g}, {high:.3g}], not in [0, 1]")


CHECKS: dict[str, Callable[[Case], None]] = {
    "builds, or refuses in one line": builds,
    "loss is finite and differentiable": loss_is_differentiable,
    "every weight gets a gradient": gradients_reach_all,
    "metrics are detached": metrics_are_detached,
    "after_step leaves trained weights alone": after_step_leaves_weights,
    "loss falls on one batch": loss_falls,
    "a step with a NaN changes nothing": refused_step_changes_nothing,
    "the order of an epoch is the state's": order_is_of_the_state,
    "labels change nothing": labels_change_nothing,
    "bfloat16 stays finite": bfloat16_is_finite,
    "state is complete": state_round_trips,
    "resuming is exact": resume_is_exact,
    "workers change nothing": workers_change_nothing,
    "encoder opens in timm": encoder_exports,
    "pictures lie in [0, 1]": panels_are_pictures,
}
"""What is printed → the check. The first decides whether there is anything else to look at."""
