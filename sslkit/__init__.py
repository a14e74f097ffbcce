"""sslkit: self-supervised pre-training for vision backbones, on your own images.

Importing it costs nothing; torch comes with the first name that needs it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what typing has; importing it takes long enough for a Ctrl-C that nobody can hear yet

from sslkit.version import __version__ as __version__

_HOMES = {
    "pretrain": "sslkit.verbs",
    "finetune": "sslkit.verbs",
    "probe": "sslkit.verbs",
    "export": "sslkit.verbs",
    "visualize": "sslkit.verbs",
    "embed": "sslkit.verbs",
    "bench": "sslkit.verbs",
    "check": "sslkit.verbs",
    "pack": "sslkit.verbs",
    "doctor": "sslkit.verbs",
    "load_encoder": "sslkit.weights",
    "read_image": "sslkit.data.decode",
    "Encoder": "sslkit.backbones",
    "Method": "sslkit.methods.base",
    "UserError": "sslkit.errors",
}

__all__ = [
    "Encoder",
    "Method",
    "UserError",
    "__version__",
    "bench",
    "check",
    "doctor",
    "embed",
    "export",
    "finetune",
    "load_encoder",
    "pack",
    "pretrain",
    "probe",
    "read_image",
    "visualize",
]

if TYPE_CHECKING:
    from typing import Any

    from sslkit.backbones import Encoder
    from sslkit.data.decode import read_image
    from sslkit.errors import UserError
    from sslkit.methods.base import Method
    from sslkit.verbs import bench, check, doctor, embed, export, finetune, pack, pretrain, probe, visualize
    from sslkit.weights import load_encoder


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sslkit' has no attribute {name!r}")
