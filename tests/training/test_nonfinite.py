"""What is not finite changes no weight and is listed; what does not fit into memory is done in parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.sections import Optim
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock
from sslkit.methods.frequency.mfm import MFM
from sslkit.testing.contract import Case
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.optim import CosineSchedule, _flagged_step, build_optimizer
from sslkit.training.loop.out_of_memory import Buffers, smaller
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.visualization.report.report import write_report

Tiny = Callable[..., PretrainConfig]
CPU = torch.device("cpu")


class Line(nn.Module):
    """loss = mean(weight · x); runs out of memory above `room` images."""

    minimum_batch = 1

    def __init__(self, room: int = 1000, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.room, self.error, self.updates, self.sizes = room, error, 0, []

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        self.sizes.append(len(batch["x"]))
        if len(batch["x"]) > self.room:
            raise self.error("can't allocate memory: you tried to allocate 99 bytes")
        return {"loss": (self.weight * batch["x"]).mean()}

    def after_step(self, clock: Clock) -> None:
        self.updates += 1


def walk(method: Line, values: list[list[float]], micro_batch: int = 0) -> list[Step]:
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    schedule = CosineSchedule(optimizer, 10**9, 0, 0.0, 0.0)
    batches = [{"x": torch.tensor(x), "index": torch.arange(len(x))} for x in values]
    clock = Clock(0, len(values), 10)
    clocks = clock.rest()
    return list(train(method, batches, optimizer, schedule, clocks, device=CPU, micro_batch=micro_batch))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_left_out(value: float) -> None:
    method, other = Line(), Line()
    done = walk(method, [[1.0], [value], [2.0]])
    walk(other, [[1.0], [2.0]])
    assert [bool(step.finite) for step in done] == [True, False, True]
    assert method.updates == 2
    assert method.weight.item() == pytest.approx(other.weight.item(), rel=1e-6)


def optimizing(weights: nn.Parameter, name: str) -> torch.optim.Optimizer:
    groups: list[dict[str, object]] = [{"params": [weights], "weight_decay": 0.1}]
    return build_optimizer(groups, Optim(name=name, weight_decay=0.1), 0.1)


def stepped(name: str, values: list[float]) -> tuple[dict[str, Tensor], Tensor]:
    """State and weights after updates with gradients of such values, a flag beside each as on a GPU."""
    weights = nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = optimizing(weights, name)
    for value in values:
        weights.grad = torch.linspace(0, value, 5)
        _flagged_step(weights.grad.isfinite().all(), optimizer)
    state = {name: value.clone() for name, value in optimizer.state[weights].items()}
    return state, weights.detach().clone()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("before", [[], [1.0, -2.0]])
def test_on_a_device_the_optimizer_leaves_the_update_out(name: str, before: list[float]) -> None:
    """Weights, momentum and count of steps stay bit for bit, in a first step too."""
    state, weights = stepped(name, [*before, math.nan, 3.0, math.inf])
    expected, right = stepped(name, [*before, 3.0])
    assert torch.equal(weights, right)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_flag_that_says_yes_changes_nothing(name: str) -> None:
    weights, other = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    for one, step in ((weights, lambda o: _flagged_step(torch.tensor(True), o)), (other, lambda o: o.step())):
        optimizer = optimizing(one, name)
        for value in (1.0, 2.0):
            one.grad = torch.full((5,), value)
            step(optimizer)
            assert not hasattr(optimizer, "found_inf")
    assert torch.equal(weights, other)


def test_an_optimizer_without_such_a_flag_gets_zeros() -> None:
    """LARS: nothing that is not finite reaches its momentum; its weight decay acts once more."""
    state, weights = stepped("lars", [1.0, math.nan])
    assert weights.isfinite().all()
    assert all(value.isfinite().all() for value in state.values())
    plain, _ = stepped("lars", [1.0, 0.0])
    assert all(torch.equal(state[key], plain[key]) for key in state)


BUFFERED = ["mfm", "simclr", "moco", "byol", "dino"]  # a ResNet's statistics, a queue, followers', a centre


def buffers_of(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.named_buffers()}


def poisoned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * math.nan if value.is_floating_point() else value for name, value in batch.items()}


@pytest.mark.parametrize("name", BUFFERED)
def test_no_buffer_keeps_anything_of_a_step_that_is_not_finite(name: str) -> None:
    case = Case(name, "test_resnet")
    method = case.build()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    schedule = CosineSchedule(optimizer, 10**9, 0, 0.01, 0.01)
    batches = [case.batch, poisoned(case.batch), case.batch]
    steps = train(method, batches, optimizer, schedule, Clock(0, 3, 3).rest(), device=CPU)
    seen = [(bool(step.finite), buffers_of(method)) for step in steps]
    assert [finite for finite, _ in seen] == [True, False, True]
    (_, before), (_, after), (_, later) = seen
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert any(not torch.equal(later[key], before[key]) for key in before)
    assert all(value.isfinite().all() for value in [*later.values(), *method.parameters()])


@pytest.mark.parametrize("name", BUFFERED)
@pytest.mark.parametrize("finite", [True, False])
def test_on_a_device_buffers_go_by_the_flag(name: str, finite: bool) -> None:
    """There `after_step` runs in any case."""
    case = Case(name, "test_resnet")
    method, clock = case.build(), Clock(0, 3, 3)
    buffers, before = Buffers(method), buffers_of(method)
    with buffers.kept(clock):
        method(case.batch if finite else poisoned(case.batch), clock)
    method.after_step(clock)
    moved = buffers_of(method)
    assert any(not torch.equal(moved[key], before[key]) for key in before)
    buffers.restore_unless_(torch.tensor(finite))
    expected, found = moved if finite else before, buffers_of(method)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(value.isfinite().all() for value in method.state_dict().values())


# ------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """poison({3, 4}) → MFM's loss is NaN in these steps, counted from 0."""
    honest = MFM.forward

    def plan(steps: set[int]) -> None:
        def forward(self: MFM, batch: Any, clock: Clock) -> dict[str, Tensor]:
            out = honest(self, batch, clock)
            return {**out, "loss": out["loss"] * (math.nan if clock.step in steps else 1)}

        monkeypatch.setattr(MFM, "forward", forward)

    return plan


def listed(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "nonfinite.jsonl").read_text().splitlines()]


def test_three_apart_are_skipped_counted_and_listed(tiny: Tiny, poison: Callable[[set[int]], None]) -> None:
    poison({2, 4, 5})
    run = pretrain(tiny("run", **{"run.log_every": 2}))
    assert [line["step"] for line in listed(run)] == [3, 5, 6]
    assert all(len(line["images"]) == 4 and line["loss"] is None for line in listed(run))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in metrics] == [False, False, True, False, False, False]
    assert metrics[-1]["nonfinite"] == 3
    assert all(tensor.isfinite().all() for tensor in load_file(run / "encoder.safetensors").values())
    write_report(run)


def test_three_in_a_row_end_the_run(tiny: Tiny, poison: Callable[[set[int]], None]) -> None:
    poison({5, 6, 7, 8})
    config = tiny("run", **{"run.save_every": "3"})
    with pytest.raises(UserError, match="step 8: loss or gradients not finite 3 times in a row") as error:
        pretrain(config)
    run = Path(config.run.out)
    assert error.value.code == 1
    assert str(run / "nonfinite.jsonl") in error.value.hint
    assert [line["step"] for line in listed(run)] == [6, 7, 8]
    poison(set())
    resume(run)
    assert [line["step"] for line in listed(run)] == [6]  # resumed at step 6, saved after that one


def test_four_in_all_end_a_short_run(tiny: Tiny, poison: Callable[[set[int]], None]) -> None:
    poison({1, 3, 5, 7})
    with pytest.raises(UserError, match=r"step 8: .* not finite in 4 steps"):
        pretrain(tiny("run"))


@pytest.mark.parametrize("method", ["mfm", "mae", "simmim", "simclr", "moco", "byol", "dino"])
def test_constant_images_have_finite_gradients(tmp_path: Path, method: str) -> None:
    """Spectra that are exactly zero, patches without deviation, features that are all alike."""
    from sslkit import api

    (tmp_path / "flat").mkdir()
    for number in range(8):
        Image.fromarray(np.full((40, 40, 3), 255 * (number % 2), np.uint8)).save(
            tmp_path / f"flat/{number}.png"
        )
    run = api.pretrain(
        tmp_path / "flat", method=method, backbone="test_vit", size=32, epochs=2, batch_size=4, workers=0,
        device="cpu", precision="float32", pictures=0, out=tmp_path / "run",
        settings=["run.log_every=1", "model.patch_size=8"],
    )  # fmt: skip
    assert not (run / "nonfinite.jsonl").exists()


# ---------------------------------------------------------------------------------------- out of memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_is_done_in_halves(error: type[Exception]) -> None:
    method, roomy = Line(3, error), Line()
    done = walk(method, [[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 8.0]] * 2)
    walk(roomy, [[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 8.0]] * 2)
    assert method.sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]  # for good, not tried again
    assert [step.micro_batch for step in done] == [2, 2]
    assert done[0].metrics["loss"].item() == pytest.approx(30 / 7)
    assert method.weight.item() == pytest.approx(roomy.weight.item())


def test_when_nothing_fits_it_is_one_line() -> None:
    with pytest.raises(UserError, match="out of memory with 1 of 4 images at once") as error:
        walk(Line(0), [[1.0, 2.0, 3.0, 4.0]])
    assert error.value.code == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory")])
def test_no_memory_for_the_optimizer_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="out of memory in the optimizer's step") as raised:
        walk(Line(), [[1.0, 2.0]])
    assert raised.value.code == 1
    monkeypatch.setattr(error, "args", ("shapes differ",))
    if not isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(RuntimeError, match="shapes differ"):
            walk(Line(), [[1.0, 2.0]])


def test_another_runtime_error_is_not_swallowed() -> None:
    class Broken(Line):
        def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        walk(Broken(), [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("size", "whole", "minimum", "multiple", "expected"),
    [
        (8, 8, 1, 1, 4),
        (7, 7, 1, 1, 4),
        (2, 8, 1, 1, 1),
        (4, 7, 2, 1, None),
        (7, 7, 3, 1, 4),
        (8, 8, 5, 1, None),
        (5, 9, 2, 1, 3),
        (6, 12, 1, 2, 2),  # 3 would be a half, and no pairs
        (2, 8, 1, 2, None),
    ],
)
def test_halves_leave_no_part_too_small(
    size: int, whole: int, minimum: int, multiple: int, expected: int | None
) -> None:
    if expected is None:
        with pytest.raises(UserError):
            smaller(size, whole, minimum, multiple)
    else:
        assert smaller(size, whole, minimum, multiple) == expected


def test_a_run_says_it_notes_it_and_keeps_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = MFM.forward

    def forward(self: MFM, batch: Any, clock: Clock) -> dict[str, Tensor]:
        if len(batch["index"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, batch, clock)

    whole = pretrain(tiny("whole", **{"run.micro_batch": 2}))
    monkeypatch.setattr(MFM, "forward", forward)

    class Stop(Console):
        def event(self, document: Any) -> None:
            if document["step"] == 5:
                raise KeyError

    config = tiny("run", **{"run.save_every": "3"})
    with pytest.raises(KeyError):
        pretrain(config, Stop(quiet=True))
    assert "step 1: out of memory; from here on 2 of 4 images at once" in capsys.readouterr().err
    run = Path(config.run.out)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["micro_batch"] == 2
    resume(run, Console(quiet=True))
    assert "out of memory" not in capsys.readouterr().err  # it begins with what fitted
    ours, theirs = (load_file(path / "encoder.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
