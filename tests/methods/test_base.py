"""What a method has from the base: one crop, followers, and facts that its file states once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslkit.core.config.build import build_pretrain
from sslkit.data.sources.image_set import open_images
from sslkit.methods import card, load
from sslkit.methods.base import (
    AFTER_WARMUP,
    AUTO,
    NO_DECAY,
    Clock,
    Encoder,
    Info,
    Method,
    optimizer,
    setting,
    settings,
)
from sslkit.models.ema import momentum_copy

FILE = '''"""Turn: tell by how much an image was turned.

Doe and Roe, *Turning
Images*, CVPR 2031, https://arxiv.org/abs/3101.00001 (v1); Roe, *Again*, 2033, https://arxiv.org/abs/3301.1
"""

from dataclasses import dataclass

from sslkit.methods.base import AFTER_WARMUP, AUTO, NO_DECAY, Method, setting, settings


class Turn(Method):
    """Turn (CVPR 2031)."""

    family = "geometry"
    defaults = AFTER_WARMUP | {"schedule.min_lr": 1e-6, "optim.clip": 3.0}
    overrides = NO_DECAY

    @dataclass(frozen=True)
    class Config:
        angle: float = setting(AUTO, "degrees", above=0)
        crop_scale: tuple[float, float] = settings.crop_scale(0.5)
'''


class Follows(Method):
    """A network and what follows it."""

    @dataclass(frozen=True)
    class Config:
        kept: float = setting(0.75, "of the follower")
        crop_scale: tuple[float, float] = settings.crop_scale(0.5)

    def __init__(self, config: Any, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        self.slow = momentum_copy(encoder)

    def followers(self) -> dict[nn.Module, nn.Module]:
        return {self.slow: self.encoder}

    def momentum(self, clock: Clock) -> float:
        return self.config.kept + clock.step / 100


def made(kind: type[Method]) -> Any:
    torch.manual_seed(0)
    return kind(kind.Config(), Encoder("test_vit", 32), Info(count=8, size=32, native=40))


def test_followers_start_where_their_leaders_do_and_move_after_a_step() -> None:
    method = made(Follows)
    with torch.no_grad():  # what --init does
        for parameter in method.encoder.parameters():
            parameter.fill_(1)
        method.encoder.mean.fill_(0.25)
    method.prepare(open_images(["fractal:2"]))
    assert all(bool((parameter == 1).all()) for parameter in method.slow.parameters())
    assert (method.slow.mean == 0.25).all()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.fill_(3)
    method.after_step(Clock(5, 10, 10))
    for parameter in method.slow.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.8 * 1 + 0.2 * 3))
    assert "slow.model.pos_embed" in method.state_dict()


def test_without_views_a_worker_cuts_one_crop() -> None:
    class Plain(Method):
        @dataclass(frozen=True)
        class Config:
            pass

    crop = made(Follows).transform().views["image"]
    assert (crop.size, crop.scale, crop.flip) == (32, (0.5, 1.0), 0.5)
    crop = made(Plain).transform().views["image"]
    assert (crop.size, crop.scale, crop.flip) == (32, (0.2, 1.0), 0.5)
    assert made(Plain).panels({}) == {}
    made(Plain).after_step(Clock(0, 1, 1))


def test_a_method_may_call_its_own_things_as_the_base_does() -> None:
    """Files of before have `views`, `photometry` or `momentum` of their own."""

    class Own(Follows):
        momentum = 0.5  # type: ignore[assignment]

        @property
        def views(self) -> dict[str, str]:  # type: ignore[override]
            return {"first": "large"}

        def followers(self) -> dict[nn.Module, nn.Module]:
            return {}

    method = made(Own)
    assert method.panels({}) == {}
    assert list(method.transform().views) == ["image"]
    method.after_step(Clock(0, 1, 1))


def test_a_card_reads_what_the_file_says_once(tmp_path: Path) -> None:
    file = tmp_path / "turn.py"
    file.write_text(FILE, encoding="utf-8")
    told, method = card(str(file)), load(str(file))
    facts = {name: told.facts[name] for name in ("paper", "year", "link", "status", "backbones")}
    assert facts == {
        "paper": "Turning Images",
        "year": 2031,
        "link": "https://arxiv.org/abs/3101.00001",
        "status": "experimental",
        "backbones": ("vit", "cnn", "swin", "transformer"),
    }
    assert "views" not in told.facts
    for name in ("defaults", "overrides", "backbones"):
        assert told.facts[name] == getattr(method, name), name
    assert told.facts["defaults"]["schedule.min_lr"] == 1e-6
    assert (told.Config().angle, told.Config().crop_scale) == (AUTO, (0.5, 1.0))
    assert build_pretrain("turn", told.Config, {"method.angle": "auto"}).method.angle == AUTO


@pytest.mark.parametrize(
    "text", ["No citation.", "An *important* word, then 2020.", "*Title* (2020)", "*Title*, no year"]
)
def test_what_is_no_citation_is_no_paper(tmp_path: Path, text: str) -> None:
    (tmp_path / "turn.py").write_text(f'"""{text}"""\n' + FILE.split('"""\n', 1)[1], encoding="utf-8")
    facts = card(str(tmp_path / "turn.py")).facts
    assert not {"paper", "year", "link"} & set(facts)


def test_a_class_may_say_otherwise_than_its_file(tmp_path: Path) -> None:
    stated = FILE.replace(
        "    family =", '    paper = "none"\n    year = 2026\n    status = "tested"\n    family ='
    )
    (tmp_path / "turn.py").write_text(stated, encoding="utf-8")
    facts = card(str(tmp_path / "turn.py")).facts
    assert [facts[name] for name in ("paper", "year", "status")] == ["none", 2026, "tested"]


def test_an_optimizer_s_settings_have_one_reason() -> None:
    assert optimizer("why", name="sgd", lr=0.1) == {"optim.name": ("sgd", "why"), "optim.lr": (0.1, "why")}
    assert set(NO_DECAY) == {"*.pos_embed", "*.cls_token"}
    assert AFTER_WARMUP["schedule.cosine_after_warmup"] is True
