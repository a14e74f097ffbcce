"""Methods are files: their cards are read without importing them, and say what the classes say."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from sslkit import methods
from sslkit.config import build_pretrain, loads
from sslkit.errors import UserError
from sslkit.methods import card, load, names
from sslkit.methods.base import Clock, Info, Method

HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "safetensors"}
BACKBONES = ["test_vit", "test_resnet"]


def run_light(program: str) -> str:
    """Output of a program in a fresh interpreter that must not have imported anything heavy."""
    check = f"\nimport sys; assert not set(sys.modules) & {HEAVY!r}, sorted(set(sys.modules) & {HEAVY!r})"
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_is_a_method() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert names() == sorted(files)
    assert "mfm" in names()


def test_cards_need_no_torch() -> None:
    listed = run_light("from sslkit.methods import card, names\nfor n in names(): print(card(n).summary)")
    assert "Masked Frequency Modeling (ICLR 2023)" in listed


@pytest.mark.parametrize("name", names())
def test_a_card_says_what_the_class_says(name: str) -> None:
    method, told = load(name), card(name)
    assert issubclass(method, Method)
    for fact in ("family", "paper", "year", "link", "backbones", "defaults", "overrides"):
        assert told.facts[fact] == getattr(method, fact), fact
    assert told.summary == method.__doc__
    assert told.text == sys.modules[method.__module__].__doc__.rstrip()
    assert str(method.year) in told.summary  # type: ignore[attr-defined]
    lines = Path(sys.modules[method.__module__].__file__).read_text().splitlines()
    assert told.lines == len(lines)


@pytest.mark.parametrize("name", names())
def test_a_card_s_settings_are_the_class_s(name: str) -> None:
    def described(config: type) -> list[object]:
        return [(f.name, f.type, f.default, dict(f.metadata)) for f in dataclasses.fields(config)]

    assert described(card(name).Config) == described(load(name).Config)
    assert dataclasses.fields(card(name).Config)


@pytest.mark.parametrize("name", names())
def test_a_method_s_defaults_are_settings_in_range(name: str) -> None:
    told = card(name)
    build_pretrain(name, told.Config, told.facts["defaults"])
    assert not any(key.startswith("method.") for key in told.facts["defaults"])


@pytest.mark.parametrize("name", names())
def test_every_override_meets_a_parameter(name: str) -> None:
    from sslkit.backbones import Encoder

    method = load(name)
    found: set[str] = set()
    for backbone in BACKBONES:
        with torch.device("meta"):
            encoder, info = Encoder(backbone, 64), Info(10, 64, 64)
            chosen = {key: value for key, (value, _) in resolved(method, encoder.family, info).items()}
            built = method(method.Config(**chosen), encoder, info)
        found |= {parameter for parameter, _ in built.named_parameters()}
    for pattern in method.overrides:
        assert any(fnmatchcase(parameter, pattern) for parameter in found), pattern


def resolved(method: type[Method], family: str, info: Info) -> dict[str, tuple[object, str]]:
    return method.resolve(method.Config(), family, info)


def test_an_unknown_method_gets_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        card("mmf")
    assert (error.value.message, error.value.hint) == ("unknown method 'mmf'", "did you mean 'mfm'?")
    with pytest.raises(UserError):
        load("base")


def test_a_card_is_read_from_the_file_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.py").write_text(
        '"""Title.\n\nText."""\n'
        "raise RuntimeError('imported')\n"
        "class Helper: pass\n"
        "class Loud(Method):\n"
        '    """One line."""\n'
        "    year = 2026\n"
        "    @dataclass(frozen=True)\n"
        "    class Config:\n"
        "        angle: float = setting(AUTO, 'degrees of the turn', low=0, auto=True)\n"
        "    defaults: ClassVar[dict[str, object]] = {'optim.clip': 1.0}\n"
    )
    monkeypatch.setattr(methods, "_FOLDER", tmp_path)
    told = card("loud")
    assert (told.text, told.summary, told.lines) == ("Title.\n\nText.", "One line.", 12)
    assert told.facts["defaults"] == {"optim.clip": 1.0}
    built = build_pretrain("loud", told.Config, {"method.angle": 3})
    assert loads(f"[method]\nangle = {built.method.angle}") == {"method.angle": 3.0}


# ------------------------------------------------------------------------------------------------ clock


def test_clock_counts_epochs() -> None:
    clock = Clock(step=0, steps=12, steps_per_epoch=4)
    assert [clock.at(step).epoch for step in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert clock.at(5) == Clock(5, 12, 4)


def test_every_is_once_in_so_many_steps_and_at_the_end() -> None:
    clock = Clock(step=0, steps=10, steps_per_epoch=5)
    assert [step for step in range(10) if clock.at(step).every(4)] == [3, 7, 9]
    assert [step for step in range(10) if clock.at(step).every(5)] == [4, 9]
