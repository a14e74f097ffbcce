"""Memory that runs out: what is saved, with how many images at once a run goes on, and one line for all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit import api
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.distributed import environment, processes
from sslkit.core.errors import UserError
from sslkit.finetuning.classifier import Classifier
from sslkit.finetuning.finetune import finetune
from sslkit.methods import TEMPLATE
from sslkit.methods.base import Clock
from sslkit.methods.frequency.mfm import MFM
from sslkit.training.loop import launch
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.optim import CosineSchedule
from sslkit.training.loop.out_of_memory import OutOfMemory, images_at_once, note_at_once
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run.folder import RunFolder

Tiny = Callable[..., PretrainConfig]


class Statistics(nn.Module):
    """A batch norm, a queue in another type and then, for more than `room` images, `error`."""

    minimum_batch = 2

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("queue", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("fixed", torch.ones(1), persistent=False)
        self.room, self.error = room, error or torch.OutOfMemoryError("full")

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        loss = self.norm(batch["x"]).square().mean()
        self.queue += len(batch["x"])
        if len(batch["x"]) > self.room:
            raise self.error
        return {"loss": loss}

    def after_step(self, clock: Clock) -> None:
        pass


def walk(method: nn.Module, micro_batch: int = 0) -> list[Step]:
    """Two steps of six images."""
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    schedule, clock = CosineSchedule(optimizer, 10**9, 0, 0.0, 0.0), Clock(0, 2, 10)
    images = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    batches = [{"x": images, "index": torch.arange(6)}] * 2
    device = torch.device("cpu")
    return list(
        train(method, batches, optimizer, schedule, clock.rest(), device=device, micro_batch=micro_batch)
    )


# ---------------------------------------------------------------------------------------- in the engine


def test_statistics_of_a_failed_pass_are_not_counted() -> None:
    halved, never = Statistics(3), Statistics(3)
    walk(halved)
    walk(never, micro_batch=3)
    assert halved.norm.num_batches_tracked == 4
    for name, tensor in never.state_dict().items():
        assert torch.equal(halved.state_dict()[name], tensor), name


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), ValueError("odd")])
def test_whatever_fails_leaves_the_last_finished_steps_buffers(error: Exception) -> None:
    method = Statistics(3, error)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with pytest.raises(type(error), match=str(error)):
        walk(method)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())


def test_memory_that_runs_out_beside_the_images_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", full)
    method = Statistics(6)
    with pytest.raises(OutOfMemory, match=r"^step 1: out of memory$") as error:
        walk(method)
    assert (error.value.code, error.value.at_once) == (1, 0)
    assert method.norm.num_batches_tracked == 0


def test_it_is_told_where_fewer_are_impossible() -> None:
    with pytest.raises(OutOfMemory, match=r"^step 1: out of memory with 2 of 6 images at once, and fewer"):
        walk(Statistics(0))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_elsewhere_it_is_one_line_too(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^step 7: out of memory$") as told, processes.watched(lambda: 7):
        raise error
    assert told.value.code == 1
    with pytest.raises(RuntimeError, match="shapes"), processes.watched(lambda: 7):
        raise RuntimeError("shapes differ")


# ------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    ("asked", "found", "saved", "expected"),
    [
        (0, None, None, 0),
        (4, None, None, 4),
        (0, (0, 2), None, 2),  # halved, and no checkpoint since
        (0, (0, 2), (0, 4), 2),  # halved again at a step that was saved already
        (0, None, (0, 4), 4),  # run.json could not be written
        (8, (4, 2), (4, 4), 8),  # config.toml asks for more
        (1, (4, 2), (4, 4), 1),
        (0, (4, 2), (4, 2), 0),
        (8, None, (4, 4), 8),
    ],
)
def test_images_at_once_of_a_resumed_run(
    tmp_path: Path,
    asked: int,
    found: tuple[int, int] | None,
    saved: tuple[int, int] | None,
    expected: int,
) -> None:
    run = RunFolder(tmp_path)
    run.update(status="failed")
    if found:
        note_at_once(run, *found)
    state = {"config": {"run.micro_batch": saved[0]}, "micro_batch": saved[1]} if saved else {}
    assert images_at_once(run, asked, state) == expected
    assert bool(run.facts.get("at_once")) == bool(found and found[0] == asked)  # else dropped


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """MFM and classifiers have no memory for more images than this says; 2 at first."""
    room = [2]
    for kind in (MFM, Classifier):

        def forward(
            self: Any, batch: Any, clock: Clock, honest: Callable[..., Any] = kind.forward
        ) -> dict[str, Tensor]:
            if len(batch["index"]) > room[0]:
                raise torch.OutOfMemoryError("full")
            return dict(honest(self, batch, clock))

        monkeypatch.setattr(kind, "forward", forward)
    return room


class Crash(Console):
    def event(self, document: Any) -> None:
        raise KeyError


def at_once(run: Path) -> Any:
    return json.loads((run / "run.json").read_text()).get("at_once")


def edit(run: Path, micro_batch: int) -> None:
    """Another run.micro_batch in config.toml than 0."""
    file = run / "config.toml"
    text = file.read_text()
    assert "micro_batch = 0 " in text
    file.write_text(text.replace("micro_batch = 0 ", f"micro_batch = {micro_batch} "))


def test_a_run_that_dies_before_its_first_save_knows_and_config_toml_has_the_last_word(
    tiny: Tiny, tight: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("run")
    run = Path(config.run.out)
    with pytest.raises(KeyError):
        pretrain(config, Crash(quiet=True))
    assert not any((run / "checkpoints").iterdir())
    assert at_once(run) == {"asked": 0, "micro_batch": 2}
    capsys.readouterr()
    with pytest.raises(KeyError):
        resume(run, Crash(quiet=True))
    assert "out of memory" not in capsys.readouterr().err
    edit(run, 3)
    tight[0] = 3
    resume(run, Console(quiet=True))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["micro_batch"] for line in lines} == {3}
    assert at_once(run) is None


def test_a_fine_tuning_follows_the_same_rule(
    photos: Path, tmp_path: Path, tight: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        (photos / "ab"[number % 2]).mkdir(exist_ok=True)
        path.rename(photos / "ab"[number % 2] / path.name)
    (photos / "inside").rmdir()
    run = tmp_path / "run"
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "size": 32, "workers": 0, "device": "cpu"}
    options["settings"] = ["run.log_every=1", "augment.mix_probability=0"]
    with pytest.raises(KeyError):
        finetune("random/test_vit", str(photos), out=run, console=Crash(quiet=True), **options)
    assert at_once(run) == {"asked": 0, "micro_batch": 2}
    tight[0] = 0
    with pytest.raises(OutOfMemory, match="step 1: out of memory with 1 of 4"):
        finetune(resume=run)
    assert (run / "checkpoints/step-00000000").is_dir()
    edit(run, 1)
    tight[0] = 1
    capsys.readouterr()
    finetune(resume=run)
    assert "out of memory" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_memory_that_runs_out_twice_at_one_step_of_a_cnn(photos: Path, tmp_path: Path) -> None:
    """In the second process, so that the first one, which saves, sees only that the other is lost."""
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace(
        "from torch import",
        "import torch\nfrom sslkit.core.distributed.collectives import rank\nfrom torch import",
    )
    case = "if clock.step >= 2 and len(images) > 2 and rank() == 1:"
    problem = f"        {case}\n            raise torch.OutOfMemoryError('full')\n"
    (tmp_path / "greedy.py").write_text(text.replace("        error =", problem + "        error ="), "utf-8")
    run = tmp_path / "run"
    with pytest.raises(UserError, match="process 1 of 2, step 3: out of memory with 8 images at once"):
        api.pretrain(
            photos, out=run, method=str(tmp_path / "greedy.py"), backbone="test_resnet", size=64, epochs=3,
            batch_size=16, workers=0, device="cpu", precision="float32", pictures=0, devices=2,
            settings=["run.patience=60"],
        )  # fmt: skip
    assert at_once(run) == {"asked": 0, "micro_batch": 4}
    with pytest.raises(UserError, match="process 1 of 2, step 3: out of memory with 4 images at once"):
        api.pretrain(resume=run)
    assert at_once(run) == {"asked": 0, "micro_batch": 2}
    (saved,) = (run / "checkpoints").glob("step-*")
    weights = load_file(saved / "model.safetensors")
    assert {int(count) for name, count in weights.items() if name.endswith("num_batches_tracked")} == {2}
    api.pretrain(resume=run)
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def shaky(path: str) -> None:
    """The first process writes for a while, the second one fails at once."""
    if environment.number() == 1:
        raise UserError("no room", code=1)
    launch.say_writing()
    time.sleep(4)
    Path(path).write_text("written")


@pytest.mark.slow
def test_who_writes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 1.0)
    with pytest.raises(UserError, match="no room"):
        launch.launch(shaky, (str(tmp_path / "file"),), 2)
    assert (tmp_path / "file").read_text() == "written"
