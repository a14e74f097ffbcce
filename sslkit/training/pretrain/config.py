"""From what was asked of `pretrain` to one checked configuration: the layers put together, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.setting import AUTO, flags_of
from sslkit.core.errors import UserError, nearest
from sslkit.methods import card, full_name
from sslkit.methods import configuration as method_configuration

METHOD = "mfm"
"""What learns where none is named."""

PRETRAIN_FLAGS = flags_of(configuration.SECTIONS)
"""Flag of `sslkit pretrain` → the setting it stands for."""


def pretrain_config(
    data: Sequence[str | Path],
    method: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """The layers put together and checked; imports no torch. Raises UserError."""
    file = configuration.read_again(str(config)) if config is not None else {}
    assigned = dict(map(configuration.parse_set, settings))
    in_file, in_settings = file.pop("method.name", None), assigned.pop("method.name", None)
    in_file = full_name(in_file) if in_file else None
    name = full_name(str(method or in_settings or in_file or METHOD))
    if name != (in_file or name):  # another method than the file's: its settings mean nothing here
        file = {key: value for key, value in file.items() if not key.startswith("method.")}
    known = card(name)
    for flag in flags or {}:
        if flag not in PRETRAIN_FLAGS:
            raise UserError(f"pretrain has no option {flag!r}", nearest(flag, PRETRAIN_FLAGS))
    configuration.refuse_two_lengths(flags or {})
    given = {PRETRAIN_FLAGS[flag]: _text(value) for flag, value in (flags or {}).items()}
    if isinstance(names := given.get("run.augment"), str):
        given["run.augment"] = [name.strip() for name in names.split(",") if name.strip()]
    values = {**known.facts.get("defaults", {}), **file, **assigned, **given}
    if data:
        values["data.sources"] = [str(source) for source in data]
    if not values.get("data.sources"):
        raise UserError("no images given", "sslkit pretrain photos/, or fractal:2000 for generated ones")
    typed = {flag: PRETRAIN_FLAGS[flag] for flag in flags or {}}
    return method_configuration(name, values, typed)


def _text(value: Any) -> Any:
    """Paths as text; numbers and texts as they are; "auto" stays auto."""
    return AUTO if value == AUTO else str(value) if isinstance(value, Path) else value
