"""Layouts that differ from a plain ViT's or ResNet's: opened with the features of their model, or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sslkit import api
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.finetuning.classifier import build_model
from sslkit.models.foreign import pickles
from sslkit.models.foreign.known import KNOWN, TRANSFORMERS, refuse_known
from sslkit.models.foreign.layouts import recognised, unwrapped
from sslkit.models.foreign.shapes import shape_of
from sslkit.models.weights import architecture, load_encoder
from sslkit.training.pretrain.auto import resolve
from sslkit.training.pretrain.config import pretrain_config

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def any_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are made here: a torch below 2.10 may read them too, by doors that take no --trust."""
    monkeypatch.setattr(pickles, "SAFE_SINCE", (0, 0))


def drawn(model: Any) -> Any:
    """A model in evaluation mode whose tensors are all drawn, none at its first value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval().requires_grad_(False)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def mean_of_patches(model: Any, images: Tensor, prefix: int) -> Tensor:
    return model.forward_features((images - MEAN) / STD)[:, prefix:].mean(1)


# --------------------------------------------------------------------------------------------------- MoCo v3


@pytest.fixture(scope="module")
def moco_v3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A ViT-S of 12 heads, as vits.py builds it, in the layout of main_moco.py's checkpoints."""
    model = drawn(timm.create_model("vit_small_patch16_224", img_size=32, num_heads=12, num_classes=0))
    own, noise = model.state_dict(), {key: torch.randn_like(t) for key, t in model.state_dict().items()}
    head = {"module.base_encoder.head.0.weight": torch.ones(8, 384)}
    state = {**prefixed("module.base_encoder.", own), **prefixed("module.momentum_encoder.", noise), **head}
    file = tmp_path_factory.mktemp("moco") / "vit-s-300ep.pth.tar"
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": state}, file)
    return model, file


def test_moco_v3_s_vit_s_has_twelve_heads(
    moco_v3: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors have the same shapes for any number of heads; six would give other features without a word."""
    model, file = moco_v3
    images = torch.rand(2, 3, 32, 32)
    expected = mean_of_patches(model, images, 1)
    with torch.no_grad():
        assert torch.equal(load_encoder(file, console=Console()).vector(images), expected)
        assert "heads     12 of attention, the layout's" in capsys.readouterr().err
        made = api.export(file, tmp_path / "out")
        assert json.loads((made.folder / "config.json").read_text())["model_args"]["num_heads"] == 12
        again = timm.create_model(f"local-dir:{made.folder}", pretrained=True).eval()
        assert torch.allclose(again((images - MEAN) / STD), expected, atol=1e-5)
        assert torch.equal(load_encoder(made.folder).vector(images), expected)
    assert architecture(str(file)).heads == architecture(str(made.folder)).heads == 12


def test_a_run_that_starts_from_it_keeps_the_heads(moco_v3: tuple[Any, Path]) -> None:
    config = pretrain_config(["x"], "mfm", settings=["run.batch_size=4"], flags={"init": str(moco_v3[1])})
    resolved = resolve(config, 16, 32, torch.device("cpu"))
    assert (resolved.config.model.backbone, resolved.config.model.heads) == ("vit_small_patch16_224", 12)
    wrong = pretrain_config(["x"], "mfm", settings=["model.heads=3"], flags={"init": str(moco_v3[1])})
    with pytest.raises(UserError, match=r"model\.heads is 3"):
        resolve(wrong, 16, 32, torch.device("cpu"))


def test_heads_that_no_layout_tells_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).state_dict()
    torch.save(state, tmp_path / "vit.pth")
    load_encoder(tmp_path / "vit.pth", console=Console())
    assert "heads     3 of attention, timm's for this name: no tensor tells" in capsys.readouterr().err
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "cnn.pth")
    load_encoder(tmp_path / "cnn.pth", console=Console())
    assert "heads" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------- I-JEPA, DINOv2, iBOT


def test_i_jepa_gives_its_target_encoder(tmp_path: Path) -> None:
    """Its evaluation reads the average encoder's patch tokens; there is no class token."""
    name = "vit_medium_patch16_gap_240"
    model = drawn(timm.create_model(name, img_size=32, num_classes=0, fc_norm=False))
    target = prefixed("module.", model.state_dict())
    noise = {key: torch.randn_like(tensor) for key, tensor in target.items()}
    predictor = {"module.predictor_embed.weight": torch.ones(2, 2)}
    file = tmp_path / "jepa.pth.tar"
    torch.save({"encoder": noise, "predictor": predictor, "target_encoder": target, "epoch": 3}, file)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        vector = load_encoder(file, backbone=name).vector(images)
        assert torch.equal(vector, mean_of_patches(model, images, 0))


@pytest.mark.parametrize(
    ("width", "depth", "patch", "side", "name"),
    [
        (1280, 32, 14, 224, "vit_huge_patch14_gap_224"),
        (1280, 32, 16, 448, "vit_huge_patch16_gap_448"),
        (1408, 40, 16, 224, "vit_giant_patch16_gap_224"),
        (384, 12, 16, 224, ""),  # timm has none without a class token
    ],
)
def test_i_jepa_s_published_sizes_are_recognised(
    width: int, depth: int, patch: int, side: int, name: str
) -> None:
    state = {
        "patch_embed.proj.weight": torch.empty(width, 3, patch, patch, device="meta"),
        "pos_embed": torch.empty(1, (side // patch) ** 2, width, device="meta"),
        **{f"blocks.{block}.norm1.weight": torch.empty(width, device="meta") for block in range(depth)},
    }
    layout = recognised(*unwrapped({"target_encoder": state}))
    found = shape_of(layout.tensors)
    assert layout.name == "I-JEPA, from 'target_encoder'"
    assert (found.name if found else "") == name


def official_dinov2(model: Any, state: State, images: Tensor) -> Tensor:
    """prepare_tokens_with_masks: position to class token and patches, then registers between them."""
    patches = model.patch_embed((images - MEAN) / STD).flatten(1, 2)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1) + state["pos_embed"]
    registers = state.get("register_tokens", torch.zeros(1, 0, 384)).expand(len(images), -1, -1)
    x = model.norm(model.blocks(torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)))
    return x[:, 1 + registers.shape[1] :].mean(1)


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_opens_as_what_it_is(tmp_path: Path, registers: bool) -> None:
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    model = drawn(timm.create_model(name, img_size=56, dynamic_img_size=True, num_classes=0))
    state = {**model.state_dict(), "mask_token": torch.ones(1, 384)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, 384)
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    torch.save(state, tmp_path / "dinov2_vits14.pth")
    encoder, images = load_encoder(tmp_path / "dinov2_vits14.pth"), torch.rand(2, 3, 56, 56)
    assert (encoder.name, encoder.size) == (name, 56)
    with torch.no_grad():
        assert torch.allclose(encoder.vector(images), official_dinov2(model, state, images), atol=2e-5)


def test_dinov2_s_gated_layers_have_timm_s_names() -> None:
    state = {f"blocks.0.mlp.{part}.weight": torch.ones(1) for part in ("w12", "w3")}
    state |= {"mask_token": torch.ones(1, 8), "blocks.0.ls1.gamma": torch.ones(8)}
    named = recognised("", state)
    assert named.name == "DINOv2"
    assert set(named.tensors) == {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "blocks.0.ls1.gamma"}


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_ibot_s_student_opens(tmp_path: Path, prefix: str) -> None:
    model = drawn(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0))
    state = prefixed(prefix, {**model.state_dict(), "masked_embed": torch.ones(1, 192)})
    torch.save({"state_dict": state}, tmp_path / "checkpoint_student.pth")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        vector = load_encoder(tmp_path / "checkpoint_student.pth").vector(images)
        assert torch.equal(vector, mean_of_patches(model, images, 1))
    assert recognised(*unwrapped({"state_dict": state})).name == "iBOT, from 'state_dict'"


# --------------------------------------------------------------------------------------------- what is named

NAMED = [
    ({"storage_tokens": (1, 4, 384), "cls_token": (1, 1, 384)}, "DINOv3's ViT", "vit_small_patch16_dinov3"),
    ({"rope_embed.periods": (16,), "cls_token": (1, 1, 1024)}, "DINOv3's ViT", "vit_large_patch16_dinov3"),
    (
        {"encoder.rel_pos_bias.relative_position_bias_table": (732, 12), "encoder.cls_token": (1, 1, 768)},
        "SimMIM's own ViT",
        "",
    ),
    (
        {"rel_pos_bias.relative_position_bias_table": (732, 12), "cls_token": (1, 1, 768)},
        "a ViT of BEiT's code",
        "beit_base_patch16_224",
    ),
    (
        {"blocks.0.attn.relative_position_bias_table": (732, 16), "cls_token": (1, 1, 1024)},
        "a ViT of BEiT's code",
        "beit_large_patch16_224",
    ),
    ({"modality_encoders.IMAGE.extra_tokens": (1, 1, 768)}, "data2vec 2.0's ViT", ""),
    ({"visual.transformer.resblocks.0.ln_1.weight": (768,)}, "CLIP", "vit_base_patch16_clip_224"),
    (
        {"encoder.layers.encoder_layer_0.ln_1.weight": (768,), "class_token": (1, 1, 768)},
        "torchvision's ViT",
        "",
    ),
    ({"vit.encoder.layer.0.output.dense.weight": (8, 8)}, "a model of Hugging Face transformers", ""),
    (
        {"vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4)},
        "a model of Hugging Face transformers",
        "",
    ),
    ({"embeddings.cls_token": (1, 1, 384)}, "a model of Hugging Face transformers", ""),
]


@pytest.mark.parametrize(
    ("shapes", "name", "of_timm"), NAMED, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_not_opened_is_named(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], name: str, of_timm: str, prefix: str
) -> None:
    torch.save(
        {"model": {prefix + key: torch.zeros(shape) for key, shape in shapes.items()}}, tmp_path / "it.pth"
    )
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path / "it.pth")
    assert f"it.pth holds {name}" in error.value.message
    assert "\n" not in error.value.message + error.value.hint
    assert (f"timm/{of_timm} " in error.value.hint) if of_timm else ("timm/" not in error.value.hint)
    assert not of_timm or timm.is_model(of_timm)


def test_official_layouts_are_not_taken_for_those() -> None:
    """Swin has relative position biases too, deeper in its names, and an encoder may be one's attribute."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=0).state_dict()
    for names in (swin, prefixed("encoder.", swin)):
        refuse_known(Path("swin.pth"), names)


def test_timm_s_own_form_keeps_its_biases_apart() -> None:
    state = {"blocks.0.attn.q_bias": torch.ones(4), "blocks.0.attn.v_bias": torch.ones(4)}
    assert set(recognised("", state, split_biases=True).tensors) == set(state)
    assert set(recognised("", state).tensors) == {"blocks.0.attn.qkv.bias"}


FOLDERS = [
    ({"model_type": "dinov2", "hidden_size": 384}, "dinov2", "timm/vit_small_patch14_dinov2 "),
    ({"model_type": "dinov2_with_registers", "hidden_size": 768}, "", "timm/vit_base_patch14_reg4_dinov2 "),
    ({"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768]}, "convnext", "timm/convnext_tiny "),
    ({"model_type": "ijepa", "hidden_size": 1280}, "ijepa", "timm/vit_huge_patch14_gap_224.in1k_ijepa "),
    ({"model_type": "bert", "hidden_size": 768}, "bert", "timm/NAME"),
    ({"model_type": "vit", "hidden_size": "wide"}, "vit", "timm/NAME"),
]


@pytest.mark.parametrize(
    ("config", "kind", "hint"), FOLDERS, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_is_named(
    tmp_path: Path, config: dict[str, Any], kind: str, hint: str, file: str
) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / file).touch()
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], **config}))
    with pytest.raises(UserError) as error:
        load_encoder(folder)
    assert f"hf is a folder of Hugging Face transformers ({kind}" in error.value.message
    assert error.value.message.endswith("; sslkit reads timm's")
    assert hint in error.value.hint


def test_every_name_in_a_hint_is_timm_s() -> None:
    names = [name for known in KNOWN for name in known.timm.values()]
    names += [name for models in TRANSFORMERS.values() for name in models.values()]
    assert names
    assert not [name for name in names if not timm.is_model(name.split(".")[0])]


# --------------------------------------------------------------------------------------------------- lightly


def test_a_resnet_of_numbered_children_opens(tmp_path: Path) -> None:
    """lightly's tutorials train nn.Sequential(*list(resnet.children())[:-1]) as `backbone`."""
    model = drawn(torchvision.models.resnet18())
    backbone = nn.Sequential(*list(model.children())[:-1])
    head = {"projection_head.layers.0.weight": torch.ones(8, 512)}
    state = {**prefixed("backbone.", backbone.state_dict()), **head}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "lightly.ckpt")
    encoder, images = load_encoder(tmp_path / "lightly.ckpt"), torch.rand(2, 3, 64, 64)
    assert encoder.name == "resnet18"
    with torch.no_grad():
        assert torch.allclose(encoder.vector(images), backbone((images - MEAN) / STD).flatten(1), atol=1e-5)


@pytest.mark.parametrize("module", ["model", "net", "teacher_backbone"])
def test_a_backbone_in_a_training_module_opens(tmp_path: Path, module: str) -> None:
    """As Lightning saves what a module calls its network; lightly's DINO has a student beside the teacher."""
    model = drawn(timm.create_model("resnet18", num_classes=0))
    state = {**prefixed(f"{module}.", model.state_dict()), "student_backbone.conv1.weight": torch.ones(1)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.0"}, tmp_path / "epoch.ckpt")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        vector = load_encoder(tmp_path / "epoch.ckpt").vector(images)
        assert torch.allclose(vector, model((images - MEAN) / STD), atol=1e-5)


def test_a_classifier_of_such_weights_keeps_the_heads(moco_v3: tuple[Any, Path]) -> None:
    model, _, _ = build_model(load_encoder(moco_v3[1]), 3, 32, scratch=False)
    assert model.get_submodule("blocks.0.attn").num_heads == 12


def test_a_hint_does_not_repeat_what_was_given(tmp_path: Path) -> None:
    torch.save(
        {"backbone.0.weight": torch.zeros(64, 3, 7, 7), "backbone.1.bias": torch.zeros(64)},
        tmp_path / "a.ckpt",
    )
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path / "a.ckpt")
    assert "--backbone NAME" in error.value.hint
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path / "a.ckpt", backbone="resnet18")
    assert "--backbone" not in error.value.hint
    assert "resnet18" in error.value.hint
