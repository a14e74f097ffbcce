"""What every export must show: the file, opened by the software it is for, gives the encoder's features."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.core.config import build as configuration
from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.core.paths import claim_folder, make_folder, refuse_unwritable
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.methods import short_name
from sslkit.models.encoder import Encoder
from sslkit.models.foreign import is_foreign
from sslkit.models.unfinished import folder_of
from sslkit.models.weights import encoder_file, header_of
from sslkit.version import __version__

TOLERANCE = 1e-4
"""Largest difference of one feature above which an export has failed, relative to the largest feature.

Relative, because float32 is: a MobileOne has no last norm, and features of 1e6, where float32 differs by 0.1.
"""

COMPARED = 8
"""Images the features are compared on."""

EXPORTS = Path("exports")
"""The folder of exports for which none was named."""

_REPORT = "nothing was kept; please report this with the backbone's name"


@dataclass(frozen=True)
class ExportResult:
    """A proven export."""

    folder: Path
    file: Path  # the weights
    bytes: int  # size of `file`
    sha256: str  # of `file`
    difference: float  # the largest between the encoder's features and the reloaded file's: see `relative`
    compared: str  # what they were compared on
    lines: str  # Python that loads the file, to paste


@dataclass(frozen=True)
class Reference:
    """Real images and what the encoder makes of them."""

    images: Tensor  # float [B, 3, H, W] in [0, 1]
    vectors: Tensor  # float [B, D]
    name: str


def reference(source: str | Path, encoder: Encoder) -> Reference:
    """The encoder's features of the run's own images if they are still there, else of generated ones."""
    found = _run_images(Path(source))
    found = None if found is None else replace(found, range=encoder.range)
    own = _views(found, encoder.size) if found is not None else []
    images = own or _views(open_images([f"fractal:{COMPARED}"]), encoder.size)
    batch = torch.stack(images)
    with torch.inference_mode():
        vectors = encoder.vector(batch)
    name = f"{len(images)} of the run's images" if own else f"{len(images)} generated images"
    return Reference(batch, vectors, name)


def prove(
    folder: Path, file: Path, features: Callable[[Tensor], Tensor], expected: Reference, lines: str
) -> ExportResult:
    """Compare what the reloaded file computes with what was expected of it.

    Args:
        features: the reloaded file: images [B, 3, H, W] in [0, 1] → [B, D].

    Raises:
        UserError: code 1, they differ by more than `TOLERANCE` of the largest feature.
    """
    with torch.inference_mode():
        found = features(expected.images)
    shape, wanted = list(found.shape), list(expected.vectors.shape)
    if shape != wanted:
        raise UserError(f"{file.name}, loaded back, gives {shape} features, not {wanted}", _REPORT, code=1)
    difference = relative(found, expected.vectors)
    if not difference <= TOLERANCE:  # so that nan fails too
        raise UserError(
            f"{file.name}, loaded back, gives features that differ by {difference:.1e} > {TOLERANCE:.0e} "
            "of the largest",
            _REPORT,
            code=1,
        )
    return ExportResult(folder, file, file.stat().st_size, sha256(file), difference, expected.name, lines)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; nan if there is one, 0 of equal zeros."""
    difference, scale = (found - expected).abs().max(), expected.abs().max()
    return float(difference / scale) if difference else 0.0


@contextmanager
def new_folder(path: Path | None, source: str | Path) -> Iterator[Path]:
    """A folder that did not exist, absolute; removed again if the work inside fails.

    Args:
        path: None takes exports/NAME-N with the first number that is free; NAME is that of the run, file or
            model.

    Raises:
        UserError: it exists, or can't be made.
    """
    made = claim_folder(EXPORTS, _name_of(source)) if path is None else make_folder(path)
    path = made.absolute()
    try:
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def refuse_folder(path: Path | None) -> None:
    """Raises UserError: `new_folder` can't make one there, or by default below exports/."""
    if path is not None and os.path.lexists(path):
        raise UserError(f"{path} exists", "choose another folder; nothing is overwritten")
    refuse_unwritable(path or EXPORTS / "export-1", "" if path else "OUT")


def _name_of(source: str | Path) -> str:
    """The name of the run, file or model."""
    path = Path(source)
    own = path.parent.name if path.suffix == ".safetensors" else path.resolve().name
    return path.name.split(".")[0] if is_foreign(path) else own


def provenance(source: str | Path, encoder: Encoder) -> dict[str, str]:
    """Metadata of an exported file: who wrote it, from which method and data, as far as is known."""
    facts = {"sslkit": __version__, "backbone": encoder.name, "source": Path(source).name}
    if encoder.range.known:
        facts["range"] = encoder.range.in_words()
    if _is_model_name(source) or is_foreign(source):
        return facts
    file = encoder_file(Path(source))
    kept = {key: value for key, value in header_of(file)[2].items() if key not in ("format", *facts)}
    folder = folder_of(file)
    step = {} if folder == file.parent else {"checkpoint": file.parent.name}
    return {**_run_facts(folder), **kept, **facts, **step}


def _run_facts(folder: Path) -> dict[str, str]:
    """Method and data of the run in `folder`; empty if it is none."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8-sig"))
        settings = configuration.read(str(folder / "config.toml"))
        return {
            "method": short_name(str(settings["method.name"])),
            "data": str(run["data"]["name"]),
            "data_fingerprint": str(run["data"]["fingerprint"]),
        }
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return {}


def _run_images(source: Path) -> ImageSet | None:
    """The images a run was trained on, if `source` is a run and they can still be listed."""
    if _is_model_name(source):
        return None
    try:
        settings = configuration.read(str(folder_of(encoder_file(source)) / "config.toml"))
        return open_images([str(name) for name in settings.get("data.sources", [])])
    except UserError:
        return None


def _views(images: ImageSet, size: int) -> list[Tensor]:
    """Up to `COMPARED` readable images spread over the set, as squares [3, size, size] in [0, 1]."""
    views: list[Tensor] = []
    for index in range(0, len(images), max(1, len(images) // COMPARED)):
        try:
            image = images.read(index).resize((size, size), Image.Resampling.BICUBIC)
        except UnreadableImage:
            continue
        views.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255)
        if len(views) == COMPARED:
            break
    return views


def _is_model_name(source: str | Path) -> bool:
    return str(source).startswith(("timm/", "random/"))
