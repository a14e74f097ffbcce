"""--max-time: how many steps fit, and a run that ends on the clock with its rates gone down."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sslkit import api
from sslkit.core.errors import UserError
from sslkit.training.loop import time_limit
from sslkit.training.loop.time_limit import Deadline
from sslkit.training.pretrain.config import pretrain_config


class Time:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time_limit.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(("pace", "used"), [(1.0, 0.0), (0.5, 40.0), (7.0, 0.0)])
def test_even_steps_end_within_the_time(monkeypatch: pytest.MonkeyPatch, pace: float, used: float) -> None:
    clock = Time(monkeypatch)
    plan, done, steps = Deadline(1000.0, used, spare=0.01), 0, 10**9
    while done < steps:
        clock.now += pace
        done += 1
        steps = plan.planned(done)
    assert 990 - used - 3 * pace < clock.now <= 990 - used
    assert plan.used == pytest.approx(clock.now + used)


def test_a_machine_that_slows_down_moves_the_end_not_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    plan, done, steps, plans = Deadline(1000.0, spare=0.0), 0, 10**9, []
    while done < steps:
        clock.now += 1.0 if done < 300 else 2.0
        done += 1
        steps = plan.planned(done)
        plans.append(steps)
    assert plans[200] == 1000
    assert done == pytest.approx(650, abs=3)
    assert clock.now <= 1000


def test_the_last_two_steps_know_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    plan = Deadline(10.0, spare=0.0)
    plans = []
    for done in range(1, 11):
        clock.now += 1.0 if done < 9 else 0.4  # faster at the very end
        plans.append(plan.planned(done))
    assert plans[7:] == [10, 10, 10]


def test_a_run_fits_its_schedule_to_the_clock(photos: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    run = api.pretrain(
        photos, backbone="test_vit", size=32, batch_size=4, workers=0, device="cpu", precision="float32",
        pictures=0, out=tmp_path / "run", max_time="6s", settings=["model.patch_size=8", "run.log_every=1"],
    )  # fmt: skip
    took = time.monotonic() - began
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert took > 5.0
    assert lines[-1]["step"] == json.loads((run / "run.json").read_text())["step"]
    assert rates[-1] < 0.1 * max(rates)  # the cosine has come down, wherever the end was
    state = json.loads(max((run / "checkpoints").glob("step-*/state.json")).read_text())
    assert 5.0 < state["seconds"] <= 6.5
    assert state["steps"] == state["step"]


def test_a_run_shorter_than_a_log_interval_has_a_line(photos: Path, tmp_path: Path) -> None:
    run = api.pretrain(
        photos, backbone="test_vit", size=32, batch_size=4, workers=0, device="cpu", precision="float32",
        pictures=0, out=tmp_path / "run", max_time="0.001s", settings=["run.log_every=50"],
    )  # fmt: skip
    (line,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == json.loads((run / "run.json").read_text())["step"] == 1
    assert line["loss"] > 0


def test_epochs_and_a_time_are_one_too_many() -> None:
    with pytest.raises(UserError, match="both say how long to train") as error:
        pretrain_config(["photos"], flags={"epochs": 3, "max_time": "8h"})
    assert error.value.code == 2


def test_a_time_is_a_time(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'500' is not a time"):
        api.pretrain(photos, out=tmp_path / "run", max_time="500")
    assert not (tmp_path / "run").exists()
