"""sslkit: self-supervised pre-training for vision backbones, on your own images.

Importing it costs nothing; torch comes with the first name that needs it.
"""

from __future__ import annotations

from sslkit.core import moved
from sslkit.version import __version__ as __version__

TYPE_CHECKING = False  # what typing has; importing it takes long enough for a Ctrl-C that nobody can hear yet

moved.install()

_COMMANDS = (
    "pretrain", "finetune", "probe", "export", "visualize", "embed", "bench", "check", "pack", "doctor",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_COMMANDS, "sslkit.api"),
    "load_encoder": "sslkit.models.weights",
    "read_image": "sslkit.data.images.decode",
    "Encoder": "sslkit.models.encoder",
    "Method": "sslkit.methods.base",
    "UserError": "sslkit.core.errors",
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

    from sslkit.api import bench, check, doctor, embed, export, finetune, pack, pretrain, probe, visualize
    from sslkit.core.errors import UserError
    from sslkit.data.images.decode import read_image
    from sslkit.methods.base import Method
    from sslkit.models.encoder import Encoder
    from sslkit.models.weights import load_encoder


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sslkit' has no attribute {name!r}")
