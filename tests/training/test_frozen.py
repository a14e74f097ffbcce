"""A teacher that is only looked at: where it is not, what a run keeps of it, and what a resume refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import export_test_vit
from safetensors.torch import load_file, save_file

from sslkit import api
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.models.frozen import Frozen
from sslkit.training.loop.signals import Interrupted

DISTILLED = '''
"""Features of a frozen encoder as targets."""

from dataclasses import dataclass

from torch import nn

from sslkit.methods.base import Method, settings, source_setting
from sslkit.models.frozen import Frozen


class Distilled(Method):
    """Predict what the teacher sees."""

    @dataclass(frozen=True)
    class Config:
        teacher: str = source_setting("a frozen encoder")
        crop_scale: tuple[float, float] = settings.crop_scale(0.5)
        flip: float = settings.flip()

    def __init__(self, config, encoder, info):
        super().__init__(config, encoder, info)
        self.teacher = Frozen(config.teacher, info.size)
        self.head = nn.Linear(encoder.width, self.teacher.encoder.width)

    def forward(self, batch, clock):
        assert not self.teacher.encoder.training
        target = self.teacher.encoder.vector(batch["image"])
        found = self.head(self.encoder.vector(batch["image"]))
        return {"loss": (found - target).square().mean()}
'''

COMMON: dict[str, Any] = {
    "backbone": "test_vit", "size": 32, "epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu",
    "precision": "float32", "pictures": 0,
}  # fmt: skip


@pytest.fixture
def method(tmp_path: Path) -> Path:
    file = tmp_path / "distilled.py"
    file.write_text(DISTILLED)
    return file


class Stopper(Console):
    """Ctrl-C at the first step that is logged."""

    def event(self, document: Any) -> None:
        signal.raise_signal(signal.SIGINT)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def run(method: Path, teacher: str, out: Path, **changes: Any) -> Path:
    settings = ["run.log_every=2", "model.patch_size=8", f"method.teacher={teacher}"]
    return api.pretrain("fractal:8", method=str(method), out=out, settings=settings, **COMMON, **changes)


def test_it_is_nowhere_but_in_forward(method: Path, tmp_path: Path) -> None:
    export_test_vit(made(tmp_path / "teacher"))
    folder = run(method, str(tmp_path / "teacher"), tmp_path / "run")
    newest = max((folder / "checkpoints").glob("step-????????"))
    saved = load_file(newest / "model.safetensors")
    assert not [name for name in saved if "teacher" in name]
    assert "head.weight" in saved
    facts = json.loads((folder / "run.json").read_text())["frozen"]["teacher"]
    assert facts["source"] == str(tmp_path / "teacher")
    assert len(facts["sha256"]) == 64


def test_a_frozen_encoder_follows_its_method_and_rests() -> None:
    holder = torch.nn.ModuleDict({"teacher": Frozen("random/test_vit", 32)})
    frozen: Any = holder["teacher"]
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    assert list(holder.parameters()) == []
    assert list(holder.state_dict()) == []
    holder.train().double()
    assert not frozen.encoder.training
    assert next(frozen.encoder.parameters()).dtype == torch.float64
    holder.float()
    assert all(torch.equal(value, before[name]) for name, value in frozen.encoder.state_dict().items())


def test_another_teacher_is_not_resumed(
    method: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is kept as an absolute one; weights that were halved on the disk are seen."""
    monkeypatch.chdir(tmp_path)
    teacher = export_test_vit(made(tmp_path / "teacher"))
    with pytest.raises(Interrupted):
        run(method, "teacher", tmp_path / "run", console=Stopper(quiet=True))
    monkeypatch.chdir("/")
    file = next(teacher.glob("*.safetensors"))
    whole, content = load_file(file), file.read_bytes()
    save_file({name: value / 2 for name, value in whole.items()}, file)
    with pytest.raises(UserError, match=r"teacher: the weights of .*teacher have changed since") as error:
        api.pretrain(resume=tmp_path / "run")
    assert "begin a new run" in error.value.hint
    file.unlink()
    with pytest.raises(UserError):
        api.pretrain(resume=tmp_path / "run")
    file.write_bytes(content)
    api.pretrain(resume=tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "completed"


def test_a_teacher_that_is_gone_is_one_line_and_leaves_nothing(method: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(method, str(tmp_path / "nowhere"), tmp_path / "run")
    assert error.value.code == 2
    assert not (tmp_path / "run").exists()
