"""Where labels are in folders: which are training, which are held out, and which are classes.

It is decided from names and counts alone, so that a folder, a pack of it and a list of its names are
read alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sslkit.core.console import counted
from sslkit.core.errors import UserError
from sslkit.data.sources.split_names import Role, is_wrapping, roles

LAYOUTS = "use class folders, train/ and val/ with class folders, or a .csv with path,label"
_TABLE = "a .csv with path,label,split says it in any case"


class Ambiguous(UserError):
    """Folders that can be read in two ways; the user has to say which one is meant."""


@dataclass(frozen=True)
class Part:
    """Class folders side by side.

    Attributes:
        folder: that holds them, "" or with "/" at its end, as all names relative to DATA.
        classes: their names.
    """

    folder: str
    classes: frozenset[str]

    def class_of(self, name: str) -> str:
        """The class of an image, "" where it is not in this part."""
        if not name.startswith(self.folder):
            return ""
        found, slash, _ = name[len(self.folder) :].partition("/")
        return found if slash and found in self.classes else ""


@dataclass(frozen=True)
class Layout:
    """Training and validation part, and what people should know of how they were found."""

    training: Part
    validation: Part | None
    notes: tuple[str, ...] = ()

    def class_of(self, name: str) -> str:
        """The class of an image by its name relative to DATA, "" where it has none."""
        parts = [self.training] + ([self.validation] if self.validation else [])
        return next(filter(None, (part.class_of(name) for part in parts)), "")


class _Tree:
    """Folders that hold images, themselves or below; every name with "/" at its end, the root's is ""."""

    def __init__(self, direct: Mapping[str, int]) -> None:
        self.direct = direct
        self.total: dict[str, int] = defaultdict(int)
        self.inside: dict[str, dict[str, None]] = defaultdict(dict)
        for folder, number in direct.items():
            self.total[folder] += number
            while folder:
                above = folder[: folder.rstrip("/").rfind("/") + 1]
                self.total[above] += number
                self.inside[above][folder[len(above) : -1]] = None
                folder = above

    def children(self, folder: str) -> list[str]:
        return sorted(self.inside.get(folder, ()))

    def classes(self, folder: str) -> Part | None:
        """The class folders of a part, under a lone folder that only wraps them; None where it has none."""
        while not self.direct.get(folder):
            match self.children(folder):
                case [child] if is_wrapping(child) and self.children(f"{folder}{child}/"):
                    folder += f"{child}/"
                case _:
                    break
        found = self.children(folder)
        return Part(folder, frozenset(found)) if found else None


def folders_of(names: Iterable[str]) -> dict[str, int]:
    """Folder, "" or with "/" at its end → images in it itself, of names relative to one root."""
    direct: dict[str, int] = defaultdict(int)
    for name in names:
        direct[name[: name.rfind("/") + 1]] += 1
    return direct


def read_layout(source: str, direct: Mapping[str, int]) -> Layout:
    """The parts of `source`, from the numbers of images in its folders (`folders_of`).

    Raises:
        Ambiguous: two readings, both named.
        UserError: no labels.
    """
    tree = _Tree(direct)
    return _Reader(source, tree, _root(tree)).layout()


def _root(tree: _Tree) -> str:
    """Where the parts are: below a lone folder, such as an archive's, that holds them."""
    root = ""
    while not tree.direct.get(root) and len(children := tree.children(root)) == 1:
        below = f"{root}{children[0]}/"
        if roles(children) or not _is_divided(tree, below):
            break
        root = below
    return root


def _is_divided(tree: _Tree, folder: str) -> bool:
    """Whether a training and a held-out part lie in it, or another lone folder that may hold them."""
    children = tree.children(folder)
    if _has_both(children) or (roles(children) and len(children) == 1):
        return True
    return len(children) == 1 and not tree.direct.get(folder) and _is_divided(tree, f"{folder}{children[0]}/")


def _has_both(names: Iterable[str]) -> bool:
    return {role.held_out for role in roles(names).values()} == {True, False}


@dataclass(frozen=True)
class _Reader:
    """Reads the layout of one folder."""

    source: str
    tree: _Tree
    root: str

    @cached_property
    def roles(self) -> dict[str, Role]:
        return roles(self.tree.children(self.root))

    @cached_property
    def training(self) -> list[str]:
        return [name for name, role in self.roles.items() if not role.held_out]

    @cached_property
    def held(self) -> list[str]:
        """The best one first."""
        found = [name for name, role in self.roles.items() if role.held_out]
        return sorted(found, key=lambda name: (self.roles[name].rank, name))

    @cached_property
    def others(self) -> list[str]:
        return [name for name in self.tree.children(self.root) if name not in self.roles]

    def layout(self) -> Layout:
        if not self.tree.total:
            raise UserError(f"{self.source}: no labels, no images in class folders", LAYOUTS)
        with_classes = [name for name in self.training if self._classes(name)]
        if len(with_classes) > 1:
            raise Ambiguous(
                f"{self.source}: {_listed(with_classes)} are training parts both",
                f"leave one of them in DATA, or: {_TABLE}",
            )
        if with_classes:
            return self._divided(with_classes[0])
        if self.training and not self.others:
            raise UserError(
                f"{self.source}: no labels, {self._named(self.training[0])} has images but no class folders",
                LAYOUTS,
            )
        if self.held:
            return self._held_out_beside_classes()
        return self._classes_alone()

    def _classes(self, name: str) -> Part | None:
        return self.tree.classes(f"{self.root}{name}/")

    def _named(self, name: str) -> str:
        return f"{self.root}{name}/"

    def _divided(self, training: str) -> Layout:
        """A training part with class folders, and what lies beside it."""
        part = self._classes(training)
        assert part is not None
        fitting = self._held_out_of(part.classes)
        beside = frozenset(self.tree.children(self.root)) - set(self.held)
        if not fitting and self._held_out_of(beside):
            return self._held_out_beside_classes()
        if self.others and not self.held:
            raise self._two_readings(
                training,
                f"{self._named(training)} is the training part, and {_listed(self.others)} are not used",
                f"give {self._typed(training)}",
            )
        held = fitting or [name for name in self.held if self._classes(name)]
        return self._made(part, held[0] if held else None, used={training})

    def _held_out_of(self, classes: frozenset[str]) -> list[str]:
        """The held-out folders whose own folders have names of these classes."""
        return [name for name in self.held if (part := self._classes(name)) and part.classes & classes]

    def _held_out_beside_classes(self) -> Layout:
        """Class folders, and among them one by the name of a held-out part."""
        classes = frozenset(self.training) | frozenset(self.others)
        if not classes:
            raise UserError(
                f"{self.source}: {_listed(self.held)} but no training part beside",
                f"give {self._typed(self.held[0])} to use its classes, or add train/",
            )
        if held := self._held_out_of(classes):
            return self._made(Part(self.root, classes), held[0], used=set(classes))
        held_out = self._named(self.held[0])
        raise self._two_readings(
            self.held[0],
            f"{held_out} is held out, and {_listed(sorted(classes))} are the classes",
            f"leave {held_out} out of DATA, or give it a folder for each class",
        )

    def _two_readings(self, name: str, reading: str, cure: str) -> Ambiguous:
        every = counted(len(self.tree.children(self.root)), "class", "classes")
        return Ambiguous(
            f"{self.source}: either {reading}, or {name!r} is one of {every}",
            f"for the first, {cure}; for the second, rename it; {_TABLE}",
        )

    def _classes_alone(self) -> Layout:
        """No part by its name: every folder is a class."""
        classes = self.tree.children(self.root)
        if not classes:
            raise UserError(
                f"{self.source}: no labels, {self.root or self.source} has images but no class folders",
                LAYOUTS,
            )
        divided = [name for name in classes if _has_both(self.tree.children(f"{self.root}{name}/"))]
        if divided:
            within = self._named(divided[0])
            parts = _listed([f"{within}{name}" for name in roles(self.tree.children(within))] or [within])
            raise Ambiguous(
                f"{self.source}: either {_listed(classes)} are classes, or {parts} are parts of a data set",
                f"for the second, give {self._typed(divided[0])}; {_TABLE}",
            )
        return self._made(Part(self.root, frozenset(classes)), None, used=set(classes))

    def _typed(self, name: str) -> str:
        return f"{self.source.rstrip('/')}/{self.root}{name}"

    def _made(self, training: Part, validation: str | None, used: set[str]) -> Layout:
        held = None if validation is None else self._classes(validation)
        notes = []
        if training.folder == self.root:
            notes += [f"{name!r} is one of the classes" for name in self.training]
            notes += [f"{held.folder} is the validation part of the classes beside it"] if held else []
        elif (training.folder, held and held.folder) not in (("train/", None), ("train/", "val/")):
            notes.append(f"{training.folder} is training" + (f", {held.folder} validation" if held else ""))
        if unused := self._unused({*used, validation}, training, held):
            notes.append(f"not used: {unused}")
        return Layout(training, held, tuple(notes))

    def _unused(self, used: set[str | None], *parts: Part | None) -> str:
        """Folders and images beside the parts, with their numbers."""
        beside = [self._named(name) for name in self.tree.children(self.root) if name not in used]
        unused = [f"{folder} ({counted(self.tree.total[folder], 'image')})" for folder in beside]
        loose = sum(self.tree.direct.get(f, 0) for f in {self.root, *(part.folder for part in parts if part)})
        return ", ".join(unused + ([f"{counted(loose, 'image')} in no class folder"] if loose else []))


def _listed(names: Sequence[str]) -> str:
    """ "a/, b/ and 3 more" """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name}/" if not name.endswith("/") else name for name in names[:3]) + more
