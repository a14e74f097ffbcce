"""Leave with a file that other software opens, proven by opening it there and comparing features."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError, nearest
from sslkit.exporting.onnx import export_onnx
from sslkit.exporting.proof import ExportResult
from sslkit.exporting.timm import export_timm

__all__ = ["ExportResult", "Format", "export", "export_onnx", "export_timm"]

Format = Literal["timm", "onnx"]


def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    format: Format = "timm",
    backbone: str = "",
    trust: bool = False,
    console: Console = SILENT,
) -> ExportResult:
    """Write the encoder of `source` for use without sslkit, and prove the file.

    Args:
        source: a run folder, an exported folder, a file of weights, `timm/NAME` or `random/NAME`.
        out: a folder that does not exist yet; by default `exports/NAME-N`.
        format: "timm" (safetensors and config.json) or "onnx" (normalisation inside, dynamic batch).
        backbone, trust: for foreign files, see `models.weights.load_encoder`.

    Raises:
        UserError: source or format unknown, `out` exists, or (code 1) the reloaded file gives other
            features; then nothing is left behind.
    """
    if format not in get_args(Format):
        raise UserError(f"unknown export format {format!r}", nearest(format, get_args(Format)))
    folder = Path(out) if out is not None else None
    result = {"timm": export_timm, "onnx": export_onnx}[format](
        source, folder, backbone=backbone, trust=trust, console=console
    )
    console.facts(
        {
            "file": f"{result.file} ({result.bytes / 1e6:.1f} MB)",
            "sha256": result.sha256,
            "difference": f"{result.difference:.1e} of the largest feature at most, "
            f"on {result.compared} after loading it back",
        }
    )
    console.say("\nLoad it, without sslkit:\n")
    console.say(result.lines)
    return result
