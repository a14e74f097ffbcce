"""What a run tells to TensorBoard, Weights & Biases and MLflow, read back by their own readers."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sslkit.core.config.build import PretrainConfig, flat
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run.folder import RunFolder
from sslkit.training.run.loggers import LIBRARIES, Loggers, has_key, require

Tiny = Callable[..., PretrainConfig]
MLFLOW = "mlflow has no place in the dev extra: thirty packages; pip install 'sslkit[mlflow]' runs this test"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may find a key and send anything."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY"):  # given back after the test
        monkeypatch.setenv(name, "false" if name.startswith("WANDB") else "true")


class Falls(Console):
    """A console at which training fails when a step is reported; keeps its warnings about loggers."""

    def __init__(self, step: int = 0) -> None:
        super().__init__(quiet=True)
        self.step = step
        self.warnings: list[str] = []

    def event(self, document: Any) -> None:
        if document["step"] == self.step:
            raise RuntimeError("as if the machine had failed")

    def warn(self, text: str, cure: str = "") -> None:
        if "is left out" in text:
            self.warnings.append(text)


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Step → figures that are not null."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line.pop("step"): {k: v for k, v in line.items() if v is not None} for line in lines}


def fallen_and_resumed(config: PretrainConfig) -> Path:
    """Saved at step 4, fallen at step 7 after telling of steps 5 and 6, and resumed from 4 to 12."""
    with pytest.raises(RuntimeError, match="as if"):
        pretrain(config, Falls(7))
    return resume(Path(config.run.out), Console(quiet=True))


def from_event_files(run: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of what it purges
    found = reader.EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_tensorboard_holds_every_figure_once(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    run = fallen_and_resumed(
        tiny("run", **{"run.loggers": ["tensorboard"], "run.save_every": "4", "run.pictures": 2})
    )
    expected, found = metrics(run), from_event_files(run)
    names = {name for figures in expected.values() for name in figures}
    assert set(found.Tags()["scalars"]) == names >= {"loss", "lr", "rank", "std"}
    for name in names:
        told = {event.step: event.value for event in found.Scalars(name)}
        assert len(told) == len(found.Scalars(name)), name
        wanted = {step: figures[name] for step, figures in expected.items() if name in figures}
        assert list(told) == list(wanted)
        assert all(math.isclose(told[step], wanted[step], rel_tol=1e-5) for step in wanted), name
    assert [picture.step for picture in found.Images("pictures")] == [6, 12]
    assert (found.Images("pictures")[0].width, found.Images("pictures")[0].height) == size_of(run)
    settings = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "optim.lr = 0.05" in settings


def size_of(run: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(run / "pictures" / "step-00000006.png") as picture:
        return picture.size


def from_wandb_files(run: Path) -> Iterator[dict[str, Any]]:
    """History records of all offline files, in order; the last ones also of pictures."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }


def records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB; a part has checksum, length, type (1: whole)."""
    place, parts = 7, b""  # after the file's own header
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_without_a_key_stays_offline(tiny: Tiny) -> None:
    wandb = pytest.importorskip("wandb")
    run = fallen_and_resumed(
        tiny("run", **{"run.loggers": ["wandb"], "run.save_every": "4", "run.pictures": 1})
    )
    wandb.teardown()
    assert "offline: nothing is sent" in (run / "log.txt").read_text(encoding="utf-8")
    expected, lines = metrics(run), list(from_wandb_files(run))
    assert [line["_step"] for line in lines] == [*range(1, 13)]
    for line in lines:
        if line["_step"] in (1, 12):
            assert line["loss"] == pytest.approx(expected[line["_step"]]["loss"], rel=1e-5)
    assert any(key.startswith("pictures") for key in lines[-1])
    folders = list(run.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.split("-")[3] for folder in folders}) == 1  # one run, when they are synced


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_holds_every_figure_once(tiny: Tiny) -> None:
    mlflow = pytest.importorskip("mlflow", reason=MLFLOW)
    config = tiny("run", **{"run.loggers": ["mlflow"], "run.save_every": "4", "run.pictures": 1})
    run = fallen_and_resumed(config)
    client = mlflow.MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sslkit").experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    expected = metrics(run)
    for name in ("loss", "lr"):
        told = [(line.step, line.value) for line in client.get_metric_history(found.info.run_id, name)]
        assert sorted(told) == [(step, figures[name]) for step, figures in expected.items()]
    assert found.data.params["optim.lr"] == "0.05"
    assert set(found.data.params) == set(flat(config))
    assert [file.path for file in client.list_artifacts(found.info.run_id, "pictures")] == [
        "pictures/step-00000012.png"
    ]


def test_a_logger_that_fails_is_told_of_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    console = Falls()
    run = pretrain(tiny("run", **{"run.loggers": ["tensorboard"]}), console)
    assert console.warnings == ["tensorboard is left out: no space left; training goes on"]
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert len(metrics(run)) == 12


def test_a_logger_that_cannot_begin_is_left_out(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    config = tiny("run", **{"run.loggers": ["tensorboard"], "run.save_every": "4"})
    with pytest.raises(RuntimeError, match="as if"):
        pretrain(config, Falls(5))
    folder = Path(config.run.out) / "tensorboard"
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("not a folder")
    console = Falls()
    assert len(metrics(resume(Path(config.run.out), console))) == 12
    assert len(console.warnings) == 1
    assert console.warnings[0].startswith("tensorboard is left out: ")


def test_only_the_first_process_tells(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("run", **{"run.loggers": ["tensorboard"]})
    loggers = Loggers(RunFolder(tmp_path / "run", writes=False), config, Console(quiet=True))
    with loggers.opened(0):
        loggers.log({"step": 1, "loss": 0.5})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_told_at_the_door(
    name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name][0], None)
    with pytest.raises(UserError, match=f"run.loggers {name}: its library is missing") as caught:
        pretrain(tiny("run", **{"run.loggers": [name]}))
    assert caught.value.hint == f"pip install 'sslkit[{name}]'"
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases leaves ./wandb behind, which Python takes for a package without files."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [module for module in sys.modules if module.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(UserError, match="its library is missing"):
        require(["wandb"])


def test_a_key_is_the_users_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_key()
    monkeypatch.delenv("WANDB_API_KEY")
    file = tmp_path / "netrc"
    file.write_text("machine example.org login me password 0123\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    assert has_key()
    file.write_text("not a netrc")
    assert not has_key()
