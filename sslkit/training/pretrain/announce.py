"""Everything about a run, said before its first step."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit.core.config.build import PretrainConfig, flat
from sslkit.core.console import Console, command
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import short_name, usual_settings
from sslkit.methods.base import Method
from sslkit.training.pretrain.auto import Resolved
from sslkit.training.run.progress import facts_of, tell_reasons
from sslkit.version import __version__


def announce(ready: Resolved, method: Method, images: ImageSet, console: Console) -> None:
    """Everything resolved, before the first step."""
    config, info = ready.config, ready.info
    encoder = sum(p.numel() for p in method.encoder.parameters())
    rest = sum(p.numel() for p in method.parameters()) - encoder
    console.say(f"sslkit {__version__} pretrain: {short_name(config.method_name)} on {config.model.backbone}")
    console.facts(
        {
            "data": f"{info.count:,} images from {images.name}, short side {info.native} px",
            "views": f"{info.size} × {info.size} px",
            "model": f"{encoder / 1e6:.2f} M weights in the encoder, {rest / 1e6:.2f} M beside it",
            **facts_of(config, info.count // config.run.batch_size),
        }
    )
    for line in images.left_out.lines():
        console.say(f"  {line}")
    tell_reasons(config, ready.reasons, console)
    _tell_given(config, ready.reasons, console)


def _tell_given(config: PretrainConfig, reasons: Mapping[str, str], console: Console) -> None:
    """Settings that differ from the method's defaults, and where those are to be read."""
    usual = usual_settings(config)
    known = {"data.sources", "run.out", *reasons}  # told above
    given = [f"{k} = {v}" for k, v in flat(config).items() if k not in known and v != usual[k]]
    if given:
        console.say(f"  as given: {', '.join(given)}")
    defaults = command("sslkit", "methods", config.method_name, "--toml")
    console.say(f"  all else by default, as {defaults} prints it")
