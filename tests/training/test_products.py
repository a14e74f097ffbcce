"""What a run leaves beside its encoder, and what a next one finds of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit import api
from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.methods.base import Clock
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule
from sslkit.training.run.products import read_artefact

TOWERS = '''
"""An encoder with a second tower, and the pairs that it has found."""

from dataclasses import dataclass

import torch
from torch import nn

from sslkit.methods.base import Method, setting, settings


class Towers(Method):
    """Two towers agree."""

    @dataclass(frozen=True)
    class Config:
        width: int = setting(8, "of the second tower", low=1)
        crop_scale: tuple[float, float] = settings.crop_scale(0.5)
        flip: float = settings.flip()

    def __init__(self, config, encoder, info):
        super().__init__(config, encoder, info)
        self.second = nn.Linear(3, config.width)
        self.head = nn.Linear(encoder.width, config.width)

    def forward(self, batch, clock):
        found = self.head(self.encoder.vector(batch["image"])) - self.second(batch["image"].mean((2, 3)))
        each = found.square().mean(1)
        return {"loss": each.mean(), "per_image": each.detach()}

    def parts(self):
        return {"second": self.second}

    def artefacts(self):
        return {"pairs": torch.tensor([[0, 3], [1, 2]])}
'''


def test_parts_and_artefacts_lie_beside_the_encoder(tmp_path: Path) -> None:
    file = tmp_path / "towers.py"
    file.write_text(TOWERS)
    run = api.pretrain(
        "fractal:8", method=str(file), out=tmp_path / "run", backbone="test_vit", size=32, epochs=1,
        batch_size=4, workers=0, device="cpu", precision="float32", pictures=0,
        settings=["model.patch_size=8"],
    )  # fmt: skip
    assert [found.name for found in run.glob("*.safetensors")] == ["encoder.safetensors"]
    timm.create_model(f"local-dir:{run}", pretrained=True)
    newest = max((run / "checkpoints").glob("step-????????"))
    trained = load_file(newest / "model.safetensors")
    part = load_file(run / "parts/second.safetensors")
    assert set(part) == {"weight", "bias"}
    assert all(torch.equal(part[name], trained[f"second.{name}"]) for name in part)
    described = json.loads((run / "parts/parts.json").read_text())["second"]
    assert described == {
        "class": "Linear",
        "file": "second.safetensors",
        "sha256": sha256(run / "parts/second.safetensors"),
    }
    assert read_artefact(run, "pairs").tolist() == [[0, 3], [1, 2]]
    with pytest.raises(UserError, match="has no artefact 'pears'") as error:
        read_artefact(run, "pears")
    assert "pairs" in error.value.hint


class PerImage(nn.Module):
    """Each image's loss is its own value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Any]:
        each = batch["x"] * self.weight
        return {"loss": each.mean(), "per_image": each.detach()}

    def after_step(self, clock: Clock) -> None:
        pass


@pytest.mark.parametrize("micro_batch", [0, 2, 3])
def test_what_is_of_images_keeps_their_order(micro_batch: int) -> None:
    method = PerImage()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    steady = CosineSchedule(optimizer, 10**9, warmup=0, warmup_lr=0.0, min_lr=0.0)
    batch = {"x": torch.arange(5.0), "index": torch.arange(5)}
    clocks = Clock(0, 1, 1).rest()
    device = torch.device("cpu")
    (step,) = train(method, [batch], optimizer, steady, clocks, device=device, micro_batch=micro_batch)
    assert step.per_image is not None
    assert step.per_image.tolist() == [0, 1, 2, 3, 4]
    assert step.embedding is None
    assert set(step.metrics) == {"loss"}
