"""Checkpoints in a run's folder, and whether they can be trusted; `training.run.checkpoint` writes them.

checkpoints/step-00012500/   model.safetensors  optimizer.safetensors  state.json  manifest.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sslkit.core.files import sha256

_FILES = {"model.safetensors", "optimizer.safetensors", "state.json"}


def committed(folder: Path) -> list[Path]:
    """Checkpoints by name, newest first, verified or not."""
    return sorted((path for path in folder.glob("step-????????") if path.is_dir()), reverse=True)


def whole(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; changes nothing, so that a running run can be looked at."""
    # No file `last` says which: it could name a checkpoint that does not verify.
    return next((path for path in committed(folder) if not fault(path)), None)


def fault(path: Path) -> str:
    """Why a checkpoint can't be trusted; empty if it can."""
    try:
        text = (path / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        if text != checkpoint_json(manifest):
            return "manifest.json: not as it was written"
        if missing := _FILES - manifest["files"].keys():
            return f"manifest.json does not list {min(missing)}"
        for name, facts in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes, not {facts['bytes']}"
            if sha256(path / name) != facts["sha256"]:
                return f"{name} has another SHA-256"
        if manifest["format"] != json.loads((path / "state.json").read_bytes())["format"]:
            return "manifest.json: another format than in state.json"  # the one number without a hash
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return f"manifest.json: {problem!r}"
    return ""


def checkpoint_json(content: dict[str, Any]) -> str:
    """A manifest as it is written, and compared with when it is read."""
    return json.dumps(content, indent=1) + "\n"
