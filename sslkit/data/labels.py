"""Labelled images, in a training and a validation part: class folders, a .csv column, or `fractal:N`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sslkit import keyed
from sslkit.data import fractal, packed
from sslkit.data.folders import refuse_no_images
from sslkit.data.names import Names
from sslkit.data.sources import ImageSet, images_in, none_found, rows_of
from sslkit.errors import UserError, nearest_path

VALIDATION_NAMES = ("val", "valid", "validation", "test")
"""Names of a validation part, as a folder or in the column `split`; the first one present is used."""
VALIDATION_SHARE = 0.2

_LAYOUTS = "use class folders, train/ and val/ with class folders, or a .csv with path,label"

Labelled = list[tuple[str, str]]  # (path, class name)


def open_labelled(source: str, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(training, validation) images with labels and the same `classes`.

    A validation part is found where there is one: `train/` beside `val|valid|validation|test/`, or the
    .csv column `split`. Otherwise a fixed fifth of every class, drawn by `seed`; a class of one image
    stays in training.

    Args:
        source: folder of class folders, folder with `train/`, .csv with `path,label[,split]`, or
            `fractal:N` (N images in total, the class is the iterated function system).

    Raises:
        UserError: no labels, fewer than two classes, or validation classes that training lacks.
    """
    if fractal.is_name(source):
        return _divide(source, _fractals(source), None, seed)
    if not os.path.exists(source):
        cure = nearest_path(source, "labelled images: class folders or a .csv")
        raise UserError(f"{source}: no such file or folder", cure)
    if os.path.isdir(source):
        return (_open_pack if packed.is_pack(source) else _open_folder)(source, seed)
    if source.lower().endswith(".csv"):
        return _open_table(source, seed)
    raise UserError(f"{source}: no labels", hint=_LAYOUTS)


def _open_folder(source: str, seed: int) -> tuple[ImageSet, ImageSet]:
    refuse_no_images(source)
    training = os.path.join(source, "train")
    if not os.path.isdir(training):
        return _divide(source, _training_folders(source, source), None, seed)
    validation = validation_folder(source)
    held_out = None if validation is None else _class_folders(validation, source)
    return _divide(source, _training_folders(training, source), held_out, seed)


def validation_folder(source: str) -> str | None:
    """The validation part beside `train/`, if there is one."""
    parts = (os.path.join(source, name) for name in VALIDATION_NAMES)
    return next((part for part in parts if os.path.isdir(part)), None)


def _class_folders(folder: str, source: str) -> Labelled:
    """Every image under the direct subfolders of `folder`, which name the classes."""
    classes = sorted(folder_names(folder))
    found = [(path, name) for name in classes for path in images_in(os.path.join(folder, name))]
    if not found and images_in(folder):
        raise UserError(f"{source}: no labels, {folder} has images but no class folders", hint=_LAYOUTS)
    if not found:
        raise none_found(folder)
    return found


def _training_folders(folder: str, source: str) -> Labelled:
    """`_class_folders`, refused where only one of several has images."""
    found = _class_folders(folder, source)
    held = {name for _, name in found}
    if len(held) == 1 and (empty := sorted(folder_names(folder) - held)):
        problem = f"{source}: only one class folder ({held.pop()}) holds images; {empty[0]!r} holds none"
        raise UserError(problem, "add its images, or other class folders")
    return found


def folder_names(folder: str) -> set[str]:
    """The folders in `folder`, but for hidden ones."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


def _open_pack(source: str, seed: int) -> tuple[ImageSet, ImageSet]:
    """As a folder, by the folders that the images were in when they were packed."""
    names = packed.names_of(source)
    training, validation = _parts(map(packed.original, names))

    def below(part: str) -> Labelled:
        found = ((name, _class_folder(packed.original(name), part)) for name in names)
        return [(name, label) for name, label in found if label]

    if not (found := below(training)):
        raise UserError(f"{source}: no labels, the packed images were in no class folders", hint=_LAYOUTS)
    return _divide(source, found, None if validation is None else below(validation), seed)


def class_numbers(originals: Names) -> tuple[NDArray[np.int64], list[str]]:
    """Of images by their names below one folder: each one's class, -1 where it has none, and all classes."""
    parts = [part for part in _parts(originals) if part is not None]
    labels = [next(filter(None, (_class_folder(name, part) for part in parts)), "") for name in originals]
    trained = (_class_folder(name, parts[0]) for name in originals)
    classes = sorted(set(filter(None, trained)))
    number = {name: position for position, name in enumerate(classes)}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64), classes


def _parts(originals: Iterable[str]) -> tuple[str, str | None]:
    """The folders, with "/", of the training and of the validation part; "" is all."""
    tops = {name.partition("/")[0] for name in originals if "/" in name}
    if "train" not in tops:
        return "", None
    validation = next((name for name in VALIDATION_NAMES if name in tops), None)
    return "train/", validation and f"{validation}/"


def _class_folder(original: str, part: str) -> str:
    """The folder directly below `part` that an image is in; "" where it is in none, or elsewhere."""
    folder, slash, _ = original.removeprefix(part).partition("/")
    return folder if slash and original.startswith(part) else ""


def _open_table(source: str, seed: int) -> tuple[ImageSet, ImageSet]:
    rows = rows_of(source)
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
    if "split" not in rows[0]:
        return _divide(source, _labelled(rows), None, seed)
    rows = [{**row, "split": row["split"].strip().lower()} for row in rows]
    known = {"train", *VALIDATION_NAMES}
    strange = next((row["split"] for row in rows if row["split"] not in known), None)
    if strange is not None:
        raise UserError(f"{source}: split {strange!r} is unknown", "known: " + ", ".join(sorted(known)))
    splits = {row["split"] for row in rows}
    chosen = next((name for name in VALIDATION_NAMES if name in splits), None)
    training = _labelled([row for row in rows if row["split"] == "train"])
    held_out = None if chosen is None else _labelled([row for row in rows if row["split"] == chosen])
    return _divide(source, training, held_out, seed)


def _labelled(rows: Sequence[dict[str, str]]) -> Labelled:
    return [(row["path"], row["label"]) for row in rows]


def _fractals(source: str) -> Labelled:
    count = fractal.count(source)
    if count < fractal.LABELLED_MINIMUM:
        raise UserError(
            f"{source}: too few for two classes", hint=f"fractal:{fractal.LABELLED_MINIMUM} or more"
        )
    return [(name, f"system {fractal.parse(name)[0]:04}") for name in fractal.names(count)]


def _divide(
    source: str, training: Labelled, held_out: Labelled | None, seed: int
) -> tuple[ImageSet, ImageSet]:
    """Both parts with class numbers; a missing validation part is taken out of the training part."""
    classes = tuple(sorted({label for _, label in training}))
    if len(classes) < 2:
        found = f"only one class ({classes[0]})" if classes else "no training images"
        raise UserError(f"{source}: {found}, two or more expected", hint=_LAYOUTS)
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


def _numbered(source: str, images: Labelled, classes: tuple[str, ...]) -> ImageSet:
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
    members: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels or ()):
        members.setdefault(label, []).append(index)
    held: set[int] = set()
    for label, indices in members.items():
        if len(indices) > 1:
            order = keyed.generator(seed, 0, label, "split").permutation(len(indices))
            held.update(indices[i] for i in order[: max(1, round(VALIDATION_SHARE * len(indices)))])
    if not held:
        problem = f"{images.name}: every class has one image, nothing is left for validation"
        raise UserError(problem, "two images of a class at least, or train/ and val/")
    kept = [index for index in range(len(images)) if index not in held]
    return images.subset(kept), images.subset(sorted(held))
