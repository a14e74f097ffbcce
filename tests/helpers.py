"""What the tests of several methods begin with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sslkit.cli import app
from sslkit.models.encoder import Encoder
from sslkit.models.weights import write_encoder

Network = TypeVar("Network", bound=nn.Module)
Called = tuple[int, str, str]
"""(exit code, stdout, stderr) of a command line."""


STRIPES = {"checks": 10, "columns": 15, "rows": 25}
"""Images of each class of `write_stripes`."""


def write_stripes(folder: Path, classes: dict[str, int]) -> Path:
    """Noisy stripes, so many images of each class; what comes after the third is noise alone."""
    noise, wave = np.random.default_rng(0), np.where(np.arange(36) // 6 % 2, 200, 40)
    patterns = [np.maximum.outer(wave, wave), np.tile(wave, (36, 1)), np.tile(wave, (36, 1)).T]
    for order, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        pattern = patterns[order] if order < 3 else np.full((36, 36), 120)
        for number in range(count):
            pixels = pattern[..., None] + noise.integers(-40, 40, (36, 36, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


def export_test_vit(folder: Path, mean: float | None = None) -> Path:
    """Random weights of a small ViT as an exported folder; `mean` is that of its normalisation."""
    torch.manual_seed(7)
    encoder = Encoder("test_vit", 32)
    if mean is not None:
        encoder.mean.fill_(mean)
    write_encoder(encoder, folder, "model.safetensors", {})
    return folder


def called(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """`sslkit WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["sslkit", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return (int(ended.value.code or 0), *capsys.readouterr())


def probing(
    folder: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: Sequence[str] = (),
) -> Callable[..., Called]:
    """run("data", "--grid") probes the encoder, exported to folder/model, in that folder."""
    monkeypatch.chdir(folder)
    Path("model").mkdir()
    write_encoder(encoder, folder / "model", "model.safetensors", {})
    usual = ["--workers", "0", "--device", "cpu", "--precision", "float32", "--no-cache"]

    def run(*words: str, source: str = "model") -> Called:
        return called(["probe", source, *words, *usual, *options], monkeypatch, capsys)

    return run


def refused(done: Called, message: str) -> None:
    """At the door, in one line and perhaps a hint."""
    code, out, err = done
    lines = err.splitlines()
    assert (code, out) == (2, ""), err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 2


def unfreshened(network: Network) -> Network:
    """Every parameter random: fresh ones hide mistakes behind zeros, ones and what is equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return network


def batch_of(pictures: Tensor) -> dict[str, Tensor]:
    """A batch of one view, of images 0 … B - 1."""
    return {"image": pictures, "index": torch.arange(len(pictures))}


def two_views(count: int, size: int = 32, seed: int = 1) -> dict[str, Tensor]:
    """A batch of two views, noise."""
    random = torch.Generator().manual_seed(seed)
    views = {name: torch.rand(count, 3, size, size, generator=random) for name in ("first", "second")}
    return {**views, "index": torch.arange(count)}


def map_with_hidden(made: Encoder, batch: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """timm's own final map where the embedding of each hidden patch is replaced by the token on the way."""

    def replace(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        for cell in mask.nonzero().tolist():
            embedded[*cell] = token
        return embedded

    hook = made.model.patch_embed.register_forward_hook(replace)
    try:
        return made.maps(batch)[0]
    finally:
        hook.remove()


def write_photos(folder: Path, count: int) -> Path:
    """Smooth colours with some grain, different in every file."""
    (folder / "inside").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((40, 36), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-9, 10, pixels.shape)
        place = folder / "inside" if number < 2 else folder
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(place / f"{number:02}.png")
    return folder
