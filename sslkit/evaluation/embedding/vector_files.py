"""Vectors of images on disk: safetensors, npz, csv or parquet. Nothing is overwritten, nothing is pickled."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslkit.core.console import as_json, without_strays
from sslkit.core.errors import UserError
from sslkit.core.paths import check_free, write_whole
from sslkit.models import weights


@dataclass(frozen=True)
class Vectors:
    """What is written."""

    vectors: NDArray[np.float32]  # [N, D]
    names: list[str]  # relative to DATA
    labels: NDArray[np.int64] | None  # [N], numbers of `classes`, -1: none
    classes: list[str]
    facts: dict[str, str]  # where the vectors come from


def check_target(file: Path) -> None:
    """Refuse at the door what can't become a file of vectors.

    Raises:
        UserError: another ending, an existing file, no such folder, or parquet without pyarrow.
    """
    if file.suffix not in WRITERS:
        cure = f"--out {file.with_suffix('.safetensors')}, or {', '.join(list(WRITERS)[1:])}"
        raise UserError(f"--out {file}: unknown ending {file.suffix!r}", cure)
    if file.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"--out {file} needs pyarrow", "pip install 'sslkit[parquet]', or take .safetensors")
    for path in (file, sidecar(file)):
        check_free(path)
    try:  # by making one: permissions don't show a file system that is read-only
        TemporaryFile(dir=file.absolute().parent).close()
    except OSError as problem:
        cure = "choose another folder, or mend its permissions"
        raise UserError(f"--out {file}: no file can be made there: {problem.strerror}", cure) from None


def sidecar(file: Path) -> Path:
    """A .csv has no room for facts: they lie beside it. Elsewhere the file itself."""
    return file.with_name(f"{file.name}.json") if file.suffix == ".csv" else file


def write_vectors(made: Vectors, file: Path) -> Path:
    """Write `made` as its ending says; the file appears when it is whole. Returns its name.

    Where another command has taken the name meanwhile it is the next free one: NAME-2, NAME-3, …

    Raises:
        UserError: the disk is full, or the folder may not be written.
    """
    file = write_whole(file, lambda target: WRITERS[file.suffix](made, target))
    if file.suffix == ".csv":
        text = as_json({**made.facts, "classes": made.classes}, indent=1) + "\n"
        write_whole(sidecar(file), lambda target: target.write_text(text, encoding="utf-8"))
    return file


def _safetensors(made: Vectors, file: Path) -> None:
    """Names are bytes parted by zeros: `bytes(names).split(b"\\0")`. Facts and classes are metadata."""
    names = np.frombuffer(b"\0".join(map(os.fsencode, made.names)), dtype=np.uint8).copy()
    tensors = {"vectors": torch.from_numpy(made.vectors), "names": torch.from_numpy(names)}
    if made.labels is not None:
        tensors["labels"] = torch.from_numpy(made.labels)
    weights.save(tensors, file, {**made.facts, "classes": as_json(made.classes)})


def _npz(made: Vectors, file: Path) -> None:
    arrays: dict[str, Any] = {"vectors": made.vectors, "names": np.array(made.names)}
    if made.labels is not None:
        arrays |= {"labels": made.labels, "classes": np.array(made.classes)}
    arrays |= {name: np.array(value) for name, value in made.facts.items()}
    np.savez(file, **arrays)


def _csv(made: Vectors, file: Path) -> None:
    label = ["label"] if made.labels is not None else []
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["path", *label, *(f"f{place}" for place in range(made.vectors.shape[1]))])
        for row, (name, vector) in enumerate(zip(made.names, made.vectors, strict=True)):
            table.writerow([name, *class_of(made, row), *map(str, vector)])


def _parquet(made: Vectors, file: Path) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    flat = arrow.array(made.vectors.reshape(-1))
    columns = {"path": arrow.array([os.fsencode(name).decode(errors="replace") for name in made.names])}
    if made.labels is not None:
        labels = (class_of(made, row)[0] for row in range(len(made.names)))
        columns["label"] = arrow.array(list(map(without_strays, labels)))
    columns["vector"] = arrow.FixedSizeListArray.from_arrays(flat, made.vectors.shape[1])
    facts = {name: without_strays(value) for name, value in made.facts.items()}
    table = arrow.table(columns).replace_schema_metadata(facts)
    parquet.write_table(table, file)


def class_of(made: Vectors, row: int) -> list[str]:
    """The class of an image, in a list that is empty where the images have none."""
    if made.labels is None:
        return []
    number = int(made.labels[row])
    return [made.classes[number] if number >= 0 else ""]


WRITERS: dict[str, Callable[[Vectors, Path], None]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}
