"""A folder that plain timm opens: model.safetensors in timm's key names, and config.json.

timm builds a ResNet with its own stem; a small one takes two lines more, which are printed and proven.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import SwinTransformer, SwinTransformerV2
from torch import Tensor, nn

from sslkit.exporting.proof import ExportResult, new_folder, prove, provenance, reference, refuse_folder
from sslkit.models.encoder import Encoder
from sslkit.models.factory import Stem
from sslkit.models.weights import EXPORT_FILE, load_encoder, write_encoder

_LINES = """\
import timm
from PIL import Image
{model}
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.new("RGB", ({size}, {size}))  # or Image.open("photo.jpg").convert("RGB")
vector = model(transform(image)[None])  # [1, {width}]"""

MODEL = """
model = timm.create_model({name!r}, pretrained=True).eval()"""

SMALL_STEM_MODEL = """from torch import nn

# The weights are for the small stem, and timm's {backbone} has the standard one: replace it, then load.
model = timm.create_model({name!r})
model.conv1 = nn.Conv2d(3, {channels}, 3, padding=1, bias=False)
model.maxpool = nn.Identity()
timm.models.load_checkpoint(model, {file!r})
model.eval()"""


SWIN_MODEL = """
# timm before 1.0.31 renames the layers of a Swin without a last layer: load it as it is.
model = timm.create_model({name!r})
timm.models.load_checkpoint(model, {file!r})
model.eval()"""


def export_timm(source: str | Path, out: Path | None, **loading: Any) -> ExportResult:
    """Write `out` for `timm.create_model("local-dir:OUT", pretrained=True)`, reload it so, and compare.

    An encoder with the small stem is reloaded as the returned lines say. `loading` goes to `load_encoder`.

    Raises:
        UserError: `source` is no source of weights, `out` exists, or (code 1) the features differ.
    """
    refuse_folder(out)
    encoder = load_encoder(source, **loading)
    expected = reference(source, encoder)
    with new_folder(out, source) as folder:
        file = write_encoder(encoder, folder, EXPORT_FILE, provenance(source, encoder))
        name = f"local-dir:{folder}"
        lines = _LINES.format(
            model=_model_lines(encoder, name, file), size=encoder.size, width=expected.vectors.shape[1]
        )
        lines += _numbers_told(encoder)
        return prove(folder, file, PlainTimm(name, encoder.stem), expected, lines)


def _model_lines(encoder: Encoder, name: str, file: Path) -> str:
    """Python that builds the model and loads the weights, after the imports."""
    if encoder.stem == "standard" and _renamed(encoder.model):
        return SWIN_MODEL.format(name=name, file=str(file))
    if encoder.stem == "standard":
        return MODEL.format(name=name)
    channels = encoder.model.conv1.out_channels
    return SMALL_STEM_MODEL.format(name=name, file=str(file), backbone=encoder.name, channels=channels)


def _renamed(model: nn.Module) -> bool:
    """Whether the installed timm would rename the layers of its own Swin; see `SWIN_MODEL`."""
    version = tuple(map(int, re.findall(r"\d+", timm.__version__)[:3]))
    return version < (1, 0, 31) and isinstance(model, SwinTransformer | SwinTransformerV2)


def _numbers_told(encoder: Encoder) -> str:
    """How images of more than 8 bits become what `Image.open` gives of a photo; "" where there were none."""
    if not encoder.range.known:
        return ""
    low, high = encoder.range.of("u")
    scaled = f"(numpy.array(Image.open(FILE), float) - {low:.9g}) / {high - low:.9g}"
    none = f"; no data: {list(encoder.range.nodata)}" if encoder.range.nodata else ""
    return (
        f"\n# Of more than 8 bits: data.range = {encoder.range.in_words()}{none}\n"
        "# import numpy\n"
        f"# image = Image.fromarray(numpy.uint8(255 * numpy.clip({scaled}, 0, 1) + 0.5)).convert('RGB')"
    )


class PlainTimm:
    """The model as someone without sslkit opens it, normalised as its config.json says.

    Args:
        name: "local-dir:FOLDER".
        stem: that of the weights; the small one is put in place as the printed lines do.
    """

    def __init__(self, name: str, stem: Stem = "standard") -> None:
        self.model = timm.create_model(name)
        if stem == "small":
            self.model.conv1 = nn.Conv2d(3, self.model.conv1.out_channels, 3, padding=1, bias=False)
            self.model.maxpool = nn.Identity()
        if stem == "small" or _renamed(self.model):
            timm.models.load_checkpoint(self.model, str(Path(name.removeprefix("local-dir:"), EXPORT_FILE)))
        else:
            self.model = timm.create_model(name, pretrained=True)
        self.model.eval()
        data = timm.data.resolve_model_data_config(self.model)
        self.mean = torch.tensor(data["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(data["std"]).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.model((images - self.mean) / self.std)
        return vectors
