"""Weights that other programs wrote: each layout gives the numbers of the model that it was made from."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from sslkit import api
from sslkit.cli import app
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.finetuning.classifier import build_model
from sslkit.models.foreign import layouts
from sslkit.models.foreign.pickles import is_safe
from sslkit.models.foreign.shapes import shape_of
from sslkit.models.weights import architecture, load_encoder

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
VIT = "vit_tiny_patch16_224"
State = dict[str, Tensor]

TRUST = not is_safe()
"""A torch before 2.10 reads a pickle only as its user has to ask for it; all that comes after is the same."""
needs_safe_torch = pytest.mark.skipif(
    TRUST, reason="torch < 2.10 reads no pickle here: only export has --trust"
)


@pytest.fixture(scope="module")
def vit() -> Any:
    """A ViT-Ti for 32 px with a head, every tensor drawn, no bias for keys (as in BEiT's attention)."""
    torch.manual_seed(0)
    model = timm.create_model(VIT, img_size=32, num_classes=7).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
        if name.endswith("qkv.bias"):
            parameter[192:384] = 0
    return model


def expected_of(vit: Any, images: Tensor) -> Tensor:
    """The mean of the patch tokens, by the model itself on images normalised as ImageNet's."""
    with torch.no_grad():
        return vit.forward_features((images - MEAN) / STD)[:, 1:].mean(1)


def without_head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def with_split_biases(state: State) -> State:
    """The attention of BEiT, SimMIM and MFM: biases for queries and values alone."""
    split: State = {}
    for name, tensor in without_head(state).items():
        if name.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            split |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            split[name] = tensor
    return split


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def mae(state: State) -> Any:
    decoder = {"decoder_embed.weight": torch.ones(8, 192), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    decoder |= {"decoder_pos_embed": torch.ones(1, 5, 8), "decoder_pred.bias": torch.ones(3)}
    own = {**without_head(state), **decoder, "mask_token": torch.ones(1, 1, 8)}
    return {
        "model": own,
        "optimizer": {"state": {}},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, size=[2]),
    }


def simmim(state: State) -> Any:
    own = prefixed("encoder.", {**with_split_biases(state), "mask_token": torch.ones(1, 1, 192)})
    return {"model": {**own, "decoder.0.weight": torch.ones(768, 192, 1, 1)}, "max_accuracy": np.float64(0.5)}


def mfm(state: State) -> Any:
    own = prefixed("encoder.", with_split_biases(state))
    return {"model": {**own, "decoder.0.weight": torch.ones(768, 192, 1, 1)}}


def dino(state: State) -> Any:
    own, head = without_head(state), {"head.mlp.0.weight": torch.ones(4, 192)}
    student = prefixed("module.", {**prefixed("backbone.", noise(own)), **head})
    return {
        "student": student,
        "teacher": {**prefixed("backbone.", own), **head},
        "dino_loss": {"center": STD},
    }


def ema(state: State) -> Any:
    return {"state_dict": noise(state), "state_dict_ema": state, "arch": "vit", "metric": 0.5}


LAYOUTS: list[tuple[Callable[[State], Any], str]] = [
    (mae, "MAE"),
    (simmim, "SimMIM"),
    (mfm, "MFM"),
    (dino, "DINO, from 'teacher'"),
    (ema, "timm, from 'state_dict_ema'"),
    (lambda state: state, "timm"),
    (lambda state: {"state_dict": prefixed("module._orig_mod.", state)}, "timm, from 'state_dict'"),
    (lambda state: {"model_ema": state, "model": noise(state)}, "timm, from 'model_ema'"),
]


@pytest.mark.parametrize(("make", "name"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_vit_of_every_layout_gives_the_numbers_of_its_model(
    tmp_path: Path, vit: Any, make: Callable[[State], Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make(vit.state_dict()), tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth", trust=TRUST, console=Console())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder.vector(images), expected_of(vit, images))
    told = capsys.readouterr().err
    assert f"layout    {name}" in told
    assert f"{VIT} at 32 px" in told
    assert "150 tensors" in told


@needs_safe_torch
@pytest.mark.parametrize(("make", "name"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_vit_of_every_layout_is_known_by_its_shapes(
    tmp_path: Path, vit: Any, make: Callable[[State], Any], name: str
) -> None:
    torch.save(make(vit.state_dict()), tmp_path / "weights.pth")
    assert architecture(str(tmp_path / "weights.pth")) == (VIT, 32, 0, "standard", 0)


def test_what_is_left_in_the_file_is_told(tmp_path: Path, vit: Any) -> None:
    found = layouts.recognised(*layouts.unwrapped(mae(vit.state_dict())))
    assert found.unused == {
        "decoder_embed": 1,
        "decoder_blocks": 1,
        "decoder_pos_embed": 1,
        "decoder_pred": 1,
        "mask_token": 1,
    }
    assert layouts.recognised("", vit.state_dict()).unused == {"head": 2}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("layout", ["torchvision", "MoCo"])
def test_a_resnet_gives_the_numbers_of_torchvision(tmp_path: Path, name: str, layout: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # running statistics that are not zero and one
    document: Any = model.state_dict()
    if layout == "MoCo":
        query, key = prefixed("encoder_q.", document), prefixed("encoder_k.", noise_of_floats(document))
        rest = {"queue": torch.randn(128, 16), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
        document = {"epoch": 200, "state_dict": prefixed("module.", {**query, **key, **rest})}
    torch.save(document, tmp_path / "weights.pth.tar", _use_new_zipfile_serialization=layout != "MoCo")
    encoder = load_encoder(tmp_path / "weights.pth.tar", size=64, trust=TRUST)
    images = torch.rand(2, 3, 64, 64)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = model.eval()((images - MEAN) / STD)
        torch.testing.assert_close(encoder.vector(images), expected, rtol=1e-5, atol=1e-5)
    assert encoder.name == name


def noise_of_floats(state: State) -> State:
    return {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in state.items()}


def test_official_mfm_checkpoint(tmp_path: Path, vit: Any) -> None:
    """T26 of the method's card: official names, a pickled configuration whose class must not be imported."""
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    settings = yacs.CfgNode(MODEL=yacs.CfgNode(TYPE="vit", DEPTH=12))
    settings["MODEL"].frozen = True  # an attribute beside the items, as the real one has
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        torch.save({**mfm(vit.state_dict()), "config": settings, "lr_scheduler": {}}, tmp_path / "mfm.pth")
    encoder, images = load_encoder(tmp_path / "mfm.pth", trust=TRUST), torch.rand(2, 3, 32, 32)
    assert not any(name.startswith("yacs") for name in sys.modules)
    for block in encoder.model.blocks:
        assert torch.equal(block.attn.qkv.bias[192:384], torch.zeros(192))
        assert block.attn.qkv.bias[:192].abs().min() > 0
    assert torch.equal(encoder.vector(images), expected_of(vit, images))
    assert not [name for name in encoder.state_dict() if "decoder" in name]
    classifier, _, _ = build_model(encoder, 5, 32, scratch=False, drop_path=0.0, seed=0)
    assert torch.equal(classifier.fc_norm.weight, torch.ones(192))
    assert not torch.equal(vit.norm.weight, torch.ones(192))  # else the line before would show nothing


def test_safetensors_without_config(tmp_path: Path, vit: Any) -> None:
    half = {name: tensor.half() for name, tensor in vit.state_dict().items()}
    save_file(half, tmp_path / "model.safetensors")
    encoder, images = load_encoder(tmp_path / "model.safetensors"), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder.vector(images), expected_of(vit, images), rtol=0, atol=0.05)
    assert encoder.model.pos_embed.dtype == torch.float32


def test_another_size_resamples_the_position_embedding(tmp_path: Path, vit: Any) -> None:
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth", size=64, trust=TRUST)
    images = torch.rand(1, 3, 64, 64)
    other = timm.create_model(VIT, img_size=32, num_classes=0, dynamic_img_size=True).eval()
    other.load_state_dict(without_head(vit.state_dict()))
    assert encoder.size == 64
    assert torch.equal(encoder.vector(images), expected_of(other, images))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("vit_small_patch16_224", {}, ("vit_small_patch16_224", 224, 0, "standard")),
        (
            "vit_small_patch16_224",
            {"img_size": 32, "patch_size": 4},
            ("vit_small_patch16_224", 32, 4, "standard"),
        ),
        ("vit_base_patch8_224", {}, ("vit_base_patch8_224", 224, 0, "standard")),
        ("vit_large_patch16_224", {}, ("vit_large_patch16_224", 224, 0, "standard")),
        ("vit_huge_patch14_224", {}, ("vit_huge_patch14_224", 224, 0, "standard")),
        ("resnet34", {}, ("resnet34", 224, 0, "standard")),
        ("resnet101", {}, ("resnet101", 224, 0, "standard")),
        ("resnet152", {}, ("resnet152", 224, 0, "standard")),
        ("wide_resnet50_2", {}, None),  # a ResNet by its names, and not one of the usual widths
        ("resnext50_32x4d", {}, None),
        ("resnet50d", {}, None),
        ("vit_small_patch14_reg4_dinov2", {}, ("vit_small_patch14_reg4_dinov2", 518, 0, "standard")),
        ("deit_tiny_distilled_patch16_224", {}, None),
        ("test_vit", {}, None),
        ("convnext_atto", {}, None),
    ],
)
def test_architecture_from_shapes(
    name: str, arguments: dict[str, int], expected: tuple[str, int, int, str] | None
) -> None:
    with torch.device("meta"):
        tensors = timm.create_model(name, num_classes=0, **arguments).state_dict()
    found = shape_of(tensors)
    assert (found and (found.name, found.size, found.patch_size, found.stem)) == expected


def test_a_small_stem_is_seen(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({**state, "conv1.weight": torch.randn(64, 3, 3, 3)}, tmp_path / "cifar.pth")
    assert load_encoder(tmp_path / "cifar.pth", trust=TRUST).stem == "small"


def test_swin_of_the_official_code_has_timms_names() -> None:
    with torch.device("meta"):
        own = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).state_dict()
    official = {}
    for name, tensor in own.items():
        stage = name.split(".")[1]
        before = (
            f"layers.{stage}.downsample",
            f"layers.{int(stage) - 1}.downsample" if stage.isdigit() else "",
        )
        official["encoder." + name.replace(*before)] = tensor
    official["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    assert set(layouts.recognised("model", official).tensors) == set(own)
    assert set(layouts.recognised("", own).tensors) == set(own)  # timm's own stay where they are


# ------------------------------------------------------------------------------------------ what is refused


def refusal(file: Path, trust: bool = TRUST, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_encoder(file, trust=trust, **options)
    assert "\n" not in caught.value.message + caught.value.hint
    assert str(file) in caught.value.message
    return caught.value


def test_nothing_missing_and_nothing_strange_goes_unnoticed(tmp_path: Path, vit: Any) -> None:
    state, file = vit.state_dict(), tmp_path / "weights.pth"
    torch.save({name: tensor for name, tensor in state.items() if name != "blocks.3.mlp.fc1.bias"}, file)
    assert "blocks.3.mlp.fc1.bias" in refusal(file).message
    torch.save(
        {**state, "blocks.0.ls1.gamma": torch.ones(192)}, file
    )  # it would scale what it is left out of
    assert "blocks.0.ls1.gamma" in refusal(file).message
    torch.save({**state, "norm.weight": torch.ones(191)}, file)
    assert "norm.weight" in refusal(file).message
    torch.save({"epoch": 3, "model": {"loss": 0.1}}, file)
    assert "holds no tensors" in refusal(file).message


def test_an_open_architecture_asks_for_a_name(tmp_path: Path) -> None:
    file, model = tmp_path / "weights.bin", timm.create_model("test_vit", img_size=64, num_classes=0)
    torch.save(model.state_dict(), file)
    assert "--backbone NAME" in refusal(file).hint
    encoder = load_encoder(file, backbone="test_vit", trust=TRUST)
    assert (encoder.name, encoder.size) == ("test_vit", 64)
    assert "does not fit test_vit2" in refusal(file, backbone="test_vit2").message


def test_old_torch_needs_trust(tmp_path: Path, vit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    for version, refused in (("2.9.1+cpu", True), ("2.10.0", False), ("3.0.0a0", False)):
        monkeypatch.setattr(torch, "__version__", version)
        if refused:
            assert "--trust" in refusal(tmp_path / "weights.pt", trust=False).hint
        else:
            load_encoder(tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    load_encoder(tmp_path / "weights.safetensors")
    load_encoder(tmp_path / "weights.pt", trust=True)
    torch.save({"model": vit.state_dict(), "config": Payload()}, tmp_path / "weights.pt")
    assert "would call" in refusal(tmp_path / "weights.pt", trust=True).message  # trust opens no other door


class Payload:
    def __reduce__(self) -> Any:
        return eval, ("1",)


# ---------------------------------------------------------------------------------------------- on the way


@needs_safe_torch
def test_pretrain_starts_from_a_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("test_vit", img_size=32, num_classes=0)
    torch.save(
        {"model": {**prefixed("encoder.", model.state_dict()), "decoder.0.bias": torch.ones(3)}}, "mfm.pth"
    )
    flags = {
        "epochs": 1,
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
        "pictures": 0,
        "precision": "float32",
    }
    run = api.pretrain(
        "fractal:8", init="mfm.pth", backbone="test_vit", lr=1e-30, out="run", console=Console(), **flags
    )
    told = capsys.readouterr().err
    assert "layout    MFM" in told
    assert "left      decoder (1)" in told
    assert "started from mfm.pth" in told
    assert torch.allclose(load_encoder(run).model.pos_embed, model.pos_embed, atol=1e-6)


def test_export_makes_a_source_of_a_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_vit", img_size=32, num_classes=0).state_dict(), "foreign.pth")

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sslkit", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return int(ended.value.code or 0)

    assert call("export", "foreign.pth") == 2
    error, hint = capsys.readouterr().err.splitlines()
    if not is_safe():  # this very torch, and not one that only says so
        assert f"error: foreign.pth is a pickle, and torch {torch.__version__} can be tricked" in error
        assert "sslkit export foreign.pth OUT --trust" in hint
        assert call("export", "foreign.pth", "--trust") == 2
        hint = capsys.readouterr().err.splitlines()[1]
    assert "--backbone NAME" in hint
    assert call("export", "foreign.pth", "--backbone", "test_vit", "--trust") == 0
    assert capsys.readouterr().out.strip().endswith("exports/foreign-1")
    images = torch.rand(1, 3, 32, 32)
    first = load_encoder("foreign.pth", backbone="test_vit", trust=True).vector(images)
    assert torch.equal(load_encoder("exports/foreign-1").vector(images), first)
