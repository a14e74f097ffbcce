"""What several tests need: one thread, a folder of small photographs, a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Called, called, write_photos

from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.methods import card

TINY = {
    "model.backbone": "test_vit",
    "model.patch_size": 8,
    "data.size": 32,
    "data.workers": 0,
    "method.radius": 4.0,
    "optim.lr": 0.05,
    "schedule.epochs": 3,
    "schedule.warmup_epochs": 1.0,
    "run.batch_size": 4,
    "run.device": "cpu",
    "run.precision": "float32",
    "run.log_every": 1,
    "run.pictures": 0,
}
"""A run of twelve steps over sixteen images, on a ViT with 0.3 M weights."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums in one order whatever the machine, and no quarrel over cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features that an earlier version has kept would hide what this one computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with sixteen PNG files of 40 × 36 pixels, two of them in a folder inside."""
    return write_photos(tmp_path / "photos", 16)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """command("pretrain", …) as from a shell in the test's folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: called([str(word) for word in words], monkeypatch, capsys)


@pytest.fixture
def tiny(photos: Path, tmp_path: Path) -> Callable[..., PretrainConfig]:
    """tiny("name", **{"section.key": value}) → the configuration of a small run into tmp_path/name."""

    def make(out: str, **changes: Any) -> PretrainConfig:
        known = card("mfm")
        own = {"data.sources": [str(photos)], "run.out": str(tmp_path / out)}
        return build_pretrain("mfm", known.Config, {**known.facts["defaults"], **TINY, **own, **changes})

    return make
