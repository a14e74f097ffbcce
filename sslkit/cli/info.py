"""sslkit info PATH"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sslkit.cli import options
from sslkit.core.console import Console
from sslkit.core.errors import UserError, nearest_path

EXAMPLES = ("sslkit info runs/", "sslkit info runs/mfm-vit_tiny_patch16_224-1 --json")


def info(
    path: Annotated[
        str, typer.Argument(help="A run, a weight file, an exported folder, or a folder of runs.")
    ],
    json: options.Json = False,
) -> None:
    """What is this run, weight file or folder of runs?"""
    place = Path(path)
    runs = sorted(place.glob("*/run.json"))
    if (place / "run.json").is_file():
        facts = _of_run(place)
    elif runs:
        facts = {file.parent.name: _summary(_of_run(file.parent)) for file in runs}
    elif place.suffix == ".safetensors" or (place / "model.safetensors").is_file():
        facts = _of_weights(place)
    else:
        cure = nearest_path(path, _elsewhere())
        raise UserError(f"{path} is not a run, a weight file or a folder of runs", cure)
    rows = [f"{name:<14} {value}" for name, value in facts.items()]
    Console(json=json).result("\n".join(rows), facts)


def _of_run(run: Path) -> dict[str, Any]:
    """Facts of a run folder, the last line of its metrics included."""
    import json

    try:
        facts: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8-sig"))
        data = facts.pop("data", {})
        facts |= {f"data {key}": value for key, value in data.items()}
        facts |= {f"{key} version": value for key, value in facts.pop("versions", {}).items()}
        if (run / "metrics.jsonl").is_file():
            last = (run / "metrics.jsonl").read_text(encoding="utf-8-sig").splitlines()[-1:]
            saved = facts.get("step", 0)
            facts |= {key: value for line in last for key, value in json.loads(line).items()}
            if facts.get("status") != "completed":  # `step` is the last one that was logged
                facts["resumes at step"] = saved
            if facts.get("status") == "interrupted":
                facts["step"] = saved
    except ValueError as problem:
        raise UserError(f"{run} can't be read: {problem}", "was run.json or metrics.jsonl edited?") from None
    return facts


def _elsewhere() -> str:
    """The usual folder, if it holds runs."""
    if any(Path("runs").glob("*/run.json")):
        return "sslkit info runs/"
    return "name a run, a .safetensors file, or the folder that holds runs"


def _summary(facts: dict[str, Any]) -> str:
    loss = f", loss {facts['loss']}" if "loss" in facts else ""
    return f"{facts.get('status', '?')}, step {facts.get('step', 0)}{loss}"


def _of_weights(place: Path) -> dict[str, Any]:
    """Names, shapes and metadata of a weight file, by its header alone."""
    from safetensors import SafetensorError

    from sslkit.models.weights import header_of

    file = place if place.suffix == ".safetensors" else place / "model.safetensors"
    if not file.is_file():
        raise UserError(f"no file {file}", nearest_path(file, _elsewhere()))
    try:
        tensors, weights, metadata = header_of(file)
    except SafetensorError as problem:
        cure = "is it whole? Other weights are read by sslkit export"
        raise UserError(f"{file} is not a safetensors file: {problem}", cure) from None
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "tensors": tensors,
        "weights": weights,
        **metadata,
    }
