"""Import paths of 0.1 that people's own method files begin with: in 0.2 they work, with a warning."""

from __future__ import annotations

import sys

# As typing has it. This file imports only sys: the package imports it when nobody hears a Ctrl-C yet.
_TYPE_CHECKING = False
if _TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MOVED = {
    "sslkit.augment": "sslkit.augmentations",
    "sslkit.augment.colour": "sslkit.augmentations.color",
    "sslkit.augment.geometry": "sslkit.augmentations.crops",
    "sslkit.augment.photometry": "sslkit.augmentations.photometric",
    "sslkit.augment.resample": "sslkit.augmentations.batch_crops",
    "sslkit.backbones": "sslkit.models.encoder",
    "sslkit.checking": "sslkit.core.config.validate",
    "sslkit.config": "sslkit.core.config.build",
    "sslkit.console": "sslkit.core.console",
    "sslkit.contract": "sslkit.testing.contract",
    "sslkit.data.decode": "sslkit.data.images.decode",
    "sslkit.data.picture": "sslkit.data.images.picture",
    "sslkit.distributed": "sslkit.core.distributed.collectives",
    "sslkit.errors": "sslkit.core.errors",
    "sslkit.feature_maps": "sslkit.models.feature_maps",
    "sslkit.initialization": "sslkit.models.init",
    "sslkit.keyed": "sslkit.core.rng",
    "sslkit.methods.byol": "sslkit.methods.self_distillation.byol",
    "sslkit.methods.dino": "sslkit.methods.self_distillation.dino",
    "sslkit.methods.mae": "sslkit.methods.masked.mae",
    "sslkit.methods.mfm": "sslkit.methods.frequency.mfm",
    "sslkit.methods.moco": "sslkit.methods.contrastive.moco",
    "sslkit.methods.simclr": "sslkit.methods.contrastive.simclr",
    "sslkit.methods.simmim": "sslkit.methods.masked.simmim",
    "sslkit.settings": "sslkit.core.config.setting",
    "sslkit.timm_models": "sslkit.models.factory",
    "sslkit.tokens": "sslkit.models.tokens",
    "sslkit.training.engine": "sslkit.training.loop.engine",
    "sslkit.training.optim": "sslkit.training.loop.optim",
    "sslkit.training.resolve": "sslkit.training.pretrain.auto",
    "sslkit.trial": "sslkit.models.input_size",
    "sslkit.verbs": "sslkit.api",
    "sslkit.weights": "sslkit.models.weights",
}
"""Old name → new name."""
_BLOCKS = ("sslkit.models.heads", "sslkit.models.ema", "sslkit.models.norm", "sslkit.augmentations.masking")
DIVIDED = {"sslkit.blocks": _BLOCKS, "sslkit.models.blocks": _BLOCKS}
"""Old name → the modules among which its functions are now."""
RENAMED = {
    "sslkit.blocks": {"enlarged": "repeat_mask"},
    "sslkit.distributed": {
        "agreed": "all_true",
        "apart": "single_process",
        "total": "all_reduce_sum",
        "world": "world_size",
    },
    "sslkit.methods.byol": {"distance": "cosine"},
    "sslkit.methods.dino": {"cross_entropy": "pairs_ce"},
    "sslkit.methods.mae": {"masked_error": "masked_mse"},
    "sslkit.methods.moco": {"similarities": "queue_logits"},
    "sslkit.methods.simclr": {"similarities": "batch_logits"},
    "sslkit.methods.simmim": {"masked_error": "masked_l1"},
}
"""Names inside such modules: old name → new name."""


class _Moved:
    """Finds and loads a module by its old name: it has what the new one has, and both share state."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MOVED and name not in DIVIDED:
            return None
        import warnings
        from importlib.machinery import ModuleSpec

        # The frames of the import system are not counted: the warning names the line that imports.
        there = " or ".join(places(name))
        warnings.warn(f"{name} is {there} now", DeprecationWarning, stacklevel=2)
        package = any(other.startswith(f"{name}.") for other in MOVED)
        return ModuleSpec(name, self, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # as usual

    def exec_module(self, module: ModuleType) -> None:
        from importlib import import_module

        there = [import_module(place) for place in places(module.__name__)]
        renamed = RENAMED.get(module.__name__, {})

        def found(name: str) -> object:
            new = renamed.get(name, name)
            return getattr(next((place for place in there if hasattr(place, new)), there[0]), new)

        module.__getattr__ = found  # type: ignore[method-assign]


def places(old: str) -> Sequence[str]:
    """The modules that hold what a module of that name held."""
    return DIVIDED.get(old) or (MOVED[old],)


def install() -> None:
    """Add the finder of old names, behind all others."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
