"""Saves that fail, and saves in the background."""

from __future__ import annotations

import json
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run import checkpoint
from sslkit.training.run.checkpoint import SaveFailed
from sslkit.training.run.checkpoint_writer import Writer

Tiny = Callable[..., PretrainConfig]


@contextmanager
def files_up_to(limit: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `limit` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(100, 50)
    return layer, torch.optim.SGD(layer.parameters(), lr=0.1)


def save(writer: Writer, step: int) -> None:
    writer.save(step, *model(), {})
    writer.settle()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_a_failed_save_is_one_line_and_leaves_nothing(
    tmp_path: Path, background: bool, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path, background, Console(quiet=True))
    save(writer, 1)
    with files_up_to(limit):
        for _ in range(2):
            save(writer, 2)
        writer_said = capsys.readouterr().err.splitlines()
        with pytest.raises(SaveFailed):
            save(writer, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.fault(tmp_path / "step-00000001") == ""
    assert len(writer_said) == 2
    assert f"step 2 was not saved in {tmp_path}: " in writer_said[0]
    assert "it needs 2" in writer_said[0]  # 5,050 weights of 4 bytes, and the generator's state
    assert writer_said[0].endswith("(make room; older checkpoints are whole)")


def test_a_success_between_failures_starts_the_count_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path, False, Console(quiet=True))
    for step in range(1, 4):
        with files_up_to(100):
            writer.save(step, *model(), {})
            writer.save(step, *model(), {})
        writer.save(step, *model(), {})
    assert writer.failures == 0


def test_in_the_background_the_weights_are_those_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, commit, running = threading.Event(), checkpoint.commit, []

    def held(*given: Any) -> Path:
        running.append(threading.current_thread() is threading.main_thread())
        assert go.wait(20)
        return commit(*given)

    monkeypatch.setattr(checkpoint, "commit", held)
    layer, optimizer = model()
    before = layer.weight.detach().clone()
    writer = Writer(tmp_path, True, Console(quiet=True))
    writer.save(1, layer, optimizer, {})
    with torch.no_grad():
        layer.weight.zero_()  # training goes on while the thread has not even begun
    writer.settle(wait=False)
    assert list(tmp_path.iterdir()) == []
    go.set()
    writer.save(2, layer, optimizer, {})  # waits: one in flight at most
    assert checkpoint.fault(tmp_path / "step-00000001") == ""
    writer.settle()
    assert torch.equal(load_file(tmp_path / "step-00000001/model.safetensors")["weight"], before)
    assert not load_file(tmp_path / "step-00000002/model.safetensors")["weight"].any()
    assert running == [False, False]


def test_what_is_not_finite_is_told_from_the_background_too(tmp_path: Path) -> None:
    layer, optimizer = model()
    with torch.no_grad():
        layer.bias[3] = torch.nan
    writer = Writer(tmp_path, True, Console(quiet=True))
    writer.save(1, layer, optimizer, {})
    with pytest.raises(UserError, match="weight bias is not finite"):
        writer.settle()


# -------------------------------------------------------------------------------------------- whole runs


class Filling(Console):
    """The disk is full from one step to another."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(quiet=True)
        self.first, self.last, self.full = first, last, files_up_to(2_000)

    def event(self, document: Any) -> None:
        if document["step"] == self.first:
            self.full.__enter__()
        if document["step"] == self.last:
            self.full.__exit__(None, None, None)


def test_training_goes_on_when_the_disk_is_full_and_saves_when_it_is_not(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pretrain(tiny("whole"))
    run = pretrain(tiny("run", **{"run.save_every": "2"}), Filling(3, 6))
    err = capsys.readouterr().err
    assert err.count("was not saved") == 1  # step 4; at step 6 there is room again
    assert "training goes on" in err
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(lines) <= set(range(1, 13))  # whole lines only
    for name, tensor in load_file(run / "encoder.safetensors").items():
        assert torch.equal(tensor, load_file(whole / "encoder.safetensors")[name])


def test_after_three_failed_saves_the_run_stops_and_can_be_resumed(tiny: Tiny) -> None:
    filling = Filling(3, 99)
    with pytest.raises(SaveFailed, match="step 8 was not saved"):
        pretrain(tiny("run", **{"run.save_every": "2"}), filling)
    filling.full.__exit__(None, None, None)
    run = Path(tiny("run").run.out)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    resume(run)


def test_a_run_saved_in_the_background_is_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU a save is done in the step; here it is made to happen as on a GPU."""
    from sslkit.training.loop import session

    whole = pretrain(tiny("whole"))
    monkeypatch.setattr(session, "Writer", lambda folder, background, console: Writer(folder, True, console))
    run = pretrain(tiny("run", **{"run.save_every": "2"}))
    last = "checkpoints/step-00000012"
    for file in (f"{last}/model.safetensors", f"{last}/optimizer.safetensors", "encoder.safetensors"):
        ours, theirs = load_file(run / file), load_file(whole / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), file
