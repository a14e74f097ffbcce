"""The small stem of ResNets: built as SimCLR says, and still there wherever the weights go."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.evaluation.probe.probe import probe
from sslkit.exporting import export
from sslkit.finetuning.classifier import build_model
from sslkit.finetuning.classifier_files import write_classifier
from sslkit.methods import card
from sslkit.models.encoder import Encoder, require_maps
from sslkit.models.weights import Architecture, architecture, header_of, load_encoder, write_encoder
from sslkit.training.loop.signals import Interrupted
from sslkit.training.pretrain.auto import resolve
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run.folder import load_method, read_configuration

SMALL = {"model.backbone": "resnet18", "model.stem": "small", "model.patch_size": 0}
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def encoder(stem: Any = "small", size: int = 32) -> Encoder:
    """A ResNet-18 without zeros and ones: fresh batch norms hide mistakes."""
    torch.manual_seed(3)
    made = Encoder("resnet18", size, stem=stem).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return made


def by_hand(classes: int = 0) -> Any:
    """timm's ResNet-18 with the two changes written out once more."""
    model = timm.create_model("resnet18", num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.eval().requires_grad_(False)


def images(side: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written encoder with the small stem."""
    (tmp_path / "small").mkdir()
    write_encoder(encoder(), tmp_path / "small", "encoder.safetensors", {})
    return tmp_path / "small"


# ------------------------------------------------------------------------------------------------- built


def test_vectors_are_those_of_a_model_changed_by_hand() -> None:
    made, model = encoder(), by_hand()
    model.load_state_dict(made.model.state_dict())
    torch.testing.assert_close(made.vector(images()), model((images() - MEAN) / STD), rtol=0, atol=1e-5)


def test_weights_are_those_of_resnet18_less_the_larger_kernel() -> None:
    small, standard = (
        {name: tensor.shape for name, tensor in encoder(stem).model.state_dict().items()}
        for stem in ("small", "standard")
    )
    assert small.pop("conv1.weight") == (64, 3, 3, 3)
    assert standard.pop("conv1.weight") == (64, 3, 7, 7)
    assert small == standard
    assert sum(p.numel() for p in encoder().parameters()) == 11_176_512 - 64 * 3 * (7 * 7 - 3 * 3)


@pytest.mark.parametrize("side", [8, 32, 40, 64])
def test_the_map_has_a_cell_for_every_eight_pixels(side: int) -> None:
    made = Encoder("resnet18", side, stem="small").eval().requires_grad_(False)
    assert (made.stride, made.width) == (8, 512)
    assert made.maps(images(side))[0].shape == (2, 512, side // 8, side // 8)
    require_maps(made)


def test_maps_of_all_layers_and_their_strides() -> None:
    made = encoder()
    found = made.maps(images(), layers=[0, 1, 2, 3, 4])
    assert [m.shape[1:] for m in found] == [
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    assert [info["reduction"] for info in made.model.feature_info] == [1, 1, 2, 4, 8]
    standard = Encoder("resnet18", 32)  # nothing is shared with the next model
    assert standard.stride == 32
    assert [info["reduction"] for info in standard.model.feature_info] == [2, 4, 8, 16, 32]


def test_the_new_kernel_is_drawn_as_timm_draws() -> None:
    """Normal with variance 2 / (channels out · 9); the other weights are those of the same seed."""
    torch.manual_seed(0)
    made = Encoder("resnet50", 32, stem="small").model.state_dict()
    torch.manual_seed(0)
    plain = timm.create_model("resnet50", num_classes=0).state_dict()
    kernel = made.pop("conv1.weight")
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)
    assert abs(kernel.mean().item()) < 0.005
    assert all(torch.equal(tensor, plain[name]) for name, tensor in made.items())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "resnetaa50"])
def test_models_without_that_stem_are_refused(name: str) -> None:
    """No ResNet, three kernels in a row, an averaging pool."""
    with pytest.raises(UserError, match=f"^{name} has no small stem: .* 7 × 7 convolution") as caught:
        Encoder(name, 32, stem="small")
    assert (caught.value.code, "resnet18" in caught.value.hint) == (2, True)


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_a_patch_size_is_refused_beside_it(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} with the small stem and patches of 4 px"):
        Encoder(name, 32, patch_size=4, stem="small")


def test_sizes_with_a_remainder_are_refused() -> None:
    with pytest.raises(UserError, match="36 px: not a multiple of 8"):
        Encoder("resnet18", 36, stem="small")


# ----------------------------------------------------------------------------------------------- written


def test_a_written_encoder_comes_back(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["sslkit"] == {"range": "8-bit", "stem": "small"}
    assert header_of(folder / "encoder.safetensors")[2]["stem"] == "small"  # what `sslkit info` shows
    assert architecture(str(folder)) == Architecture("resnet18", 32, 0, "small")
    assert torch.equal(load_encoder(folder).vector(images()), encoder().vector(images()))
    bigger = load_encoder(folder, size=64)
    assert (bigger.stem, bigger.maps(images(64))[0].shape) == ("small", (2, 512, 8, 8))


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_other_encoders_are_written_as_ever(tmp_path: Path, name: str) -> None:
    write_encoder(Encoder(name, 32), tmp_path, "encoder.safetensors", {})
    assert json.loads((tmp_path / "config.json").read_text())["sslkit"] == {"range": "8-bit"}
    assert header_of(tmp_path / "encoder.safetensors")[2] == {"format": "pt"}
    assert architecture(str(tmp_path)).stem == "standard"


def test_timm_does_not_read_our_section(folder: Path) -> None:
    ours = timm.create_model(f"local-dir:{folder}")
    own = json.loads((folder / "config.json").read_text())
    del own["sslkit"]
    (folder / "config.json").write_text(json.dumps(own))
    plain = timm.create_model(f"local-dir:{folder}")
    assert str(ours) == str(plain)
    assert ours.pretrained_cfg == plain.pretrained_cfg


@pytest.mark.parametrize(
    ("stem", "section", "model"),
    [("small", {}, "resnet18"), ("standard", {"stem": "small"}, "resnet18 with the small stem")],
)
def test_mixed_up_stems_are_refused(tmp_path: Path, stem: str, section: dict[str, str], model: str) -> None:
    write_encoder(encoder(stem), tmp_path, "encoder.safetensors", {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sslkit": section}))
    with pytest.raises(UserError, match=rf"does not fit {model} at 32 px: conv1\.weight") as caught:
        load_encoder(tmp_path)
    assert caught.value.hint == "was config.json edited?"


@pytest.mark.parametrize("section", [{"stem": "tiny"}, {"stem": []}, []])
def test_a_damaged_section_is_refused(folder: Path, section: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sslkit": section}))
    with pytest.raises(UserError, match=r"config\.json is not a timm model configuration"):
        load_encoder(folder)


# ---------------------------------------------------------------------------------------------- exported


def test_an_export_is_opened_by_the_printed_lines(folder: Path, tmp_path: Path) -> None:
    result = export(folder, tmp_path / "out")
    assert result.difference <= 1e-5
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):  # timm alone says no
        timm.create_model(f"local-dir:{result.folder}", pretrained=True)
    assert "model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)" in result.lines
    assert "model.maxpool = nn.Identity()" in result.lines
    scope: dict[str, Any] = {}
    exec(result.lines, scope)
    expected = encoder().vector(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(scope["vector"].detach(), expected, rtol=0, atol=1e-5)
    again = export(result.folder, tmp_path / "again")
    assert header_of(again.file)[2]["stem"] == load_encoder(again.folder).stem == "small"


def test_standard_exports_need_no_such_lines(tmp_path: Path) -> None:
    lines = export("random/test_resnet", tmp_path / "out").lines
    assert "pretrained=True" in lines
    assert "conv1" not in lines


@pytest.mark.slow
def test_an_onnx_file_holds_the_stem(folder: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra sslkit[onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra sslkit[onnx]")
    file = export(folder, tmp_path / "out", format="onnx").file
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), encoder().vector(images()), rtol=0, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["stem"] == "small"


# ------------------------------------------------------------------------------------ probed and fine-tuned


def test_the_random_baseline_has_the_stem_of_its_source(tmp_path: Path) -> None:
    """A source that is itself random, from the same seed, equals its baseline."""
    sources = []
    for stem in ("small", "standard"):
        (tmp_path / stem).mkdir()
        torch.manual_seed(5)
        write_encoder(
            Encoder("resnet18", 16 if stem == "small" else 32, stem=stem),
            tmp_path / stem,
            "model.safetensors",
            {},
        )
        sources.append(str(tmp_path / stem))
    result = probe(sources, "fractal:20", baselines=["random"], seed=5, device="cpu", workers=0)
    names = ["random resnet18 small stem 16 px", "random resnet18 32 px"]
    assert [row.name for row in result.rows] == [*sources, *names]
    for source, baseline in zip(result.rows[:2], result.rows[2:], strict=True):
        assert (source.knn, source.linear) == (baseline.knn, baseline.linear)
        assert torch.equal(source.predictions["linear"], baseline.predictions["linear"])


@pytest.mark.parametrize("scratch", [False, True])
def test_a_classifier_has_the_stem_of_its_source(tmp_path: Path, scratch: bool) -> None:
    made = encoder()
    model, found, _ = build_model(made, 5, 32, scratch=scratch)
    taken = torch.equal(model.state_dict()["conv1.weight"], made.model.state_dict()["conv1.weight"])
    assert (taken, found.taken) == ((False, 0) if scratch else (True, len(made.model.state_dict())))
    write_classifier(model, made, 32, tuple("abcde"), tmp_path, {})
    assert json.loads((tmp_path / "config.json").read_text())["sslkit"] == {"range": "8-bit", "stem": "small"}
    plain = by_hand(classes=5)
    timm.models.load_checkpoint(plain, str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        expected = model.eval()(images())
    assert expected.shape == (2, 5)
    torch.testing.assert_close(plain(images()), expected, rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------- trained


def config(out: Path, **changes: Any) -> PretrainConfig:
    """Four steps of MFM on generated images."""
    known = card("mfm")
    values = {
        "data.sources": ["fractal:8"],
        "data.size": 16,
        "data.workers": 0,
        "method.radius": 2.0,
        "schedule.epochs": 2,
        "run.batch_size": 4,
        "run.device": "cpu",
        "run.precision": "float32",
        "run.log_every": 1,
        "run.pictures": 0,
        "run.out": str(out),
    }
    return build_pretrain("mfm", known.Config, {**known.facts["defaults"], **values, **changes})


def chosen(changes: dict[str, Any], native: int = 300) -> Any:
    """What becomes of MFM's settings for a thousand images of `native` px on the CPU."""
    return resolve(build_pretrain("mfm", card("mfm").Config, changes), 1000, native, torch.device("cpu"))


@pytest.mark.slow
def test_a_run_keeps_the_stem(tmp_path: Path) -> None:
    """Also when it is stopped and resumed, and when another run starts from it."""
    whole = pretrain(config(tmp_path / "whole", **SMALL))
    assert load_encoder(whole).stem == load_method(whole).encoder.stem == "small"

    class Stopper(Console):
        def event(self, document: Any) -> None:
            if document["step"] == 3:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        pretrain(config(tmp_path / "stopped", **SMALL), Stopper(quiet=True))
    resume(tmp_path / "stopped")
    first, second = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "stopped"))
    assert first["conv1.weight"].shape == (64, 3, 3, 3)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    still = {"model.init": str(whole), "optim.lr": 1e-30, "schedule.min_lr": 0.0, "schedule.warmup_lr": 0.0}
    begun = pretrain(config(tmp_path / "begun", **still, **{"schedule.epochs": 1}))
    assert read_configuration(begun / "config.toml").model.stem == "small"
    torch.testing.assert_close(
        load_file(begun / "encoder.safetensors")["conv1.weight"], first["conv1.weight"], rtol=0, atol=1e-9
    )


def test_init_brings_its_stem_along(folder: Path) -> None:
    ready = chosen({"model.init": str(folder)})
    assert (ready.config.model.backbone, ready.config.model.stem) == ("resnet18", "small")
    assert ready.reasons["model.stem"] == f"that of {folder}"
    asked = chosen({"model.init": str(folder), "model.stem": "small"})
    assert (asked.config.model.stem, "model.stem" in asked.reasons) == ("small", False)
    other = chosen({"model.init": str(folder), "model.backbone": "vit_tiny_patch16_224"})
    assert other.config.model.stem == "standard"  # another backbone: refused later, for its tensors


def test_a_small_stem_can_not_start_from_a_standard_one() -> None:
    with pytest.raises(UserError, match=r"random/resnet18 \(resnet18\) has the standard stem") as caught:
        chosen({"model.init": "random/resnet18", "model.stem": "small"})
    assert "model.stem=standard" in caught.value.hint


@pytest.mark.parametrize(("native", "size"), [(300, 64), (32, 32)])
def test_a_size_left_to_the_tool_suits_the_stem(native: int, size: int) -> None:
    assert chosen(SMALL, native).config.data.size == size


def test_a_run_on_another_backbone_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_vit has no small stem"):
        pretrain(config(tmp_path / "run", **{**SMALL, "model.backbone": "test_vit"}))
    assert not (tmp_path / "run").exists()
