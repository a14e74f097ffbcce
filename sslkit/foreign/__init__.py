"""Weights that other programs wrote: .pt, .pth and .bin files, and safetensors without a config.json.

Read without running code (`pickles`), renamed to timm's names (`layouts`), recognised by their shapes
(`shapes`). `weights.load_encoder` builds the encoder and sees to it that every tensor fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sslkit.console import command
from sslkit.errors import UserError
from sslkit.foreign.headers import check_header
from sslkit.foreign.layouts import recognised, unwrapped
from sslkit.foreign.pickles import read_pickle
from sslkit.foreign.shapes import Shape, shape_of

__all__ = ["ForeignWeights", "is_foreign", "read_foreign", "read_safetensors"]

PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
"""Endings of what torch.save wrote; MoCo's files are called .pth.tar."""


@dataclass(frozen=True)
class ForeignWeights:
    """A backbone from a foreign file, in timm's names."""

    layout: str
    tensors: dict[str, Tensor]
    unused: dict[str, int]  # group of names → how many tensors were left in the file
    shape: Shape

    def facts(self) -> dict[str, str]:
        """What was taken, for people."""
        shape = self.shape
        extras = f", patches of {shape.patch_size} px" if shape.patch_size else ""
        extras += ", small stem" if shape.stem == "small" else ""
        left = ", ".join(f"{group} ({count})" for group, count in self.unused.items())
        return {
            "layout": self.layout,
            "backbone": f"{shape.name} at {shape.size} px{extras}, images normalised as ImageNet's",
            "taken": f"{len(self.tensors)} tensors",
            "left": left or "nothing",
        }


def is_foreign(source: str | Path) -> bool:
    """A file of a kind that others write; a safetensors file with a config.json beside it is ours."""
    path = Path(source)
    own = path.suffix == ".safetensors" and (path.parent / "config.json").is_file()
    return path.suffix in (*PICKLES, ".safetensors") and path.is_file() and not own


def read_foreign(file: Path, backbone: str = "", trust: bool = False) -> ForeignWeights:
    """The backbone in a foreign file.

    Args:
        backbone: timm's name, where shapes don't tell it.
        trust: see `pickles.read_pickle`.

    Raises:
        UserError: the file can't be read, holds no backbone, or needs a name.
    """
    document = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file, trust)
    layout = recognised(*unwrapped(document))
    if not layout.tensors:
        raise UserError(f"{file} holds no tensors of a backbone", "give a file with a model's state dict")
    if sum(tensor.nbytes for tensor in layout.tensors.values()) > file.stat().st_size:
        raise UserError(f"{file} claims tensors that are larger than itself", "the file is damaged")
    shape = shape_of(layout.tensors, backbone)
    if shape is None:
        first = ", ".join(sorted(layout.tensors)[:3])
        begun = command("sslkit", "export", file)
        raise UserError(
            f"{file}: which backbone is it? Its tensors ({first}, …) leave it open",
            f"{begun} OUT --backbone NAME (a name of sslkit models), then use OUT",
        )
    return ForeignWeights(layout.name, layout.tensors, layout.unused, shape)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a UserError if it is damaged."""
    check_header(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        raise UserError(f"{file} can't be read: {problem}", "the file is damaged or no safetensors") from None
