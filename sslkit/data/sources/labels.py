"""Labelled images, in a training and a validation part: class folders, a .csv column, or `fractal:N`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sslkit.core.console import counted, named
from sslkit.core.errors import UserError, nearest_path
from sslkit.data.packs import reader
from sslkit.data.sources import fractal
from sslkit.data.sources.class_samples import sample_per_class
from sslkit.data.sources.folders import folder_names, refuse_no_images
from sslkit.data.sources.image_set import ImageSet, found_in, none_found
from sslkit.data.sources.layout import LAYOUTS, Layout, Part, folders_of, read_layout
from sslkit.data.sources.left_out import LeftOut
from sslkit.data.sources.listing import look_through
from sslkit.data.sources.names import Names
from sslkit.data.sources.split_names import HELD_OUT, role_of, roles
from sslkit.data.sources.tables import is_table, read_table

VALIDATION_SHARE = 0.2

_Labelled = list[tuple[str, str]]  # (path, class name)


def open_labelled(source: str, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(training, validation) images with labels and the same `classes`.

    A validation part is found where there is one, by its name (split_names.py): `train/` beside `val/`,
    `Training/` beside `Testing/`, or the .csv column `split`. Otherwise a fixed fifth of every class,
    drawn by `seed`; a class of one image stays in training. What was made of the names, and what is not
    used, is in the `notes` of the training images.

    Args:
        source: folder of class folders, folder with parts, .csv with `path,label[,split]`, or
            `fractal:N` (N images in total, the class is the iterated function system).

    Raises:
        UserError: no labels, fewer than two classes, or validation classes that training lacks; folders
        that can be read in two ways (Ambiguous).
    """
    if fractal.is_name(source):
        return _divide(source, _fractals(source), None, seed)
    if not os.path.exists(source):
        cure = nearest_path(source, "labelled images: class folders or a .csv")
        raise UserError(f"{source}: no such file or folder", cure)
    if os.path.isdir(source):
        return _open_folder(source, seed)
    if is_table(source):
        return _open_table(source, seed)
    raise UserError(f"{source}: no labels", hint=LAYOUTS)


def layout_of(source: str) -> Layout:
    """Parts and classes of a folder or a pack. Raises UserError, and Ambiguous where it can be read in
    two ways.
    """
    return _looked_at(source)[0]


def _looked_at(source: str) -> tuple[Layout, list[str], list[str], LeftOut]:
    """Of a folder or a pack: the layout, the images, their names relative to it, and what else lies there."""
    if reader.is_pack(source):
        names = list(reader.names_of(source))
        relative, left_out = list(map(reader.original, names)), LeftOut()
    else:
        refuse_no_images(source)
        root = os.path.join(os.path.abspath(source), "")
        # Folder by folder: where links lead to the same images, each of them has its own.
        found = [found_in(os.path.join(source, name)) for name in sorted(folder_names(source))]
        found.append(look_through(root, deep=False))
        names, left_out = [name for one in found for name in one.images], LeftOut.of(found)
        if not names:
            raise none_found(source, found)
        relative = [name.removeprefix(root) for name in names]
    return read_layout(source, folders_of(relative)), names, relative, left_out


def _open_folder(source: str, seed: int) -> tuple[ImageSet, ImageSet]:
    """A folder; or a pack, by the folders that the images were in when they were packed."""
    layout, names, relative, left_out = _looked_at(source)

    if len(layout.training.classes) == 1:
        raise _one_class(source, layout.training, relative)

    def of(part: Part) -> _Labelled:
        labels = map(part.class_of, relative)
        return [(name, label) for name, label in zip(names, labels, strict=True) if label]

    held_out = None if layout.validation is None else of(layout.validation)
    training, validation = _divide(source, of(layout.training), held_out, seed)
    return replace(training, notes=(*layout.notes, *training.notes), left_out=left_out), validation


def _one_class(source: str, part: Part, relative: Iterable[str]) -> UserError:
    """Where there is one class alone: what may be missing, or where classes may be."""
    (name,) = part.classes
    folder = os.path.join(source, part.folder)
    if beside := sorted(folder_names(folder) - part.classes - set(roles(folder_names(folder)))):
        problem = f"{source}: only one class folder ({named(name)}) holds images; {beside[0]!r} holds none"
        return UserError(problem, "add its images, or other class folders")
    start = f"{part.folder}{name}/"
    inside = {
        one[len(start) :].partition("/")[0]
        for one in relative
        if one.startswith(start) and "/" in one[len(start) :]
    }
    cure = f"give {os.path.join(folder, name)} for the classes in it" if len(inside) > 1 else LAYOUTS
    return UserError(f"{source}: only one class ({named(name)}), two or more expected", cure)


def empty_class_folders(source: str) -> list[str]:
    """Folders among the class folders that hold no images, sorted; those that hold what sslkit wrote
    are none.
    """
    if not os.path.isdir(source) or reader.is_pack(source):
        return []
    layout, empty = layout_of(source), set()
    named = set(roles(folder_names(source)))
    for part in filter(None, (layout.training, layout.validation)):
        folder = os.path.join(source, part.folder)
        for name in folder_names(folder) - part.classes - (named if not part.folder else set()):
            found = found_in(os.path.join(folder, name))
            if not found.images and not found.written:
                empty.add(name)
    return sorted(empty)


def refuse_empty_folders(source: str) -> None:
    """A class folder without images is a download that failed, or a typo; either way a class is missing."""
    if empty := empty_class_folders(source):
        raise UserError(
            f"{source}: class folder {empty[0]!r} holds no images"
            + (f", and {len(empty) - 1} more" if len(empty) > 1 else ""),
            "add its images, or remove the folder",
        )


def class_numbers(originals: Names) -> tuple[NDArray[np.int64], list[str]]:
    """Of images by their names below one folder: each one's class, -1 where it has none, and all classes.

    Raises:
        UserError: as `read_layout`.
    """
    layout = read_layout("DATA", folders_of(originals))
    classes = sorted(layout.training.classes)
    number = {name: position for position, name in enumerate(classes)}
    return np.array([number.get(layout.class_of(name), -1) for name in originals], dtype=np.int64), classes


def _open_table(source: str, seed: int) -> tuple[ImageSet, ImageSet]:
    rows, note = read_table(source)
    if "label" not in rows[0]:
        raise UserError(
            f"{source}: no labels, there is no column `label`", hint="columns found: " + ", ".join(rows[0])
        )
    unlabelled = sum(not row["label"] for row in rows)
    if unlabelled:
        raise UserError(
            f"{source}: {unlabelled} of {len(rows)} rows have an empty `label`",
            "fill it in, or remove the rows",
        )
    said = (note,) if note else ()
    if "split" not in rows[0]:
        first, second = _divide(source, _labelled(rows), None, seed)
        return replace(first, notes=said), second
    splits = Counter(row["split"] for row in rows)
    known = {name: role for name in splits if (role := role_of(name))}
    strange = next((name for name in splits if name not in known), None)
    if strange is not None:
        raise UserError(f"{source}: split {strange!r} is unknown", "known: train, " + ", ".join(HELD_OUT))
    best = min((role.rank for role in known.values() if role.held_out), default=None)
    training = {name for name, role in known.items() if not role.held_out}
    chosen = {name for name, role in known.items() if role.held_out and role.rank == best}
    held_out = _labelled(row for row in rows if row["split"] in chosen) if chosen else None
    trained = _labelled(row for row in rows if row["split"] in training)
    first, second = _divide(source, trained, held_out, seed)
    others = sorted(set(known) - training - chosen)
    unused = ", ".join(f"split {name!r} ({counted(splits[name], 'image')})" for name in others)
    return replace(first, notes=(*said, *([f"not used: {unused}"] if unused else []))), second


def _labelled(rows: Iterable[dict[str, str]]) -> _Labelled:
    return [(row["path"], row["label"]) for row in rows]


def _fractals(source: str) -> _Labelled:
    count = fractal.count(source)
    if count < fractal.LABELLED_MINIMUM:
        raise UserError(
            f"{source}: too few for two classes", hint=f"fractal:{fractal.LABELLED_MINIMUM} or more"
        )
    return [(name, f"system {fractal.parse(name)[0]:04}") for name in fractal.names(count)]


def _divide(
    source: str, training: _Labelled, held_out: _Labelled | None, seed: int
) -> tuple[ImageSet, ImageSet]:
    """Both parts with class numbers; a missing validation part is taken out of the training part."""
    classes = tuple(sorted({label for _, label in training}))
    if len(classes) < 2:
        found = f"only one class ({named(classes[0])})" if classes else "no training images"
        raise UserError(f"{source}: {found}, two or more expected", hint=LAYOUTS)
    first = _numbered(source, training, classes)
    if held_out is None:
        return _hold_out(first, seed)
    unknown = sorted({label for _, label in held_out}.difference(classes))
    if unknown:
        problem = f"{source}: class {unknown[0]!r} is in the validation part but not in training"
        raise UserError(problem, "both parts need the same classes")
    second = _numbered(source, held_out, classes)
    shared = sorted(set(first.paths) & set(second.paths))
    if shared:
        problem = f"{source}: {shared[0]} is in the training and in the validation part"
        raise UserError(problem, "leave it out of one of them")
    return first, second


def _numbered(source: str, images: _Labelled, classes: tuple[str, ...]) -> ImageSet:
    """An image set with labels as numbers; each path once."""
    labels_of: dict[str, str] = {}
    for path, label in images:
        if labels_of.setdefault(path, label) != label:
            problem = f"{source}: {path} is labelled {labels_of[path]!r} and {label!r}"
            raise UserError(problem, "one label for each image: correct the rows")
    images = list(labels_of.items())
    number = {name: position for position, name in enumerate(classes)}
    ordered = sorted(images)
    labels = tuple(number[label] for _, label in ordered)
    return ImageSet(Names(path for path, _ in ordered), source, labels, classes)


def _hold_out(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Stratified: from every class of two or more images a fifth, at least one, is held out."""
    held, kept = sample_per_class(
        images, lambda count: max(1, round(VALIDATION_SHARE * count)) if count > 1 else 0, seed, "split"
    )
    if not len(held):
        problem = f"{images.name}: every class has one image, nothing is left for validation"
        raise UserError(problem, "two images of a class at least, or train/ and val/")
    return kept, held
