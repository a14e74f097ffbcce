"""What goes around a method: its place between colours and forward, sizes by the plan, resuming, refusals."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sslkit import api
from sslkit.augmentations.curricula import load as load_curriculum
from sslkit.augmentations.curricula.curriculum import plan
from sslkit.core.config import build
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.methods import configuration, usual_settings
from sslkit.training.loop.around import AroundMethod
from sslkit.training.loop.signals import Interrupted
from sslkit.training.run.folder import read_configuration

SEEING = '''
"""Notes the side, the brightest and the style of what it sees."""

from dataclasses import dataclass

from sslkit.methods.base import Method, setting, settings


class Seeing(Method):
    """Reconstruct the mean."""

    @dataclass(frozen=True)
    class Config:
        negatives: str = setting("all", "as an augmentation may want it")
        crop_scale: tuple[float, float] = settings.crop_scale(0.5)
        flip: float = settings.flip()

    def forward(self, batch, clock):
        images = batch["image"]
        loss = (self.encoder.vector(images).mean(1) - images.mean((1, 2, 3))).square().mean()
        side = images.new_full((), images.shape[-1])
        return {"loss": loss, "side": side, "mean": images.mean(), "top": images.amax()}
'''

COMMON: dict[str, Any] = {
    "backbone": "test_vit", "size": 32, "epochs": 4, "batch_size": 8, "workers": 0, "device": "cpu",
    "precision": "float32", "pictures": 0, "seed": 3,
}  # fmt: skip
SETTINGS = ["model.patch_size=8", "run.log_every=1", "optim.name=sgd", "optim.lr=0.1"]


@pytest.fixture
def seeing(tmp_path: Path) -> str:
    file = tmp_path / "seeing.py"
    file.write_text(SEEING)
    return str(file)


def run(out: Path, method: str, settings: tuple[str, ...] = (), **changes: Any) -> Path:
    words = {**COMMON, "settings": [*SETTINGS, *settings], **changes}
    return api.pretrain("fractal:24", method=method, out=out, **words)


def figures(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "encoder.safetensors"), load_file(other / "encoder.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------------- settings


def test_settings_around_a_method_have_sections_of_their_own(tmp_path: Path, seeing: str) -> None:
    folder = run(tmp_path / "run", seeing, ("bss.share=0.5",), augment="bss,fields", curriculum="lowpass")
    config = read_configuration(folder / "config.toml")
    assert list(config.around) == ["bss", "fields", "lowpass"]
    assert config.around["bss"].share == 0.5
    assert config.method.negatives == "view"  # what bss wants
    written = build.loads(build.dump(config))
    assert (written["bss.share"], written["run.augment"]) == (0.5, ["bss", "fields"])
    assert usual_settings(config).keys() == build.flat(config).keys()
    assert usual_settings(config)["bss.share"] == 1.0
    assert "as given" in (folder / "log.txt").read_text()
    assert "bss.share = 0.5" in (folder / "log.txt").read_text()
    assert "bss" in (folder / "report.html").read_text()


def test_what_was_given_is_not_overridden() -> None:
    values = {"data.sources": ["x"], "run.augment": ["bss"], "method.temperature": 0.3}
    assert configuration("simclr", values).method.temperature == 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"augment": "bs"}, "unknown augmentation 'bs'"),
        ({"curriculum": "lowpas"}, "unknown curriculum 'lowpas'"),
        ({"curriculum": "lowpass", "max_time": "1m", "epochs": None}, "--curriculum needs to know how many"),
        ({"settings": ["bss.share=0.5"]}, "unknown setting 'bss.share'"),
        ({"augment": "bss", "settings": ["bss.share=2"]}, "bss.share: 2.0 is not <= 1"),
        (
            {"curriculum": "lowpass", "backbone": "swin_tiny_patch4_window7_224", "size": 224},
            "takes no images of",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    tmp_path: Path, seeing: str, words: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    changed = {**COMMON, **{key: value for key, value in words.items() if key != "settings"}}
    settings = [] if "backbone" in words else SETTINGS[:1]
    with pytest.raises(UserError, match=message) as error:
        api.pretrain(
            "fractal:24", method=seeing, out=out, settings=[*settings, *words.get("settings", [])], **changed
        )
    assert error.value.code == 2
    assert "\n" not in error.value.message
    assert not out.exists()


def test_memory_that_runs_out_is_not_told_as_a_size(tmp_path: Path) -> None:
    file = tmp_path / "greedy.py"
    file.write_text(
        SEEING.replace("        images = batch", "        raise MemoryError\n        images = batch")
    )
    with pytest.raises(UserError, match="out of memory"):
        run(tmp_path / "run", str(file), curriculum="lowpass")
    assert not (tmp_path / "run").exists()


def test_what_a_method_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", "mae", augment="bss", console=Console(), epochs=1)
    assert "bss asks for method.negatives = view, a setting that mae lacks" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- its place


def test_sides_follow_the_plan(tmp_path: Path, seeing: str) -> None:
    """Steps of four epochs of three; sides in whole patches of 8 px, two at least."""
    folder = run(tmp_path / "run", seeing, curriculum="lowpass")
    config = read_configuration(folder / "config.toml")
    stages = plan(load_curriculum("lowpass")(config.around["lowpass"]), 12)
    expected = [max(2, round(32 * stages.stage(step).size / 8)) * 8 for step in range(12)]
    assert figures(folder, "side") == expected
    assert len(set(expected)) > 1


def test_bright_pixels_stay_in_range_and_every_image_has_one_style(tmp_path: Path, seeing: str) -> None:
    plain, styled = run(tmp_path / "plain", seeing), run(tmp_path / "styled", seeing, augment="bss")
    assert figures(plain, "mean") != figures(styled, "mean")
    assert max(figures(styled, "top")) <= 1


@pytest.mark.parametrize("options", [{"settings": ("run.micro_batch=2",)}, {"workers": 2}], ids=str)
def test_parts_and_workers_change_nothing(tmp_path: Path, seeing: str, options: dict[str, Any]) -> None:
    """One style for the batch, however memory divides it; means of equal parts are those of the whole."""
    around = {"augment": "bss,fourier", "curriculum": "efficienttrain"}
    whole = run(tmp_path / "whole", seeing, **around)
    parts = run(tmp_path / "parts", seeing, **around, **options)
    assert figures(parts, "mean") == pytest.approx(figures(whole, "mean"), abs=1e-6)
    assert figures(parts, "loss") == pytest.approx(figures(whole, "loss"), abs=1e-5)


class Stopper(Console):
    """Ctrl-C when a step is logged."""

    def event(self, document: Any) -> None:
        if document["step"] == 5:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_is_in_the_same_stage(tmp_path: Path) -> None:
    around = {"augment": "bss,mix", "curriculum": "efficienttrain"}
    whole, part = run(tmp_path / "whole", "simclr", **around), tmp_path / "part"
    with pytest.raises(Interrupted):
        run(part, "simclr", **around, console=Stopper(quiet=True))
    api.pretrain(resume=part)
    same(whole, part)


@pytest.mark.slow
def test_two_processes_have_one_style(tmp_path: Path, seeing: str) -> None:
    settings = ("run.patience=60",)
    one = run(tmp_path / "one", seeing, settings, augment="bss")
    two = run(tmp_path / "two", seeing, settings, augment="bss", devices=2)
    assert figures(two, "loss") == pytest.approx(figures(one, "loss"), abs=1e-5)


def test_a_dry_run_times_the_full_size_and_counts_what_is_saved(seeing: str) -> None:
    words = {**COMMON, "method": seeing, "settings": SETTINGS}
    plain = api.dry_run("fractal:24", **words)
    less = api.dry_run("fractal:24", **words, curriculum="lowpass")
    around = AroundMethod((), plan(load_curriculum("lowpass")(load_curriculum("lowpass").Config()), 12), 8)
    assert plain.steps == less.steps == 12
    assert around.cost < 0.9
    assert around.at_full_size().cost == 1
    decoding = less.rates.decoding / 3600
    assert less.hours - decoding == pytest.approx(around.cost * 12 * 8 / less.rates.whole / 3600)
