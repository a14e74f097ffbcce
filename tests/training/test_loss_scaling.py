"""float16 with a gradient scaler, by the real loop on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.sections import Optim
from sslkit.core.device import pick_precision
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.loss_scaling import scaler_for
from sslkit.training.loop.optim import CosineSchedule, build_optimizer, parameter_groups
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run import checkpoint

CPU = torch.device("cpu")


class Times(nn.Module):
    """The loss is a product with the images, times a factor that makes it small, large or no number."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.factor = nn.Linear(8, 4), factor

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        return {"loss": (self.layer(batch["image"]) * self.factor).float().mean()}

    def after_step(self, clock: Clock) -> None: ...


def walk(
    method: Times, steps: int, precision: Any, scaler: torch.amp.GradScaler | None = None, parts: int = 0
) -> list[Step]:
    optimizer = build_optimizer(
        parameter_groups(method, 0.0, {}), Optim(name="sgd", momentum=0.0, weight_decay=0.0), 1.0
    )
    images = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    batches = [{"image": images, "index": torch.arange(4)} for _ in range(steps)]
    schedule = CosineSchedule(optimizer, 10**6, 0, 0.0, 1.0)  # a rate of 1 throughout
    clocks = Clock(0, steps, steps).rest()
    made = train(
        method,
        batches,
        optimizer,
        schedule,
        clocks,
        device=CPU,
        precision=precision,
        scaler=scaler,
        micro_batch=parts,
    )
    return list(made)


@pytest.mark.parametrize("parts", [0, 3])
def test_gradients_too_small_for_float16_move_the_weights(parts: int) -> None:
    """Their size is 1e-8 where float16's smallest number is 6e-8; the step is that of float32."""
    moved = {}
    for precision in ("float32", "float16"):
        method = Times(1e-7)
        before = method.layer.weight.detach().double()
        walk(method, 1, precision, parts=parts)
        moved[precision] = (method.layer.weight.detach().double() - before).abs().mean()
    assert 0 < moved["float32"] < 3e-8
    assert moved["float16"] == pytest.approx(float(moved["float32"]), rel=0.05)


def test_an_overflow_is_left_out_and_no_fault_of_the_step() -> None:
    method, scaler = Times(30.0), scaler_for("float16", CPU)
    assert scaler is not None
    before = method.layer.weight.clone()
    first = walk(method, 1, "float16", scaler)
    assert torch.equal(method.layer.weight, before)  # 30 · 65,536 / 16 is beyond 65,504
    assert scaler.get_scale() == 32768
    assert not first[0].grad_norm.isfinite()
    rest = walk(method, 4, "float16", scaler)
    assert all(bool(step.finite) for step in first + rest)
    overflows = sum(not bool(step.grad_norm.isfinite()) for step in first + rest)
    assert 1 <= overflows < 5
    assert scaler.get_scale() == 65536 / 2**overflows
    assert not torch.equal(method.layer.weight, before)


def test_what_no_scale_can_mend_is_a_fault() -> None:
    method, scaler = Times(), scaler_for("float16", CPU)
    assert scaler is not None
    method.layer.weight.register_hook(lambda slope: slope * float("inf"))
    flags = [bool(step.finite) for step in walk(method, 20, "float16", scaler)]
    assert flags == [True] * 16 + [False] * 4  # from 2^16 down to 1
    method = Times(float("nan"))
    assert not bool(walk(method, 1, "float16")[0].finite)  # the loss itself, at once


def test_the_scale_grows_again() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)
    walk(Times(), 6, "float16", scaler)
    assert scaler.get_scale() == 8.0


def test_other_precisions_have_none() -> None:
    assert [scaler_for(precision, CPU) for precision in ("float32", "tf32", "bfloat16")] == [None] * 3
    assert walk(Times(), 1, "bfloat16")[0].finite


def test_a_resumed_run_is_that_of_one_piece(tiny: Callable[..., PretrainConfig], tmp_path: Path) -> None:
    changes = {"run.precision": "float16", "run.save_every": "3", "run.log_every": 1}
    whole = pretrain(tiny("whole", **changes))
    broken = pretrain(tiny("broken", **changes))
    newest, _ = checkpoint.newest(broken / "checkpoints")
    assert newest is not None
    last = json.loads((newest / "state.json").read_text())
    # Back to the checkpoint before, as if the run had been killed: scale and count must come from there.
    older = checkpoint.committed(broken / "checkpoints")[1]
    newest.rename(tmp_path / "aside")
    state = json.loads((older / "state.json").read_text())
    assert 0 < state["scaler"]["_growth_tracker"] < last["scaler"]["_growth_tracker"]
    (broken / "encoder.safetensors").unlink()
    facts = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    resume(broken)
    again, _ = checkpoint.newest(broken / "checkpoints")
    assert again is not None
    assert json.loads((again / "state.json").read_text())["scaler"] == last["scaler"]
    first, second = (load_file(path / "encoder.safetensors") for path in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("capability", "name", "found"),
    [
        ((6, 0), "Tesla P100", "float32"),
        ((7, 0), "Tesla V100", "float16"),
        ((7, 5), "Tesla T4", "float16"),
        ((7, 5), "NVIDIA GeForce GTX 1660", "float32"),
        ((8, 6), "NVIDIA A10", "bfloat16"),
    ],
)
def test_auto_takes_it_where_a_gpu_has_no_bfloat16(
    capability: tuple[int, int], name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert pick_precision("auto", torch.device("cuda")) == found


def test_it_is_refused_where_nobody_has_tried_it() -> None:
    with pytest.raises(UserError, match=r"float16 .run.precision. is not tried on mps"):
        pick_precision("float16", torch.device("mps"))
