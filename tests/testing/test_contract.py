"""Every method holds what every method must, and a method broken on purpose fails the very check."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest

from sslkit.cli import app
from sslkit.methods import TEMPLATE, card, names, short_name
from sslkit.testing.contract import BACKBONES, CHECKS, Case, contract, reason

METHODS = [*names(), str(TEMPLATE)]
PAIRS = [(name, backbone) for name in METHODS for backbone in BACKBONES]
ACCEPTED = [pair for pair in PAIRS if BACKBONES[pair[1]] in card(pair[0]).facts["backbones"]]
BUILDS, *_ = CHECKS


@cache
def case(name: str, backbone: str) -> Case:
    return Case(name, backbone)


@pytest.mark.parametrize("check", list(CHECKS))
@pytest.mark.parametrize(("name", "backbone"), ACCEPTED, ids=lambda text: short_name(text))
def test_holds(name: str, backbone: str, check: str) -> None:
    assert reason(case(name, backbone), check) == ""


@pytest.mark.parametrize(("name", "backbone"), sorted({*PAIRS} - {*ACCEPTED}), ids=lambda text: str(text))
def test_refuses(name: str, backbone: str) -> None:
    assert reason(case(name, backbone), BUILDS) == ""
    assert not case(name, backbone).accepted


LOSS, RETURN, CHANNELS = "error.square().mean()", '        return {"loss": error', "        channels"
VERB = "    def transform"
COUNTED = "        self.count = getattr(self, 'count', 0) + 1\n        error = error * self.count\n"
HALF = "        error = error / (self.head(features).itemsize - 2)\n"
LABELLED = "        error = error + batch.get('label', images).float().mean()\n"
DOUBLED = "        encoder.model.register_forward_hook(lambda *seen: 2 * seen[2])\n"
MOVING = "    def after_step(self, clock):\n        self.head[0].bias.data.add_(1)\n\n"
FAR = '    def panels(self, batch):\n        return {"far": batch["image"] + 1}\n\n'
GROWING = "        self.head[0].bias.data.add_(1)\n"
DRAWN = "    def order(self, clock):\n        return __import__('torch').randperm(self.info.count)\n\n"
BROKEN = [
    (BUILDS, '("vit", "cnn", "swin")', '("cnn",)', "builds on a family that"),
    ("loss is finite and differentiable", LOSS, "error.mean() / 0", "the loss is"),
    ("loss is finite and differentiable", LOSS, "error.square()", "the loss has shape"),
    ("loss is finite and differentiable", LOSS, "error.mean().detach()", "no gradient"),
    ("every weight gets a gradient", CHANNELS, f"        self.idle = nn.Linear(1, 1)\n{CHANNELS}", "idle"),
    ("metrics are detached", "features.detach()", "features", "'embedding' carries a gradient"),
    ("metrics are detached", ".mean((2, 3))}", '.mean((2, 3)), "x": images}', "'x' has shape"),
    ("after_step leaves trained weights alone", VERB, MOVING + VERB, "after_step changes ['head.0.bias']"),
    ("loss falls on one batch", LOSS, "(2 * error.detach() - error).square().mean()", "after training"),
    ("a step with a NaN changes nothing", RETURN, GROWING + RETURN, "change in a step that is left out"),
    ("the order of an epoch is the state's", VERB, DRAWN + VERB, "another one when it is asked again"),
    ("labels change nothing", RETURN, LABELLED + RETURN, "reads labels"),
    ("bfloat16 stays finite", RETURN, HALF + RETURN, "not finite"),
    ("state is complete", RETURN, COUNTED + RETURN, "after loading"),
    ("resuming is exact", RETURN, COUNTED + RETURN, "uninterrupted"),
    ("workers change nothing", "RandomResizedCrop(self.info.size)", "lambda *seen: 0", "can't be pickled"),
    ("encoder opens in timm", CHANNELS, DOUBLED + CHANNELS, "vectors differ by"),
    ("pictures lie in [0, 1]", VERB, FAR + VERB, "panel 'far' lies in [1"),
]
"""Check, what is replaced in the template by what, and a part of the reason that must be given."""


@pytest.mark.parametrize(("check", "old", "new", "told"), BROKEN, ids=lambda text: text[:40])
def test_a_broken_method_fails_the_right_check(
    tmp_path: Path, check: str, old: str, new: str, told: str
) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "mine.py").write_text(text.replace(old, new), encoding="utf-8")
    assert told in reason(Case(str(tmp_path / "mine.py"), "test_vit"), check)


def test_every_check_has_been_seen_to_fail() -> None:
    assert {entry[0] for entry in BROKEN} == set(CHECKS)


def test_an_exception_is_told_with_its_line(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8").replace('batch["image"]', 'batch["picture"]')
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    line = text[: text.index('batch["picture"]')].count("\n") + 1
    told = reason(Case(str(tmp_path / "mine.py"), "test_vit"), "metrics are detached")
    assert told == f"KeyError: 'picture' (line {line})"


# --------------------------------------------------------------------------------------- command line


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sslkit", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_a_failed_check_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = "        raise UserError('not today')\n        super()"
    text = TEMPLATE.read_text(encoding="utf-8").replace("        super()", refusing)
    text = text.replace(
        "from sslkit.frequency", "from sslkit.core.errors import UserError\nfrom sslkit.frequency"
    )
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(text, encoding="utf-8")
    assert call(monkeypatch, "methods", "--test", "mine.py") == 1
    out, err = capsys.readouterr()
    assert out == "mine.py: 2 of 2 checks failed\n"
    assert err.count("FAILED: names the family in `backbones`, but refuses it: not today\n") == 2
    assert call(monkeypatch, "methods", "--test", "mine.py", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 2
    assert [entry["backbone"] for entry in document["checks"]] == ["test_vit", "test_resnet"]


@pytest.mark.slow
def test_the_template_passes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "methods", "--new", "mine.py") == 0
    capsys.readouterr()
    assert call(monkeypatch, "methods", "--test", "mine.py") == 0
    out, err = capsys.readouterr()
    assert out == "mine.py: all checks hold\n"
    assert err.count(" ok\n") == 2 * len(CHECKS) + 1
    assert "two processes equal one" in err


def test_a_refused_backbone_has_one_check(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8").replace('("vit", "cnn", "swin")', "()")
    text = text.replace("        super()", "        raise UserError('no')\n        super()")
    text = text.replace(
        "from sslkit.frequency", "from sslkit.core.errors import UserError\nfrom sslkit.frequency"
    )
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    found = [(one.backbone, one.check, one.reason) for one in contract(str(tmp_path / "mine.py"))]
    assert found == [("test_vit", BUILDS, ""), ("test_resnet", BUILDS, "")]
