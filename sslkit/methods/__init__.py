"""One paper, one file. The file's name is the method's name; nothing is registered anywhere.

A method's card is read from its source text, so listing methods and checking their settings need no torch;
`load` imports the one that is wanted.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit import config as _config
from sslkit.errors import UserError, nearest

if TYPE_CHECKING:
    from sslkit.methods.base import Method

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """What a method's file says about itself."""

    name: str
    text: str  # the file's docstring
    facts: dict[str, Any]  # family, paper, year, link, backbones, defaults: the class's plain constants
    Config: type
    lines: int

    @property
    def summary(self) -> str:
        return str(self.facts.get("summary", ""))


def names() -> list[str]:
    """All methods, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def card(name: str) -> Card:
    """The card of one method, without importing it.

    Raises:
        UserError: no such method.
    """
    if name not in names():
        raise UserError(f"unknown method {name!r}", nearest(name, names()))
    text = (_FOLDER / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    method = _method_class(tree)
    facts = {"summary": ast.get_docstring(method) or ""}
    for node in method.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            with suppress(ValueError):  # not a plain constant: nothing for the card
                facts[target.id] = ast.literal_eval(node.value)
    return Card(name, ast.get_docstring(tree) or "", facts, _config_class(method), text.count("\n"))


def load(name: str) -> type[Method]:
    """The method's class; imports torch."""
    wanted = _method_class(ast.parse((_FOLDER / f"{card(name).name}.py").read_text(encoding="utf-8"))).name
    method: type[Method] = getattr(importlib.import_module(f"sslkit.methods.{name}"), wanted)
    return method


def _method_class(tree: ast.Module) -> ast.ClassDef:
    """The one class of the file that derives from Method."""
    return next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(b, ast.Name) and b.id == "Method" for b in node.bases)
    )


def _config_class(method: ast.ClassDef) -> type:
    """The nested Config, made from its source alone: it uses nothing but `setting` and plain types."""
    node = next(n for n in method.body if isinstance(n, ast.ClassDef) and n.name == "Config")
    scope: dict[str, Any] = {
        **vars(_config),
        "dataclass": dataclasses.dataclass,
        "__name__": _config.__name__,
    }
    exec(compile(ast.Module([node], type_ignores=[]), str(_FOLDER), "exec"), scope)
    made: type = scope["Config"]
    return made
