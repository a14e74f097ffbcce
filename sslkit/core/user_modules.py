"""Modules made of files of one's own: another process makes them too before it unpickles what is theirs."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_files: dict[str, str] = {}  # name of a module → its file


def load_module(path: Path, name: str) -> ModuleType:
    """A file as the module `name`; once it is loaded, what is there."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _files[name] = str(path)
    return module


class Portable:
    """A value that may be of such modules, in a form that any process of this machine can unpickle."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), dict(_files), pickle.dumps(self.value))


def _unpickled(kind: type[Portable], files: Mapping[str, str], content: bytes) -> Portable:
    for name, path in files.items():
        load_module(Path(path), name)
    return kind(pickle.loads(content))
