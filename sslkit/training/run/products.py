"""What a run leaves beside its encoder: parts of the method, and tensors that a next run names.

parts/NAME.safetensors  parts.json      a text tower, a projection …
artefacts/NAME.safetensors              pairs, clusters …

`encoder.safetensors` stays the only file of weights in the run's own folder, where timm opens the only one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sslkit.core.errors import UserError, nearest
from sslkit.core.files import sha256, write_json
from sslkit.models.weights import save

PARTS, ARTEFACTS = "parts", "artefacts"


def write_products(method: Any, folder: Path) -> None:
    """The method's `parts` and `artefacts` into a run's folder; nothing where it has none."""
    described: dict[str, Any] = {}
    for name, module in method.parts().items():
        file = _file(folder / PARTS, name)
        save(module.state_dict(), file)
        described[name] = {"class": type(module).__qualname__, "file": file.name, "sha256": sha256(file)}
    if described:
        write_json(folder / PARTS / "parts.json", described)
    for name, tensor in method.artefacts().items():
        save({name: tensor}, _file(folder / ARTEFACTS, name))


def read_artefact(run: str | Path, name: str) -> Tensor:
    """A tensor that another run has left.

    Raises:
        UserError: it has none of that name.
    """
    folder = Path(run) / ARTEFACTS
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        known = [found.stem for found in folder.glob("*.safetensors")]
        raise UserError(
            f"{run} has no artefact {name!r}", nearest(name, known) or "it must be a complete run"
        )
    return load_file(file)[name]


def _file(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.safetensors"
