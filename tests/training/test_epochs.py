"""Methods that look at all images, orders of their own, and sets whose items are not images one by one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sslkit import api
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import open_images
from sslkit.methods import load
from sslkit.training.loop.look import Look
from sslkit.training.loop.signals import Interrupted

CLUSTERED = '''
"""Images in the order of a feature that is looked at anew in every epoch; their ranks are labels."""

from dataclasses import dataclass

import torch
from torch import nn

from sslkit.core.console import command
from sslkit.methods.base import Method, RandomResizedCrop, Views, setting
from sslkit.models.memories import Assignments, Bank


class Clustered(Method):
    """Learn which of four groups an image is in."""

    @dataclass(frozen=True)
    class Config:
        shown: int = setting(16, "images an epoch shows", low=0)

    def __init__(self, config, encoder, info):
        super().__init__(config, encoder, info)
        self.head = nn.Linear(encoder.width, 4)
        self.clusters = Assignments(info.count, 4)
        self.bank = Bank(info.count, encoder.width)
        self.register_buffer("looks", torch.zeros(1))

    def transform(self):
        return Views(image=RandomResizedCrop(self.info.size, (0.5, 1.0)))

    def prepare(self, look):
        self.bank.fill(look.each(self.encoder.vector, label="a first look"))

    def each_epoch(self, look, clock):
        features = look.each(self.encoder.vector)
        assert not features.requires_grad
        self.clusters.fill(features[:, 0].argsort().argsort() * 4 // len(look))
        self.looks += 1

    def order(self, clock):
        return self.clusters.labels.argsort(stable=True).roll(clock.epoch)[: self.config.shown]

    def forward(self, batch, clock):
        vector = self.encoder.vector(batch["image"])
        self.bank.put(batch["index"], vector)
        loss = nn.functional.cross_entropy(self.head(vector), self.clusters.labels[batch["index"]])
        pulled = (vector - self.bank.rows[batch["index"]]).square().mean()
        return {"loss": loss + pulled, "labels": self.clusters.labels[batch["index"]].float().mean()}
'''

GROUPED = '''
"""An item is four images that follow each other."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sslkit.augmentations.crops import CenterCrop
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Method, setting


@dataclass(frozen=True)
class Fours(ImageSet):
    def __len__(self):
        return len(self.paths) // 4

    @contextmanager
    def opened(self, index):
        with ImageSet.opened(self, 4 * index) as first, ImageSet.opened(self, 4 * index + 3) as last:
            yield first, last


class Ends:
    def __init__(self, size):
        self.crop = CenterCrop(size)

    def __call__(self, pictures, random):
        return {"image": self.crop(pictures[0].rgb()), "last": self.crop(pictures[1].rgb())}


class Grouped(Method):
    """Bring the first and the last together."""

    @dataclass(frozen=True)
    class Config:
        weight: float = setting(1.0, "of the loss", low=0)

    def __init__(self, config, encoder, info):
        super().__init__(config, encoder, info)
        self.register_buffer("seen", torch.zeros(info.count))

    def dataset(self, images):
        return Fours(images.paths, images.name)

    def transform(self):
        return Ends(self.info.size)

    def forward(self, batch, clock):
        self.seen[batch["index"]] += 1
        first, last = (self.encoder.vector(batch[name]) for name in ("image", "last"))
        return {"loss": (first - last).square().mean() * self.config.weight}
'''

COMMON: dict[str, Any] = {
    "backbone": "test_vit", "size": 32, "epochs": 4, "batch_size": 4, "workers": 0, "device": "cpu",
    "precision": "float32", "pictures": 0, "seed": 3,
}  # fmt: skip
SETTINGS = ["model.patch_size=8", "run.log_every=1"]
IMAGES = "fractal:16"


@pytest.fixture
def clustered(tmp_path: Path) -> Path:
    file = tmp_path / "clustered.py"
    file.write_text(CLUSTERED)
    return file


def run(method: Path, out: Path, settings: tuple[str, ...] = (), **changes: Any) -> Path:
    words = {**COMMON, "settings": [*SETTINGS, *settings], **changes}
    return api.pretrain(IMAGES, method=str(method), out=out, **words)


def figures(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("step-????????"))
    return load_file(newest / "model.safetensors")


def same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_epoch_shows_what_the_method_says_in_its_order(clustered: Path, tmp_path: Path) -> None:
    folder = run(clustered, tmp_path / "run")
    labels = figures(folder, "labels")
    assert labels[:4] == [0, 1, 2, 3]
    assert labels[4:8] == [0.75, 0.25, 1.25, 2.25] or labels[4:8] == [0.75, 0.75, 1.75, 2.75]
    found = weights(folder)
    assert found["looks"].item() == 4
    assert sorted(found["epoch_order.images"].tolist()) == list(range(16))


@pytest.mark.parametrize("settings", [("method.shown=12",), ("method.shown=0",)], ids=str)
def test_an_order_that_is_too_short_is_one_line(
    clustered: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match="order of epoch 0 can't be followed") as error:
        run(clustered, tmp_path / "run", settings)
    assert error.value.hint == "`order` gives 16 to 16 numbers of 0 … 15"


@pytest.mark.parametrize(
    "options", [{"workers": 2, "cache": "off"}, {"cache": "off"}, {"workers": 1}], ids=str
)
def test_workers_and_memory_keep_it(clustered: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    same(run(clustered, tmp_path / "one"), run(clustered, tmp_path / "other", **options))


class Stopper(Console):
    """Ctrl-C when a step is logged."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.step = step

    def event(self, document: Any) -> None:
        if document["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("step", "workers"), [(6, 0), (6, 2), (8, 0)])
def test_a_resume_goes_on_in_the_same_order(clustered: Path, tmp_path: Path, step: int, workers: int) -> None:
    """In an epoch, where the order is what it was, and between two, where the method looks again."""
    whole, part = run(clustered, tmp_path / "whole"), tmp_path / "part"
    with pytest.raises(Interrupted):
        run(clustered, part, console=Stopper(step), workers=workers)
    assert weights(part)["looks"].item() == 2
    api.pretrain(resume=part)
    same(whole, part)
    assert figures(part, "loss") == figures(whole, "loss")


@pytest.mark.slow
def test_two_processes_see_one_order(clustered: Path, tmp_path: Path) -> None:
    sgd = ("optim.name=sgd", "optim.lr=0.1", "run.patience=60")
    one = run(clustered, tmp_path / "one", sgd)
    two = run(clustered, tmp_path / "two", sgd, devices=2)
    assert figures(two, "labels") == pytest.approx(figures(one, "labels"))
    ours, theirs = weights(one), weights(two)
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-5) for name in ours)


def test_a_look_reads_every_image_once_in_order(tmp_path: Path) -> None:
    images = open_images([IMAGES])
    method = torch.nn.BatchNorm2d(3).train()
    look = Look(images, method, 32, torch.device("cpu"))
    modes: list[bool] = []

    def read(views: torch.Tensor) -> torch.Tensor:
        modes.append(method.training)
        return torch.cat([views.mean((2, 3)), views.amax((2, 3))], 1)

    found = look.each(read)
    assert modes == [False]
    assert method.training
    for index in range(len(images)):
        view = CenterCrop(32)(images.read(index)).float() / 255
        torch.testing.assert_close(found[index], torch.cat([view.mean((1, 2)), view.amax((1, 2))]))
    assert found.shape == (16, 6)
    assert len(look) == 16
    assert look.fingerprint == images.fingerprint  # what a set has a look has too


def test_batch_and_epochs_are_those_of_items(tmp_path: Path) -> None:
    """Four items of four images each: a batch of all, and a memory of four."""
    file = tmp_path / "grouped.py"
    file.write_text(GROUPED)
    auto = {name: value for name, value in COMMON.items() if name not in ("batch_size", "epochs")}
    words: dict[str, Any] = {**auto, "settings": [*SETTINGS, "schedule.epochs=2"]}
    folder = api.pretrain(IMAGES, method=str(file), out=tmp_path / "run", **words)
    assert "batch_size = 4  #" in (folder / "config.toml").read_text()
    found = weights(folder)
    assert found["seen"].tolist() == [2, 2, 2, 2]
    data = json.loads((folder / "run.json").read_text())["data"]
    assert (data["count"], data["items"]) == (16, 4)
    with pytest.raises(UserError, match="batch of 8 is larger than the data: 4"):
        api.pretrain(IMAGES, method=str(file), out=tmp_path / "other", batch_size=8, **words)
    api.pretrain(resume=folder, epochs=4)
    assert weights(folder)["seen"].tolist() == [4, 4, 4, 4]
    assert load(str(file)).__name__ == "Grouped"
