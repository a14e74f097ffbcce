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
from sslkit.core.config.build import build_pretrain, loads
from sslkit.core.errors import UserError
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
    files = {path.stem: path for path in Path(methods.__file__).parent.glob("*/*.py")}
    del files["__init__"]
    assert names() == sorted(files)
    assert files["mfm"].parent.name == "frequency"


def test_a_method_s_folder_is_its_family() -> None:
    families = {name: card(name).facts["family"] for name in names()}
    assert families == {
        "byol": "self-distillation", "dino": "self-distillation", "mae": "masked", "mfm": "frequency",
        "moco": "contrastive", "simclr": "contrastive", "simmim": "masked",
    }  # fmt: skip


def test_cards_need_no_torch() -> None:
    listed = run_light("from sslkit.methods import card, names\nfor n in names(): print(card(n).summary)")
    assert "Masked Frequency Modeling (ICLR 2023)" in listed


@pytest.mark.parametrize("name", names())
def test_a_card_says_what_the_class_says(name: str) -> None:
    method, told = load(name), card(name)
    assert issubclass(method, Method)
    inherited = ("defaults", "overrides", "needs", "minimum_batch", "couples_images", "rests")
    for fact in ("backbones", *inherited):
        assert told.facts[fact] == getattr(method, fact), fact
    assert told.facts["status"] == "tested"
    assert told.facts["paper"] in " ".join(told.text.split())
    assert told.facts["link"] in told.text
    assert told.summary == method.__doc__
    assert told.text == sys.modules[method.__module__].__doc__.rstrip()
    assert str(told.facts["year"]) in told.summary
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
    from sslkit.models.encoder import Encoder

    method = load(name)
    found: set[str] = set()
    for backbone in BACKBONES:
        with torch.device("meta"):
            encoder, info = Encoder(backbone, 64), Info(10, 64, 64)
            if encoder.family not in method.backbones:
                continue
            resolved = method.resolve(method.Config(), encoder.family, info)
            own = {key: value for key, (value, _) in resolved.items() if "." not in key}
            built = method(method.Config(**own), encoder, info)
        found |= {parameter for parameter, _ in built.named_parameters()}
    for pattern in method.overrides:
        assert any(fnmatchcase(parameter, pattern) for parameter in found), pattern


def test_an_unknown_method_gets_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        card("mmf")
    assert (error.value.message, error.value.hint) == ("unknown method 'mmf'", "did you mean 'mfm'?")
    with pytest.raises(UserError):
        load("base")


def test_a_card_is_read_from_the_file_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "angles").mkdir()
    (tmp_path / "angles" / "loud.py").write_text(
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
    assert told.facts["family"] == "angles"
    built = build_pretrain("loud", told.Config, {"method.angle": 3})
    assert loads(f"[method]\nangle = {built.method.angle}") == {"method.angle": 3.0}


# ------------------------------------------------------------------- files and other people's packages


def test_a_file_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_bytes(methods.TEMPLATE.read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        assert card(name).name == methods.full_name(name) == str(tmp_path / "mine.py")
        assert methods.short_name(name) == "mine"
        assert card(name).facts["status"] == "experimental"
        assert load(name) is load("mine.py")
    assert load("mine.py").__name__ == "Sharpen"
    assert (methods.full_name("mfm"), methods.short_name("mfm")) == ("mfm", "mfm")


def test_an_edited_file_is_another_method(tmp_path: Path) -> None:
    file, text = tmp_path / "mine.py", methods.TEMPLATE.read_text()
    file.write_text(text)
    before = load(str(file))
    file.write_text(text.replace("year = 2026", "year = 2027"))
    assert (before.year, load(str(file)).year) == (2026, 2027)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no method file {file}"),
        ("import this\nclass (", "{file}:2: invalid syntax"),
        ("class Mine: pass\n", "{file}: no class derived from Method"),
        ("class Mine(base.Method): pass\n", "{file}: class Mine has no Config"),
        (
            "class Mine(Method):\n    class Config:\n        x = y\n",
            "{file}:2: Config can't be made: name 'y'",
        ),
        (b"\xff\xfe", "{file} can't be read as Python"),
    ],
)
def test_a_file_that_is_no_method_is_refused(tmp_path: Path, text: str | bytes | None, told: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (card, load):
        if read is load and "Config" in told:
            continue  # it is the card that needs the settings
        with pytest.raises(UserError) as error:
            read(str(file))
        assert error.value.message.startswith(told.format(file=file))


def test_what_a_class_leaves_out_is_the_base_s(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(methods.TEMPLATE.read_bytes())
    facts = card(str(tmp_path / "mine.py")).facts
    for fact in ("needs", "minimum_batch", "couples_images", "defaults", "overrides"):
        assert facts[fact] == getattr(Method, fact), fact
    text = methods.TEMPLATE.read_text().replace("year", 'needs = frozenset({"image", "label"})\n    year')
    (tmp_path / "mine.py").write_text(text)
    assert card(str(tmp_path / "mine.py")).facts["needs"] == {"image", "label"}


def test_an_installed_package_brings_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, and read without importing the packages around it."""
    inner = tmp_path / "theirs" / "vision"
    inner.mkdir(parents=True)
    for package in (inner, inner.parent):
        (package / "__init__.py").write_text("IMPORTED = True\n")
    (inner / "sharp.py").write_bytes(methods.TEMPLATE.read_bytes())
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[sslkit.methods]\nsharper = theirs.vision.sharp\nlost = theirs.gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods._installed.cache_clear()
    try:
        assert {"mfm", "sharper"} <= set(names())
        assert card("sharper").summary == "Predict an image from its low frequencies."
        assert "theirs" not in sys.modules
        assert load("sharper").__module__ == "theirs.vision.sharp"
        with pytest.raises(UserError, match=r"theirs\.gone, named as a method by an installed package"):
            card("lost")
    finally:
        methods._installed.cache_clear()


# ------------------------------------------------------------------------------------------------ clock


def test_clock_counts_epochs() -> None:
    clock = Clock(step=0, steps=12, steps_per_epoch=4)
    assert [clock.at(step).epoch for step in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert clock.at(5) == Clock(5, 12, 4)


def test_every_is_once_in_so_many_steps_and_at_the_end() -> None:
    clock = Clock(step=0, steps=10, steps_per_epoch=5)
    assert [step for step in range(10) if clock.at(step).every(4)] == [3, 7, 9]
    assert [step for step in range(10) if clock.at(step).every(5)] == [4, 9]
