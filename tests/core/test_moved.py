"""Import paths of 0.1 work in people's own method files, and each warning names the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sslkit
from sslkit.core.moved import DIVIDED, MOVED, RENAMED

OLD = [
    "augment", "augment.geometry", "augment.photometry", "backbones", "blocks", "config", "data.picture",
    "data.sources.ImageSet", "distributed", "errors", "initialization", "keyed", "timm_models",
]  # fmt: skip
BLOCKS = [
    "BatchNorm1d", "BatchNorm2d", "PixelDecoder", "mlp", "momentum_copy", "momentum_update_", "repeat_mask",
    "rising_momentum", "share_statistics_", "shuffled",
]  # fmt: skip
"""What models/blocks.py held."""
METHOD = '''"""A method as version 0.1 had it."""

from dataclasses import dataclass

from sslkit import distributed, keyed
from sslkit.augment.geometry import RandomResizedCrop, Views
from sslkit.augment.photometry import Photometry
from sslkit.backbones import Encoder
from sslkit.blocks import PixelDecoder
from sslkit.config import AUTO, setting
from sslkit.data.picture import Picture
from sslkit.data.sources import ImageSet
from sslkit.errors import UserError
from sslkit.initialization import initialize_vit_
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.timm_models import is_vit
'''


@pytest.mark.parametrize("old", list(MOVED))
def test_an_old_name_is_the_new_module(old: str) -> None:
    for name in [name for name in sys.modules if name == old]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=f"^{old} is {MOVED[old]} now$"):
        module = import_module(old)
    there = import_module(MOVED[old])
    names = [name for name in vars(there) if not name.startswith("__")]
    assert all(getattr(module, name) is getattr(there, name) for name in names)
    for before, after in RENAMED.get(old, {}).items():
        assert getattr(module, before) is getattr(there, after)
    with pytest.raises(AttributeError):
        _ = module.nothing_of_this_name


@pytest.mark.parametrize("old", list(DIVIDED))
def test_an_old_name_has_what_several_new_modules_have(old: str) -> None:
    for name in [name for name in sys.modules if name == old]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=f"^{old} is {' or '.join(DIVIDED[old])} now$"):
        module = import_module(old)
    for name in BLOCKS:
        assert [
            place
            for place in DIVIDED[old]
            if getattr(import_module(place), name, None) is getattr(module, name)
        ]
    for before, after in RENAMED.get(old, {}).items():
        assert getattr(module, before) is getattr(module, after)
    with pytest.raises(AttributeError):
        _ = module.nothing_of_this_name


def test_a_method_file_of_the_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD, encoding="utf-8")
    words = [sys.executable, "-W", "always::DeprecationWarning", "-c", "import mine"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    assert sorted({line.split(": sslkit.")[1].split(" is ")[0] for line in told}) == OLD
    assert all("mine.py" in line for line in told)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(sslkit.__file__).parents[1])}
