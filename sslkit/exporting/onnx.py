"""model.onnx: images in [0, 1] in, vectors out; normalisation inside, any batch size, one image size."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.core.errors import UserError, first_line
from sslkit.exporting.proof import ExportResult, new_folder, prove, provenance, reference, refuse_folder
from sslkit.models.encoder import Encoder
from sslkit.models.weights import load_encoder

ONNX_FILE = "model.onnx"
MOST = 2**31 - 1
"""Images at once; without a bound torch 2.6 finds that there must not be 2^63 - 1, and settles on two."""
NEEDS = ("onnx", "onnxruntime", "onnxscript")

_LINES = """\
import numpy
import onnxruntime

session = onnxruntime.InferenceSession({file!r}, providers=["CPUExecutionProvider"])
images = numpy.zeros((1, 3, {size}, {size}), dtype="float32")  # RGB in [0, 1]; any number of images
vectors = session.run(None, {{"images": images}})[0]  # [1, {width}]"""


def export_onnx(source: str | Path, out: Path | None, **loading: Any) -> ExportResult:
    """Write `out`/model.onnx, open it with onnxruntime, and compare. `loading` goes to `load_encoder`.

    Raises:
        UserError: the packages are missing, `source` is no source of weights, `out` exists, the model
            can't be expressed in ONNX, or (code 1) the features differ.
    """
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"ONNX export needs {', '.join(missing)}", "pip install 'sslkit[onnx]'")
    refuse_folder(out)
    encoder = load_encoder(source, **loading)
    expected = reference(source, encoder)
    with new_folder(out, source) as folder:
        file = folder / ONNX_FILE
        metadata = {
            **provenance(source, encoder),
            "input": f"images: float32 [B, 3, {encoder.size}, {encoder.size}], RGB in [0, 1]",
            "output": f"vectors: float32 [B, {expected.vectors.shape[1]}]",
        }
        _write(encoder, file, metadata)
        lines = _LINES.format(file=str(file), size=encoder.size, width=expected.vectors.shape[1])
        return prove(folder, file, _Session(file), expected, lines)


class _Session:
    """The file as onnxruntime opens it, on the CPU."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])


class _Vector(nn.Module):
    """`Encoder.vector` as a forward, which is what the exporter traces."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.vector(images)


def _write(encoder: Encoder, file: Path, metadata: dict[str, str]) -> None:
    """The encoder in one file."""
    # What the exporter says about its own internals and about operators that are absent is not for users.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = _translated(encoder)
        except torch.onnx.errors.OnnxExporterError as problem:
            raise UserError(
                f"{encoder.name} can't be written as ONNX: {_reason(problem)}", code=1
            ) from problem
        program.model.metadata_props.update(metadata)
        program.save(str(file), external_data=False)


def _translated(encoder: Encoder) -> torch.onnx.ONNXProgram:
    """With torch's own translations; where they fail, with ours for batch norm.

    torch 2.6 takes the three results that later versions of onnxscript give for it for one.
    """
    try:
        return _program(encoder, None)
    except torch.onnx.errors.OnnxExporterError as problem:
        try:
            return _program(encoder, OURS)
        except torch.onnx.errors.OnnxExporterError:
            raise problem from problem.__cause__


def _program(encoder: Encoder, translations: dict[Any, Any] | None) -> torch.onnx.ONNXProgram:
    """Traced at a batch of two: the exporter takes a batch of one for a constant."""
    program = torch.onnx.export(
        _Vector(encoder),
        (torch.zeros(2, 3, encoder.size, encoder.size),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["vectors"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", max=MOST)}},
        custom_translation_table=translations,
    )
    assert program is not None  # with dynamo=True
    return program


def _batch_norm(
    input: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, Any, Any]:
    """Batch norm with its running statistics, as ONNX has it; the statistics are results too.

    The arguments' names are those of the operator, by which torch hands them over.
    """
    from onnxscript import opset18

    found = opset18.BatchNormalization(input, weight, bias, running_mean, running_var, epsilon=eps)
    normalized = found[0] if isinstance(found, tuple | list) else found
    return normalized, opset18.Identity(running_mean), opset18.Identity(running_var)


OURS = {torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm}
"""Translations that stand in where torch's own fail."""


def _reason(problem: BaseException) -> str:
    """What went wrong first, in one line; the exporter's own text is a coloured page on how to report it."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return re.sub(r"\x1b\[[\d;]*m", "", first_line(problem))
