"""Where weights come from and how they are written: safetensors and JSON, never pickle.

SOURCE is one rule everywhere: a run folder, a fine-tuned or exported folder, a .safetensors file with its
config.json beside it, a foreign file (models/foreign), `timm/NAME` (the only network use) or `random/NAME`.
"""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from sslkit.core.console import SILENT, Console, command, without_strays
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.files import sort_metadata_
from sslkit.models.config_json import (
    config_behind,
    range_behind,
    read_config,
    side_of,
    stem_of,
    timm_config,
    without_head,
)
from sslkit.models.encoder import Encoder
from sslkit.models.factory import Stem, is_eva, is_vit, native_size
from sslkit.models.foreign import (
    ForeignWeights,
    is_foreign,
    read_foreign,
    read_safetensors,
    refuse_transformers,
)
from sslkit.models.input_size import check_size
from sslkit.models.unfinished import newest_file, open_unfinished, unfinished_notice

ENCODER_FILE = "encoder.safetensors"
EXPORT_FILE = "model.safetensors"  # the name timm and the Hugging Face hub look for


@dataclass(frozen=True)
class Loaded:
    """The result of comparing two sets of names."""

    taken: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_encoder(
    source: str | Path,
    size: int | None = None,
    seed: int = 0,
    *,
    backbone: str = "",
    trust: bool = False,
    console: Console = SILENT,
) -> Encoder:
    """An `Encoder` from any SOURCE, in evaluation mode.

    Args:
        source: a run folder (one that has not ended: its newest checkpoint), an exported folder, a
            .safetensors file with its config.json, a foreign file (.pt, .pth, .bin, .safetensors alone),
            `timm/NAME` or `random/NAME`. Of a classifier all but the last layer is taken.
        size: side of the images, pixels; by default the one the weights were made for.
        seed: of the weights of `random/NAME`.
        backbone: timm's name for a foreign file whose shapes don't tell it.
        trust: read a foreign pickle with a torch older than 2.10 too.
        console: gets a line about what was taken from a foreign file or a classifier.

    Raises:
        UserError: it is none of these, or its files do not belong together.
    """
    text = str(source)
    if text.startswith(("timm/", "random/")):
        kind, _, name = text.partition("/")
        torch.manual_seed(seed)
        return Encoder(name, size or native_size(name), pretrained=kind == "timm").eval()
    if is_foreign(source):
        found = read_foreign(Path(source), backbone, trust)
        encoder = _from_foreign(Path(source), found, size, backbone)
        blocks = getattr(encoder.model, "blocks", None) if encoder.family == "vit" else None
        console.facts(found.facts(blocks[0].attn.num_heads if blocks is not None else 0))
        return encoder
    if (unfinished := open_unfinished(Path(source))) is not None:
        console.say(unfinished_notice(unfinished.file))
        return _from_folder(unfinished.file, unfinished.config, unfinished.tensors, size)
    file = encoder_file(Path(source))
    read_config(file.parent)  # another library's folder is refused before its tensors are read
    tensors = read_safetensors(file)
    config = config_behind(file, tensors)
    if not config.get("num_classes"):
        return _from_folder(file, config, tensors, size)
    tensors, left = without_head(file, config, tensors)
    encoder = _from_folder(file, config, tensors, size)
    console.facts({"weights": f"{source}: {left}"})
    return encoder


def _from_folder(file: Path, config: dict[str, Any], tensors: dict[str, Tensor], size: int | None) -> Encoder:
    """The encoder of tensors that a config.json describes, with its mean and standard deviation."""
    arguments, published = config.get("model_args", {}), config["pretrained_cfg"]
    name, patch, made = config["architecture"], arguments.get("patch_size"), side_of(config)
    side = size or made
    # A ViT keeps the position embedding it was trained with and resamples it in each forward pass; other
    # models have nothing that depends on the size, or are built for the new one (Swin).
    keeps_grid = "pos_embed" in tensors and is_vit(name)
    built = arguments.get("img_size", made) if keeps_grid else side
    _refuse_huge_grid(file, tensors, built, patch)
    heads = arguments.get("num_heads")
    # Without global_pool an Eva is as timm has it: published weights, or written before sslkit chose.
    own_pooling = is_eva(name) and "global_pool" not in arguments
    # A fine-tuned ViT keeps its norm after the mean. Before the mean it makes another encoder: of two
    # ViT-Ti/8 on CIFAR-10 the vectors had a cosine of 0.997, but kNN gave only 67 % and 78 % of the images
    # the same class.
    pooled_first = None if own_pooling else "fc_norm.weight" in tensors
    encoder = Encoder(name, built, patch_size=patch, heads=heads, fc_norm=pooled_first, stem=stem_of(config))
    cure = "was config.json edited?" if side == made else f"the weights are for images of {made} px"
    cure += ", or give the encoder that it was fine-tuned from" if config.get("num_classes") else ""
    _fill_(encoder, tensors, file, side, cure)
    with torch.no_grad():
        encoder.mean.copy_(torch.tensor(published["mean"]).view_as(encoder.mean))
        encoder.std.copy_(torch.tensor(published["std"]).view_as(encoder.std))
    encoder.range = range_behind(file, config)
    return encoder.eval()


def _from_foreign(file: Path, found: ForeignWeights, size: int | None, named: str) -> Encoder:
    """The encoder of a foreign file, with ImageNet's mean and standard deviation."""
    shape, pooled_first = found.shape, "fc_norm.weight" in found.tensors
    keeps_grid = "pos_embed" in found.tensors
    built, patch = shape.size if keeps_grid else size or shape.size, shape.patch_size or None
    heads = shape.heads or None
    encoder = Encoder(shape.name, built, patch_size=patch, heads=heads, fc_norm=pooled_first, stem=shape.stem)
    cure = f"is it another backbone? Its layout: {found.layout}; --backbone NAME says which it is"
    if named:
        cure = f"is it another backbone than {named}, or only a part of one? Its layout: {found.layout}"
    _fill_(encoder, found.tensors, file, size or shape.size, cure)
    return encoder.eval()


def _fill_(encoder: Encoder, tensors: dict[str, Tensor], file: Path, side: int, cure: str) -> None:
    """Give the encoder all of the tensors, for images of `side` px; refuse one too few or too many.

    A layer scale or a relative position bias that is left out changes every feature, and raises no error.
    """
    found = load_into(encoder.model, tensors)
    if found.missing or found.unused:
        names = ", ".join((found.missing + found.unused)[:3])
        model = encoder.name + (" with the small stem" if encoder.stem == "small" else "")
        raise UserError(f"{file} does not fit {model} at {side} px: {names} …", cure)
    check_size(encoder.name, side, encoder.stride)
    encoder.size = side


def _refuse_huge_grid(file: Path, tensors: dict[str, Tensor], built: int, patch: int | None) -> None:
    """Refuse a config.json with more positions than the tensors have: the model might fill the memory."""
    side = built // (patch or 32)  # of the grid, patches
    if "pos_embed" in tensors and side**2 > tensors["pos_embed"].numel():
        raise UserError(f"{file} has no {side} × {side} positions", "was config.json edited?")


class Architecture(NamedTuple):
    """What the weights of a SOURCE were made for."""

    name: str
    size: int  # side of the images, pixels
    patch_size: int  # 0: the name's own
    stem: Stem
    heads: int = 0  # of a ViT's attention; 0: the name's own


def architecture(source: str, backbone: str = "") -> Architecture:
    """The architecture of a SOURCE; `backbone` is for a foreign file whose shapes don't tell it."""
    if source.startswith(("timm/", "random/")):
        name = source.partition("/")[2]
        return Architecture(name, native_size(name), 0, "standard")
    if is_foreign(source):
        shape = read_foreign(Path(source), backbone).shape
        return Architecture(shape.name, shape.size, shape.patch_size, shape.stem, shape.heads)
    unfinished = open_unfinished(Path(source))
    config = unfinished.config if unfinished else config_behind(encoder_file(Path(source)))
    patch, heads = (int(config.get("model_args", {}).get(key, 0)) for key in ("patch_size", "num_heads"))
    return Architecture(str(config["architecture"]), side_of(config), patch, stem_of(config), heads)


def encoder_file(path: Path) -> Path:
    """The file with the encoder's weights behind a run (if not ended: its newest checkpoint) or a folder."""
    if (newest := newest_file(path)) is not None:
        return newest
    candidates = [path] if path.suffix == ".safetensors" else [path / ENCODER_FILE, path / EXPORT_FILE]
    for file in candidates:
        if file.is_file() and (file.parent / "config.json").is_file():
            return file
    raise _nothing_there(path)


def _nothing_there(path: Path) -> UserError:
    """Why there are no weights behind `path`, and what to do."""
    if (path / ".metadata").is_file():
        return UserError(
            f"{path} is a distributed checkpoint of torch, and its .metadata a program: it is not opened",
            "where it was made: torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
        )
    if (path / "comparison.json").is_file():
        arms = sorted(folder.name for folder in path.glob("source-seed-*")) or ["source-seed-0"]
        return UserError(f"{path} compares several fine-tunings", f"give one of them: {path / arms[0]}")
    if (path / "run.json").is_file():
        verb, made = ("finetune", "classifier") if is_finetuning(path) else ("pretrain", "encoder")
        cure = command("sslkit", verb, "--resume", path)
        return UserError(f"run {path} has no {made} yet", f"finish it: {cure}")
    with suppress(OSError, ValueError, RecursionError):
        refuse_transformers(path, json.loads((path / "config.json").read_text(encoding="utf-8-sig")))
    cure = "give a run folder such as runs/mfm-…-1, or timm/NAME, or random/NAME"
    if not path.exists() and timm.is_model(str(path).split(".")[0]):
        cure = f"timm/{path} for published weights, random/{path} for none"
    return UserError(
        f"{path} is not a run, an exported folder or a file of weights", nearest_path(path, cure)
    )


def is_finetuning(path: Path) -> bool:
    """Whether it is the folder of a fine-tuning, or of several that are compared."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        if json.loads((path / "run.json").read_text(encoding="utf-8-sig")).get("kind") == "finetune":
            return True
    return (path / "comparison.json").is_file()


def write_encoder(encoder: Encoder, folder: Path, file: str, metadata: dict[str, str]) -> Path:
    """Weights in timm's key names and the config.json beside them; returns the weight file."""
    stem = {"stem": encoder.stem} if encoder.stem != "standard" else {}
    save(encoder.model.state_dict(), folder / file, {**metadata, **stem})
    text = json.dumps(timm_config(encoder), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder / file


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions the umask asks for (the library itself always writes 0600)."""
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous().cpu()
        # A module under two names, as in CoaT, is written twice: the library takes no shared memory.
        own[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(plain.data_ptr())
    facts = {name: without_strays(value) for name, value in (metadata or {}).items()}
    save_file(own, path, metadata={"format": "pt", **facts})
    sort_metadata_(path)
    path.chmod(0o666 & ~_umask())


def header_of(file: Path) -> tuple[int, int, dict[str, str]]:
    """Number of tensors, number of weights and metadata of a safetensors file, from its header alone."""
    with safetensors.safe_open(file, framework="pt") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        return len(shapes), sum(map(math.prod, shapes)), dict(opened.metadata() or {})


def load_into(module: nn.Module, tensors: dict[str, Tensor], but: tuple[str, ...] = ()) -> Loaded:
    """Copy tensors by name; nothing is taken with a wrong shape, and nothing missing goes unnoticed.

    Args:
        but: prefixes of names that are expected to be missing in `tensors` or unused by `module`.
    """
    own = module.state_dict()
    taken = {
        name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape
    }
    module.load_state_dict(taken, strict=False)

    def unexpected(names: set[str]) -> tuple[str, ...]:
        return tuple(sorted(name for name in names if not name.startswith(but)))

    return Loaded(len(taken), unexpected(set(own) - set(taken)), unexpected(set(tensors) - set(taken)))


def tensors_for(encoder: Encoder, model: Any) -> dict[str, Tensor]:
    """The encoder's weights for another model of its kind, a ViT's position embedding on that one's grid.

    A model that normalises tokens before their mean, as methods need it, takes the norm of one that does so
    afterwards.
    """
    tensors: dict[str, Tensor] = dict(encoder.model.state_dict())
    if "norm.weight" in model.state_dict():
        tensors = {re.sub(r"^fc_norm\.", "norm.", name): tensor for name, tensor in tensors.items()}
    position, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if encoder.family == "vit" and position is not None and own is not None and position.shape != own.shape:
        tensors["pos_embed"] = resample_abs_pos_embed(
            position,
            new_size=list(model.patch_embed.grid_size),
            old_size=list(encoder.model.patch_embed.grid_size),
            num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
        )
    return tensors


def _umask() -> int:
    """The process's umask; reading it means setting it, so it is put back at once."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
