"""A folder that plain timm opens: model.safetensors in timm's key names, and config.json."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor

from sslkit.exporting.proof import ExportResult, new_folder, prove, provenance, reference
from sslkit.weights import EXPORT_FILE, load_encoder, write_encoder

LINES = """\
import timm
from PIL import Image

model = timm.create_model({name!r}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.new("RGB", ({size}, {size}))  # or Image.open("photo.jpg").convert("RGB")
vector = model(transform(image)[None])  # [1, {width}]"""


def export_timm(source: str | Path, out: Path) -> ExportResult:
    """Write `out` for `timm.create_model("local-dir:OUT", pretrained=True)`, reload it so, and compare.

    Raises:
        UserError: `source` is no source of weights, `out` exists, or (code 1) the features differ.
    """
    encoder = load_encoder(source)
    expected = reference(source, encoder)
    with new_folder(out) as folder:
        file = write_encoder(encoder, folder, EXPORT_FILE, provenance(source, encoder))
        name = f"local-dir:{folder}"
        lines = LINES.format(name=name, size=encoder.size, width=expected.vectors.shape[1])
        return prove(folder, file, PlainTimm(name), expected, lines)


class PlainTimm:
    """The model as someone without sslkit opens it, normalised as its config.json says."""

    def __init__(self, name: str) -> None:
        self.model = timm.create_model(name, pretrained=True).eval()
        data = timm.data.resolve_model_data_config(self.model)
        self.mean = torch.tensor(data["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(data["std"]).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.model((images - self.mean) / self.std)
        return vectors
