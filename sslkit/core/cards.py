"""What a folder of files says of itself, read from syntax trees: each file's docstring, citation, facts,
settings.

One file holds one class that derives from the folder's base; the file's name is its name. Listing them and
checking their settings imports none of them, and no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sslkit.core.config import build as _config
from sslkit.core.errors import UserError, nearest


@dataclass(frozen=True)
class FileCard:
    """What one file says about itself."""

    name: str
    text: str  # the file's docstring
    facts: dict[str, Any]  # summary, paper, year, link, and the plain constants of the class
    Config: type
    lines: int

    @property
    def summary(self) -> str:
        """The class's docstring."""
        return str(self.facts.get("summary", ""))


@dataclass(frozen=True)
class CardFolder:
    """The files of a package, each with a class derived from `base`.

    Args:
        package: its dotted name; files are imported below it.
        place: the folder.
        base: name of the base class.
        kind: what one of them is called in a refusal: "augmentation".
        scope: modules that a Config may name, besides `setting`, AUTO, Literal and plain types.
    """

    package: str
    place: Path
    base: str
    kind: str
    scope: Mapping[str, Any]

    def names(self) -> list[str]:
        """What there is, sorted."""
        return sorted(path.stem for path in self.place.glob("*.py") if self._class(_tree(path)) is not None)

    def card(self, name: str) -> FileCard:
        """The card of one of them, without importing it.

        Raises:
            UserError: there is none of that name.
        """
        path = self._path(name)
        tree = _tree(path)
        found = self._class(tree)
        assert found is not None
        about = ast.get_docstring(tree) or ""
        facts = {"summary": ast.get_docstring(found) or "", **cited(about), **_constants(found)}
        lines = path.read_text(encoding="utf-8").count("\n")
        return FileCard(name, about, facts, self._config(found, path), lines)

    def load(self, name: str) -> type[Any]:
        """The class; imports its file, and torch with it. Raises as `card`."""
        found = self._class(_tree(self._path(name)))
        assert found is not None
        made: type[Any] = getattr(importlib.import_module(f"{self.package}.{name}"), found.name)
        return made

    def _path(self, name: str) -> Path:
        if name not in self.names():
            raise UserError(f"unknown {self.kind} {name!r}", nearest(name, self.names()))
        return self.place / f"{name}.py"

    def _class(self, tree: ast.Module) -> ast.ClassDef | None:
        classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
        return next((one for one in classes if self.base in map(ast.unparse, one.bases)), None)

    def _config(self, found: ast.ClassDef, path: Path) -> type:
        """The nested Config, made from its source alone."""
        node = next(one for one in found.body if isinstance(one, ast.ClassDef) and one.name == "Config")
        scope = {
            **vars(_config),
            **self.scope,
            "dataclass": dataclasses.dataclass,
            "__name__": _config.__name__,
        }
        exec(compile(ast.Module([node], type_ignores=[]), str(path), "exec"), scope)
        made: type = scope["Config"]
        return made


@lru_cache(maxsize=64)
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _constants(found: ast.ClassDef) -> dict[str, Any]:
    """The plain constants of a class's body by name."""
    values: dict[str, Any] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            with suppress(ValueError):  # not a plain constant: nothing for the card
                values[node.target.id] = ast.literal_eval(node.value)
    return values


_CITATION = re.compile(
    r"\*(?P<paper>[^*]+)\*, [^*]{0,60}?\b(?P<year>(?:19|20)\d\d)\b(?:[^*]{0,60}?(?P<link>https?://[^\s,;()]+))?"
)
"""*Title*, VENUE 2020, https://…"""


def cited(about: str) -> dict[str, Any]:
    """Paper, year and link of the first citation in a file's docstring."""
    found = _CITATION.search(" ".join(about.split()))
    if found is None:
        return {}
    link = {"link": found["link"].rstrip(".")} if found["link"] else {}
    return {"paper": found["paper"], "year": int(found["year"]), **link}
