"""Features of earlier probes, kept in the user's cache folder under the hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from sslkit.core.files import replacing
from sslkit.data.audit.likeness import LIKENESS
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.probe.features import Features
from sslkit.models.encoder import Encoder
from sslkit.version import __version__

_FORMAT = 1
_LIMIT = 4 * 2**30
"""Bytes that the folder may hold; what was used longest ago goes first."""


def cache_folder() -> Path | None:
    """SSLKIT_CACHE, or sslkit below the user's caches; None for people without a home."""
    if own := os.environ.get("SSLKIT_CACHE", ""):
        return Path(own, "features")
    caches = os.environ.get("XDG_CACHE_HOME", "") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches, "sslkit", "features") if os.path.isabs(caches) else None


def encoder_digest(encoder: Encoder | None) -> str:
    """SHA-256 of an encoder's architecture, weights, mean and standard deviation; None is raw pixels."""
    if encoder is None:
        return "pixels"
    digest = hashlib.sha256(repr((encoder.name, encoder.stem, sorted(encoder.arguments.items()))).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def images_digest(images: ImageSet) -> str:
    """The set's fingerprint and range, and when each file was last written: it may have been edited since."""
    digest = hashlib.sha256(images.fingerprint.encode())
    if images.range.known or images.range.nodata:  # else as earlier versions read them
        digest.update(repr(images.range).encode())
    for path in images.paths.as_bytes():
        with suppress(OSError, ValueError):  # not a file of its own: generated, or packed
            digest.update(str(os.stat(path).st_mtime_ns).encode())
        digest.update(b",")
    return digest.hexdigest()


def key_of(**parts: object) -> str:
    """The hash of everything that decides the features; versions of the libraries are added."""
    versions = {
        "format": _FORMAT,
        "sslkit": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return hashlib.sha256(json.dumps({**parts, **versions}, sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """A folder of safetensors files. What can't be read or does not fit is computed again.

    Args:
        folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str, images: ImageSet, looks: bool = False) -> Features | None:
        """The features kept under `key`, if they have as many images as the set and all that is wanted."""
        if self.folder is None or images.labels is None:
            return None
        file = self.folder / f"{key}.safetensors"
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                facts = opened.metadata() or {}
                if facts.get("key") != key:
                    return None
                names = json.loads(facts["readouts"])  # in their order, which decides between equal ones
                vectors = {name: opened.get_tensor(name) for name in names}
                kept = opened.get_tensor("kept")
                seen = opened.get_tensor("looks") if "looks" in opened.keys() else None  # noqa: SIM118
            os.utime(file)
        except (OSError, safetensors.SafetensorError, ValueError, KeyError):
            return None
        if not _fits(kept, vectors, seen, len(images)) or (looks and seen is None):
            return None
        found = None if seen is None else seen.numpy().view(LIKENESS)[:, 0]
        return Features(vectors, torch.tensor(images.labels)[kept], kept, found)

    def save(self, key: str, features: Features) -> None:
        """Written whole or not at all."""
        if self.folder is None:
            return
        tensors = {**features.vectors, "kept": features.kept}
        if features.looks is not None:
            rows = np.frombuffer(features.looks.tobytes(), np.uint8).reshape(-1, LIKENESS.itemsize)
            tensors["looks"] = torch.from_numpy(rows.copy())
        facts = {"key": key, "readouts": json.dumps(list(features.vectors))}
        with suppress(OSError, safetensors.SafetensorError):  # not written: computed again next time
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{key}.safetensors") as unfinished:
                save_file({name: t.contiguous() for name, t in tensors.items()}, unfinished, facts)
            self._forget_(_LIMIT)

    def _forget_(self, limit: int) -> None:
        """Delete what was used longest ago until the rest fits."""
        assert self.folder is not None
        files = [(file, file.stat()) for file in self.folder.glob("[!.]*.safetensors")]
        held = sum(facts.st_size for _, facts in files)
        for file, facts in sorted(files, key=lambda entry: entry[1].st_mtime):
            if held <= limit:
                return
            file.unlink(missing_ok=True)
            held -= facts.st_size


def _fits(kept: Tensor, vectors: dict[str, Tensor], looks: Tensor | None, count: int) -> bool:
    """Whether these can be the features of `count` images, some of them unreadable."""
    rows = len(kept)
    positions = kept.dtype == torch.int64 and kept.ndim == 1 and 0 < rows <= count
    if not positions or int(kept[0]) < 0 or int(kept[-1]) >= count or not bool((kept.diff() > 0).all()):
        return False
    if looks is not None and (looks.dtype != torch.uint8 or looks.shape != (rows, LIKENESS.itemsize)):
        return False
    return bool(vectors) and all(
        v.dtype == torch.float32 and v.ndim == 2 and len(v) == rows for v in vectors.values()
    )
