"""Weights that other programs wrote: .pt, .pth and .bin files, and safetensors without a config.json.

Read without running code (`pickles`), renamed to timm's names (`layouts`), recognised by their shapes
(`shapes`). `models.weights.load_encoder` builds the encoder and sees to it that every tensor fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import is_model_in_modules
from torch import Tensor

from sslkit.core.console import command
from sslkit.core.errors import UserError
from sslkit.models.foreign.headers import check_header
from sslkit.models.foreign.known import refuse_known, refuse_transformers
from sslkit.models.foreign.layouts import bare, recognised, unwrapped
from sslkit.models.foreign.pickles import read_pickle
from sslkit.models.foreign.shapes import Shape, shape_of

__all__ = ["ForeignWeights", "is_foreign", "read_foreign", "read_safetensors", "refuse_transformers"]

PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
"""Endings of what torch.save wrote; MoCo's files are called .pth.tar."""


@dataclass(frozen=True)
class ForeignWeights:
    """A backbone from a foreign file, in timm's names."""

    layout: str
    tensors: dict[str, Tensor]
    unused: dict[str, int]  # group of names → how many tensors were left in the file
    shape: Shape

    def facts(self, heads: int = 0) -> dict[str, str]:
        """What was taken, for people; `heads` are those of a ViT that was built for it."""
        shape = self.shape
        extras = f", patches of {shape.patch_size} px" if shape.patch_size else ""
        extras += ", small stem" if shape.stem == "small" else ""
        left = ", ".join(f"{group} ({count})" for group, count in self.unused.items())
        whose = "the layout's" if shape.heads else "timm's for this name: no tensor tells their number"
        attention = {"heads": f"{heads} of attention, {whose}"} if heads else {}
        return {
            "layout": self.layout,
            "backbone": f"{shape.name} at {shape.size} px{extras}, images normalised as ImageNet's",
            **attention,
            "taken": f"{len(self.tensors)} tensors",
            "left": left or "nothing",
        }


def is_foreign(source: str | Path) -> bool:
    """Whether another program wrote the file; a safetensors file with a config.json beside it is ours."""
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
    container, tensors = unwrapped(document)
    named = backbone.split(".")[0]
    own = timm.is_model(named) and is_model_in_modules(named, {"beit", "eva"})
    if not own:  # else it is timm's own form of them
        refuse_known(file, bare(tensors))
    layout = recognised(container, tensors, split_biases=own)
    if not layout.tensors:
        raise UserError(f"{file} holds no tensors of a backbone", "give a file with a model's state dict")
    if sum(tensor.nbytes for tensor in layout.tensors.values()) > file.stat().st_size:
        raise UserError(f"{file} claims tensors that are larger than itself", "the file is damaged")
    shape = shape_of(layout.tensors, backbone, layout.heads)
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
