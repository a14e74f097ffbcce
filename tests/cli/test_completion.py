"""What the shell is offered, asked as a shell asks: in a process of its own that may import nothing heavy."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm

from sslkit.cli.completion import timm_names
from sslkit.cli.visualize import KINDS
from sslkit.core.config import build
from sslkit.finetuning import config
from sslkit.methods import TEMPLATE, card, names
from sslkit.visualization import kinds

PROGRAM = """
import atexit, sys
heavy = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib"}
atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))
sys.argv = ["sslkit"]
from sslkit.__main__ import main
main()
"""


def offered(line: str, folder: Path) -> list[str]:
    """What bash would show after `line` and the tabulator."""
    words = shlex.split(line)
    if line.endswith(" "):
        words.append("")
    asked = {"_SSLKIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, **path, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "[]\n", done.stderr
    return done.stdout.split()


def fields(sections: Iterable[tuple[str, type]], beginning: str) -> list[str]:
    built = [key for name, part in sections for key, _, _ in build.settings(part(), name)]
    return [f"{key}=" for key in built if key.startswith(beginning)]


MFM, DINO = card("mfm").Config, card("dino").Config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sslkit pretrain photos -m ", names()),
        ("sslkit pretrain photos --method mo", ["moco"]),
        ("sslkit methods si", ["simclr", "simmim"]),
        ("sslkit bench photos -b vit_small_patch16_2", timm.list_models("vit_small_patch16_2*")),
        ("sslkit pretrain -c mfm-vit", ["mfm-vit-b16", "mfm-vit-s16"]),
        ("sslkit finetune run data -c ", ["mae-vit-b16", "mae-vit-h14", "mae-vit-l16"]),
        ("sslkit pretrain photos -s run.l", ["run.log_every=", "run.loggers="]),
        ("sslkit pretrain photos -s method.", fields([("method", MFM)], "")),
        ("sslkit pretrain photos -m dino -s method.", fields([("method", DINO)], "")),
        (
            "sslkit pretrain photos -s optim.name=",
            [f"optim.name={n}" for n in ("auto", "adamw", "sgd", "lars")],
        ),
        ("sslkit finetune run data -s aug", fields(config.SECTIONS.items(), "aug")),
        ("sslkit probe run data --precision t", ["tf32"]),
        ("sslkit finetune run data --keep ", ["last", "best"]),
        ("sslkit visualize run -k fi", ["filters"]),
        ("sslkit visualize run -k ", [*KINDS]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_offered(line: str, expected: list[str], tmp_path: Path) -> None:
    assert offered(line, tmp_path) == expected
    assert not list(tmp_path.iterdir())


def test_a_method_of_one_s_own_has_its_settings(tmp_path: Path) -> None:
    template = TEMPLATE.read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(template)
    own = card(str(tmp_path / "mine.py")).Config
    assert offered("sslkit pretrain -m ./mine.py -s method.", tmp_path) == fields([("method", own)], "")
    assert offered("sslkit pretrain -m ./gone.py -s method.", tmp_path) == []
    assert offered("sslkit pretrain -m ./m", tmp_path) == []  # files are the shell's own


def test_every_model_of_timm_is_offered() -> None:
    assert timm_names() == sorted(timm.list_models())


def test_every_kind_of_picture_is_offered() -> None:
    parts = {part for group in kinds.KIND_GROUPS.values() for part in group}
    assert {*KINDS} == {*kinds.KINDS, *kinds.KIND_GROUPS} - parts
