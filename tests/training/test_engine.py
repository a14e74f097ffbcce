"""The one loop, with a method so small that every number can be written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.core.device import autocast, pick_device, pick_precision, to_device
from sslkit.methods.base import Clock
from sslkit.training.loop.engine import Step, split, train
from sslkit.training.loop.health import ROWS, Interval, advice, effective_rank, feature_std
from sslkit.training.loop.optim import CosineSchedule

CPU = torch.device("cpu")


class Slope(nn.Module):
    """One weight; the loss of an image x is (weight · x)² / 2, of a batch the mean."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.seen: list[tuple[str, Any]] = []

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        x = batch["x"]
        answer = self.weight * x
        self.seen.append(("forward", clock.step, len(x), self.weight.item()))  # type: ignore[arg-type]
        few = x.mean() if len(x) > 2 else torch.tensor(math.nan)
        return {
            "loss": answer.square().mean() / 2,
            "loss_task": few,
            "share": x.mean(),
            "embedding": answer[:, None],
        }

    def after_step(self, clock: Clock) -> None:
        self.seen.append(("after", clock.step, self.weight.grad, self.weight.item()))  # type: ignore[arg-type]


def steps(
    method: Slope, values: list[list[float]], start: int = 0, lr: float = 1e-3, **options: Any
) -> list[Step]:
    optimizer = torch.optim.SGD(method.parameters(), lr=lr)
    schedule = CosineSchedule(optimizer, 10**9, 0, 0.0, 0.0)  # so long that the rate stays at its peak
    batches = [
        {"x": torch.tensor(x, dtype=torch.float64), "index": torch.arange(len(x)), "bad": [("a", "b")]}
        for x in values
    ]
    clock = Clock(start, start + len(values), 10)
    return list(train(method, batches, optimizer, schedule, clock.rest(), device=CPU, **options))


def test_a_step_is_gradient_descent() -> None:
    method = Slope(2.0)
    (done,) = steps(method, [[1.0, 3.0]])
    gradient = 2.0 * (1 + 9) / 2
    assert done.metrics["loss"].item() == pytest.approx(2.0**2 * 5 / 2)
    assert done.grad_norm.item() == pytest.approx(gradient)
    assert method.weight.item() == pytest.approx(2.0 - 1e-3 * gradient, rel=1e-12)
    assert (done.lr, done.bad) == (pytest.approx(1e-3), [("a", "b")])
    assert done.wait >= 0


def test_micro_batches_give_the_mean_of_their_gradients() -> None:
    method = Slope(2.0)
    (done,) = steps(method, [[1.0, 3.0, 2.0, 4.0]], micro_batch=2)
    gradients = [2.0 * (1 + 9) / 2, 2.0 * (4 + 16) / 2]
    assert done.grad_norm.item() == pytest.approx(sum(gradients) / 2)
    assert method.weight.item() == pytest.approx(2.0 - 1e-3 * sum(gradients) / 2, rel=1e-12)
    assert done.metrics["loss"].item() == pytest.approx(2.0**2 * (5 + 10) / 2 / 2)
    assert done.metrics["share"].item() == pytest.approx(2.5)
    assert done.embedding is not None
    assert done.embedding[:, 0].tolist() == [2.0, 6.0, 4.0, 8.0]
    assert [entry[2] for entry in method.seen if entry[0] == "forward"] == [2, 2]


def test_gradients_are_clipped_to_a_norm_and_reported_before() -> None:
    method = Slope(2.0)
    done = steps(method, [[10.0], [0.001]], clip=3.0)
    assert done[0].grad_norm.item() == pytest.approx(200.0)
    assert method.seen[1][3] == pytest.approx(2.0 - 1e-3 * 3.0, rel=1e-6)  # type: ignore[misc]
    assert done[1].grad_norm.item() == pytest.approx(2e-6, rel=1e-2)  # what is small stays as it is


def test_after_step_comes_after_the_optimizer_with_gradients_gone() -> None:
    method = Slope(1.0)
    steps(method, [[1.0], [1.0]], start=5)
    names = [(entry[0], entry[1]) for entry in method.seen]
    assert names == [("forward", 5), ("after", 5), ("forward", 6), ("after", 6)]
    before, after = method.seen[0], method.seen[1]
    assert after[3] == pytest.approx(before[3] * (1 - 1e-3))  # type: ignore[misc]
    assert after[2] is None  # type: ignore[misc]


def test_nothing_that_leaves_a_step_holds_its_graph() -> None:
    for done in steps(Slope(), [[1.0], [2.0]]):
        assert not any(value.requires_grad for value in done.metrics.values())
        assert done.embedding is not None
        assert not done.embedding.requires_grad
        assert not done.grad_norm.requires_grad


def test_a_task_absent_from_a_micro_batch_is_left_out_but_a_lost_loss_shows() -> None:
    (done,) = steps(Slope(), [[1.0, 2.0, 3.0, 4.0, 5.0]], micro_batch=3)
    assert done.metrics["loss_task"].item() == pytest.approx(2.0)
    (done,) = steps(Slope(), [[1.0, math.nan]], micro_batch=1)
    assert done.metrics["loss"].isnan()


def test_training_starts_at_the_clock_s_step() -> None:
    done = steps(Slope(), [[1.0]] * 3, start=8)
    assert [(step.clock.step, step.clock.epoch) for step in done] == [(8, 0), (9, 0), (10, 1)]


def test_the_loop_is_lazy() -> None:
    """Saving, logging and stopping happen between steps: no batch is taken before it is needed."""
    taken = []

    def source() -> Any:
        for number in range(3):
            taken.append(number)
            yield {"x": torch.ones(1, dtype=torch.float64), "index": torch.arange(1)}

    method = Slope()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    schedule = CosineSchedule(optimizer, 10, 0, 0.0, 0.0)
    loop = train(method, source(), optimizer, schedule, Clock(0, 3, 3).rest(), device=CPU)
    assert taken == []
    next(loop)
    assert taken == [0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_matrix_products(precision: Any) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
            out = self.layer(batch["x"])
            self.dtype = out.dtype
            return {"loss": out.float().mean()}

        def after_step(self, clock: Clock) -> None: ...

    method = Product()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    batch = {"x": torch.ones(1, 2), "index": torch.arange(1)}
    schedule = CosineSchedule(optimizer, 10, 0, 0.0, 0.0)
    (done,) = train(
        method, [batch], optimizer, schedule, Clock(0, 1, 1).rest(), device=CPU, precision=precision
    )  # fmt: skip
    assert method.dtype == getattr(torch, precision)
    assert method.layer.weight.dtype == torch.float32
    assert done.metrics["loss"].dtype == torch.float32
    assert done.embedding is None


def test_a_batch_is_split_without_loss() -> None:
    batch = {"x": torch.arange(7), "index": torch.arange(7) * 2}
    assert [part["x"].tolist() for part in split(batch, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part["index"].tolist() for part in split(batch, 3)] == [[0, 2, 4], [6, 8, 10], [12]]
    assert split(batch, 0) == [batch]
    assert split(batch, 7) == [batch]


# ----------------------------------------------------------------------------------------------- device


def test_pictures_become_floats_from_0_to_1_and_nothing_else_does() -> None:
    batch = {
        "image": torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1),
        "frames": torch.full((1, 2, 3, 1, 1), 255, dtype=torch.uint8),
        "text": torch.tensor([[72, 105]], dtype=torch.uint8),
        "mask": torch.ones(1, 4, 4, dtype=torch.uint8),
        "index": torch.tensor([3]),
        "ready": torch.tensor([2.5]),
        "bad": [("path", "reason")],
    }
    moved = to_device(batch, CPU)
    assert set(moved) == set(batch) - {"bad"}
    assert all(torch.equal(moved[name], batch[name]) for name in ("text", "mask"))  # type: ignore[arg-type]
    assert moved["text"].dtype == torch.uint8
    assert moved["frames"].unique().tolist() == [1.0]
    assert moved["image"].dtype == torch.float32
    torch.testing.assert_close(moved["image"].flatten(), torch.tensor([0.0, 0.2, 1.0]), rtol=0, atol=1e-7)
    assert (moved["index"].dtype, moved["ready"].item()) == (torch.int64, 2.5)


def test_devices_and_precisions() -> None:
    from sslkit.core.errors import UserError

    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="no device 'tpu9' here"):
        pick_device("tpu9")
    assert pick_precision("float32", CPU) == "float32"
    assert pick_precision("bfloat16", CPU) == "bfloat16"
    assert pick_precision("auto", torch.device("mps")) == "float32"
    with autocast(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")


# ----------------------------------------------------------------------------------------------- health


def test_effective_rank_counts_directions() -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 8, generator=random))[0]  # [64, 8], orthonormal columns
    assert effective_rank(basis).item() == pytest.approx(8, rel=1e-3)
    assert effective_rank(basis[:, :3] @ torch.eye(3, 8)).item() == pytest.approx(3, rel=1e-3)
    assert effective_rank(torch.ones(64, 8)).item() == pytest.approx(1, rel=1e-3)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    share = values / values.sum()
    entropy = -(share * share.log()).sum()
    assert effective_rank(torch.diag(values)).item() == pytest.approx(entropy.exp().item(), rel=1e-3)
    assert effective_rank(torch.zeros(4, 4)).isfinite()
    assert effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])).isnan()


def test_singular_values_that_do_not_converge_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Tensor:
        assert matrix.device.type == "cpu"  # some devices have no such decomposition
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    assert effective_rank(torch.rand(4, 4)).isnan()


def test_feature_std_is_one_over_root_d_when_healthy_and_0_when_collapsed() -> None:
    random = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4000, 64, generator=random)).item() == pytest.approx(1 / 8, rel=0.02)
    assert feature_std(torch.ones(10, 64) * torch.arange(1, 11)[:, None]).item() < 1e-6


def step_with(embedding: Tensor | None, **metrics: float) -> Step:
    tensors = {name: torch.tensor(value) for name, value in metrics.items()}
    return Step(Clock(0, 9, 3), tensors, embedding, torch.tensor(2.0), 0.1, 0.25, [])


def test_an_interval_means_over_its_steps() -> None:
    interval = Interval()
    interval.add(step_with(torch.eye(4), loss=1.0, loss_low=math.nan))
    interval.add(step_with(torch.eye(4), loss=3.0, loss_low=5.0))
    figures = interval.figures()
    assert (figures["loss"], figures["loss_low"], figures["grad_norm"]) == (2.0, 5.0, 2.0)
    assert figures["rank"] == pytest.approx(4, rel=1e-3)
    assert (interval.steps, interval.wait) == (2, 0.5)
    interval.add(step_with(None, loss=math.nan, loss_low=1.0))
    assert math.isnan(interval.figures()["loss"])


def test_an_interval_keeps_the_newest_embeddings_only() -> None:
    interval = Interval()
    interval.add(step_with(torch.eye(64).repeat(8, 1), loss=1.0))
    for _ in range(ROWS // 64):
        interval.add(step_with(torch.ones(64, 64), loss=1.0))
    assert interval.figures()["rank"] == pytest.approx(1, rel=1e-2)


HEALTHY = {"std": 0.1, "rank": 50.0, "chance": 0.5}


@pytest.mark.parametrize(
    ("figures", "share", "word"),
    [
        (HEALTHY, 0.9, None),
        ({**HEALTHY, "std": 0.004}, 0.0, "collapsed"),
        ({**HEALTHY, "rank": 1.01}, 0.0, "one direction"),
        ({**HEALTHY, "chance": 0.999}, 0.5, "guessing"),
        ({**HEALTHY, "chance": 0.999}, 0.1, None),  # every network begins there
        ({"loss": 1.0}, 0.5, None),
        ({**HEALTHY, "std": math.nan, "rank": math.nan}, 0.5, None),  # the loss will tell
    ],
)
def test_figures_that_look_wrong_come_with_a_cure(
    figures: dict[str, float], share: float, word: str | None
) -> None:
    said = advice(figures, width=100, share=share)
    assert said is None if word is None else word in str(said)
    assert word is None or "optim.lr" in str(said)
