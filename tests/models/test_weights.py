"""Where weights come from and how they are written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.methods import load
from sslkit.methods.base import Info
from sslkit.models.encoder import Encoder
from sslkit.models.weights import (
    ENCODER_FILE,
    EXPORT_FILE,
    header_of,
    load_encoder,
    load_into,
    save,
    write_encoder,
)
from sslkit.training.run.folder import RunFolder

SWIN = "swin_tiny_patch4_window7_224"
NAMES = ["test_vit", "vit_tiny_patch16_224", "test_resnet", "test_convnext", SWIN]


def made(name: str, size: int = 64) -> Encoder:
    torch.manual_seed(3)
    encoder = Encoder(name, size).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return encoder


def plain_timm(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Features of a folder as somebody without sslkit gets them."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model((images - mean) / std)


@pytest.mark.parametrize("file", [ENCODER_FILE, EXPORT_FILE])
@pytest.mark.parametrize("name", NAMES)
def test_written_encoder_comes_back_here_and_in_plain_timm(tmp_path: Path, name: str, file: str) -> None:
    encoder, images = made(name), torch.rand(2, 3, 64, 64)
    write_encoder(encoder, tmp_path, file, {})
    expected = encoder.vector(images)
    with torch.no_grad():
        for source in (tmp_path, tmp_path / file):
            assert torch.equal(load_encoder(source).vector(images), expected)
    if name == SWIN and tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31):
        return  # it renames the layers of its own headless Swin; the lines that export prints know that
    torch.testing.assert_close(plain_timm(tmp_path, images), expected, rtol=0, atol=1e-5)


def test_plain_timm_opens_a_run_folder(tmp_path: Path) -> None:
    """timm takes the only *.safetensors there is, whatever its name."""
    kind = load("mfm")
    method = kind(
        kind.Config(radius=4.0, low_share=0.5),
        made("test_vit"),
        Info(count=8, size=64, native=64),
    )
    run = RunFolder.create(tmp_path / "run")
    run.finish(method.encoder, {})
    assert [path.name for path in run.path.glob("*.safetensors")] == [ENCODER_FILE]
    images = torch.rand(2, 3, 64, 64)
    expected = method.eval().encoder.vector(images).detach()
    torch.testing.assert_close(plain_timm(run.path, images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_encoder_for_another_size(tmp_path: Path, name: str) -> None:
    write_encoder(made(name), tmp_path, ENCODER_FILE, {})
    images = torch.rand(2, 3, 96, 96)
    bigger = load_encoder(tmp_path, size=96)
    assert bigger.size == 96
    expected = bigger.vector(images).detach()
    torch.testing.assert_close(plain_timm(tmp_path, images), expected, rtol=0, atol=1e-5)
    again = tmp_path / "again"
    again.mkdir()
    write_encoder(bigger, again, ENCODER_FILE, {})
    assert load_encoder(again).size == 96
    assert torch.equal(load_encoder(again).vector(images), expected)


def test_a_size_the_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    write_encoder(made(SWIN), tmp_path, ENCODER_FILE, {})
    with pytest.raises(UserError, match="at 96 px") as caught:
        load_encoder(tmp_path, size=96)
    assert "64 px" in caught.value.hint
    write_encoder(made("test_vit"), tmp_path, ENCODER_FILE, {})
    with pytest.raises(UserError, match="70 px: not a multiple of 16"):
        load_encoder(tmp_path, size=70)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_file_mode_obeys_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    finally:
        after = os.umask(before)
    assert after == mask  # reading the umask left it as it was
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_header(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    save(tensors, tmp_path / "a.safetensors", {"method": "mfm"})
    assert header_of(tmp_path / "a.safetensors") == (2, 7, {"format": "pt", "method": "mfm"})


def test_sha256_of_the_standard_message(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


# ----------------------------------------------------------------------------------------- what is refused


def test_places_that_are_no_source(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent", tmp_path / "absent.pth", tmp_path / "absent.safetensors"):
        with pytest.raises(UserError, match="is not a run, an exported folder") as caught:
            load_encoder(place)
        assert caught.value.code == 2


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="has no encoder yet") as caught:
        load_encoder(tmp_path)
    assert f"--resume {tmp_path}" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"architecture": "test_vit"}', '{"architecture": 1, "pretrained_cfg": {}}']
)
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    write_encoder(made("test_vit"), tmp_path, ENCODER_FILE, {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not a timm model configuration"):
        load_encoder(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_encoder(made("test_vit"), tmp_path, ENCODER_FILE, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "test_vit3"}))
    with pytest.raises(UserError, match="does not fit test_vit3"):
        load_encoder(tmp_path)


def test_nothing_missing_goes_unnoticed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tensors = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.bias": torch.ones(1),
        "x": torch.ones(1),
    }
    found = load_into(module, tensors)
    assert (found.taken, found.missing, found.unused) == (2, ("0.bias", "1.weight"), ("0.bias", "x"))
    assert torch.equal(module[0].weight, torch.ones(3, 2))
    assert load_into(module, tensors, but=("0.", "1.", "x")).missing == ()


# --------------------------------------------------------------------------------------------- random/NAME


def test_random_weights_depend_on_the_seed_alone() -> None:
    images = torch.rand(1, 3, 64, 64)
    torch.manual_seed(1)
    first = load_encoder("random/test_vit", size=64, seed=5).vector(images)
    torch.manual_seed(2)
    assert torch.equal(load_encoder("random/test_vit", size=64, seed=5).vector(images), first)
    assert not torch.equal(load_encoder("random/test_vit", size=64, seed=6).vector(images), first)


def test_random_weights_of_an_unknown_model() -> None:
    with pytest.raises(UserError, match="unknown backbone 'resnet5'"):
        load_encoder("random/resnet5")


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes metadata in an order of its own, another one each time."""
    facts = {name: f'größe "{name}"\n' for name in "hgfedcba"}
    for number in range(8):
        save({"a": torch.ones(3), "b": torch.arange(4)}, tmp_path / f"{number}.safetensors", facts)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert header_of(tmp_path / "0.safetensors") == (2, 7, {"format": "pt", **facts})
    assert load_file(tmp_path / "0.safetensors")["b"].tolist() == [0, 1, 2, 3]


def test_a_bare_name_of_a_model_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder("resnet18")
    assert "random/resnet18" in caught.value.hint
    assert "timm/resnet18" in caught.value.hint


def test_no_image_is_that_large() -> None:
    with pytest.raises(UserError, match="more than 4096"):
        load_encoder("random/test_resnet", size=100_000)
