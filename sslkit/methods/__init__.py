"""One paper, one file, in the folder of its family. The file's name is the method's; nothing is registered.

A method is one of these folders by its name, anybody's file by its path (`./mine.py`), or a module that an
installed package names in the entry-point group `sslkit.methods`. Its card is read from the source text, so
listing methods and checking their settings need no torch; `load` imports the one that is wanted.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sslkit.augmentations import batch, curricula
from sslkit.augmentations import settings as _settings
from sslkit.core.cards import cited
from sslkit.core.config import build as _config
from sslkit.core.config.setting import source_setting
from sslkit.core.errors import UserError, nearest
from sslkit.core.user_modules import load_module

if TYPE_CHECKING:
    from sslkit.methods.base import Method

_FOLDER = Path(__file__).parent
_BASE = _FOLDER / "base.py"
_GROUP = "sslkit.methods"
_NOTHING: Mapping[str, Any] = {}

TEMPLATE = _FOLDER / "_template.py"
"""What `sslkit methods --new` writes."""


@dataclass(frozen=True)
class Card:
    """What a method's file says about itself."""

    name: str  # by which it is found again from anywhere: of a file, the absolute path
    text: str  # the file's docstring
    facts: dict[str, Any]  # family, paper, year, needs, defaults …: the plain constants of class and base
    Config: type
    lines: int

    @property
    def summary(self) -> str:
        return str(self.facts.get("summary", ""))


class _Source(NamedTuple):
    """Where a method is written; `module` imports it, or is empty for a file outside of all packages."""

    path: Path
    module: str


def names() -> list[str]:
    """All methods, sorted: ours and those of installed packages."""
    return sorted({*_ours(), *_installed()})


def full_name(name: str) -> str:
    """The name as it is written into a run: a file's as absolute path, so that it is found from anywhere."""
    return os.path.abspath(name) if _is_file(name) else name


def short_name(name: str) -> str:
    """The name that people read, and that folders are called by: a file's without folders and ending."""
    return Path(name).stem if _is_file(name) else name


def card(name: str) -> Card:
    """The card of one method, without importing it.

    Raises:
        UserError: no such method or file, or the file holds none.
    """
    source = _source(name)
    text, tree = _read(source.path)
    method = _method_class(tree, source.path)
    about, made = ast.get_docstring(tree) or "", _config_class(method, source.path)
    stated = {"summary": ast.get_docstring(method) or "", **_constants(method.body, _shared())}
    ours = {"status": "tested", "family": source.path.parent.name.replace("_", "-")}
    standing = ours if name in _ours() else {"status": "experimental"}
    facts = {**standing, **_inherited(), **cited(about), **stated}
    return Card(full_name(name), about, facts, made, text.count("\n"))


def default_configuration(name: str) -> _config.PretrainConfig:
    """What `sslkit pretrain -m NAME` starts from; settings left open are "auto". Raises as `card`."""
    return configuration(name, card(name).facts.get("defaults", {}))


def usual_settings(config: _config.PretrainConfig) -> dict[str, Any]:
    """The default of each of a configuration's settings by its key, those around its method included."""
    around = {"run.augment": config.run.augment, "run.curriculum": config.run.curriculum}
    usual = configuration(
        config.method_name, {**card(config.method_name).facts.get("defaults", {}), **around}
    )
    return {**_config.flat(usual), "run.augment": (), "run.curriculum": ""}


def configuration(
    name: str, values: Mapping[str, Any], flags: Mapping[str, str] = _config.NO_FLAGS
) -> _config.PretrainConfig:
    """A configuration of this method from flat dotted keys, with the sections of what is around it.

    What an augmentation wants of the method is set where the method has that setting and nobody gave it.

    Raises:
        UserError: no such method, augmentation or curriculum; unknown or impossible setting.
    """
    known = card(name)
    sections: dict[str, type] = {}
    wanted: dict[str, Any] = {}
    asked = {key: value for key, value in values.items() if key == "run.augment"}
    for augment in _config.build(_config.Run, "run", asked).augment:
        found = batch.card(augment)
        sections[augment] = found.Config
        wanted |= {f"method.{key}": value for key, value in found.facts.get("wants", {}).items()}
    if curriculum := str(values.get("run.curriculum", "")):
        sections[curriculum] = curricula.card(curriculum).Config
    own = {f"method.{item.name}" for item in dataclasses.fields(known.Config)}
    wanted = {key: value for key, value in wanted.items() if key in own}
    return _config.build_pretrain(known.name, known.Config, {**wanted, **values}, flags, sections)


def load(name: str) -> type[Method]:
    """The method's class; imports torch.

    Raises:
        UserError: as `card`.
    """
    source = _source(name)
    text, tree = _read(source.path)
    wanted = _method_class(tree, source.path).name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    module = (
        importlib.import_module(source.module)
        if source.module
        # A name that tells contents apart, so that an edited file is another module.
        else load_module(source.path.resolve(), f"{source.path.stem}_{digest}")
    )
    method: type[Method] = getattr(module, wanted)
    return method


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name or "/" in name


def _source(name: str) -> _Source:
    if _is_file(name):
        if not Path(name).is_file():
            raise UserError(f"no method file {name}", "sslkit methods --new mine.py writes one to begin with")
        return _Source(Path(name), "")
    if path := _ours().get(name):
        return _Source(path, f"sslkit.methods.{path.parent.name}.{name}")
    if name not in _installed():
        raise UserError(f"unknown method {name!r}", nearest(name, names()))
    return _origin(_installed()[name])


def _ours() -> dict[str, Path]:
    """Name → file, of those in this folder's folders."""
    return {path.stem: path for path in _FOLDER.glob("*/*.py") if path.stem[0] != "_"}


@cache
def _installed() -> dict[str, str]:
    """Name → module of the methods that installed packages bring."""
    from importlib.metadata import entry_points

    return {point.name: point.module for point in entry_points(group=_GROUP)}


def _origin(module: str) -> _Source:
    """The file of an installed module; importlib's own search would import the packages around it."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    for depth in range(len(inner)):
        name, places = ".".join([top, *inner[: depth + 1]]), spec and spec.submodule_search_locations
        spec = PathFinder.find_spec(name, places) if places else None
    if spec is None or spec.origin is None:
        raise UserError(f"{module}, named as a method by an installed package, can't be found")
    return _Source(Path(spec.origin), module)


_PARSING = threading.Lock()  # Python 3.11 counts the depth of a tree for all threads together


def _read(path: Path) -> tuple[str, ast.Module]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        with _PARSING:
            return text, ast.parse(text)
    except SyntaxError as problem:
        raise UserError(f"{path}:{problem.lineno}: {problem.msg}") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} can't be read as Python: {problem}") from None


def _method_class(tree: ast.Module, path: Path, base: str = "Method") -> ast.ClassDef:
    """The one class of the file that derives from `base`, called so or as an attribute of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and base in {ast.unparse(b).split(".")[-1] for b in node.bases}:
            return node
    raise UserError(f"{path}: no class derived from {base}", "see docs/add-a-method.md")


def _constants(body: list[ast.stmt], known: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
    """The plain constants of a class's or a module's body by name; they may be made of `known` ones."""
    found = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            with suppress(ValueError):  # not a plain constant: nothing for the card
                found[target.id] = _literal(node.value, known)
    return {name: value for name, value in found.items() if value is not None}


@cache
def _shared() -> dict[str, Any]:
    """Constants of base.py that a class may name: NO_DECAY, AFTER_WARMUP."""
    return _constants(_read(_BASE)[1].body)


@cache
def _inherited() -> dict[str, Any]:
    """What a class that says nothing else has from the base."""
    return _constants(_method_class(_read(_BASE)[1], _BASE, "Module").body, _shared())


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A literal; also `frozenset({…})`, which Python has no literal for, a known name, and `one | other`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset" and len(node.args) == 1:
        return frozenset(ast.literal_eval(node.args[0]))
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        one, other = _literal(node.left, known), _literal(node.right, known)
        if isinstance(one, dict) and isinstance(other, dict):
            return one | other
    return ast.literal_eval(node)


def _config_class(method: ast.ClassDef, path: Path) -> type:
    """The nested Config, made from its source alone: of `setting`, `settings`, AUTO and plain types."""
    node = next((n for n in method.body if isinstance(n, ast.ClassDef) and n.name == "Config"), None)
    if node is None:
        problem = f"{path}: class {method.name} has no Config"
        raise UserError(problem, "a frozen dataclass inside it, with one `setting` for each knob")
    scope: dict[str, Any] = {
        **vars(_config),
        "settings": _settings,
        "source_setting": source_setting,
        "dataclass": dataclasses.dataclass,
        "__name__": _config.__name__,
    }
    try:
        exec(compile(ast.Module([node], type_ignores=[]), str(path), "exec"), scope)
    except Exception as problem:
        cure = "it is read without the rest of the file: only `setting`, `settings`, AUTO and plain types"
        raise UserError(f"{path}:{node.lineno}: Config can't be made: {problem}", cure) from None
    made: type = scope["Config"]
    return made
