"""Exports, opened by the software they are for."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import sslkit
from sslkit.core.errors import UserError
from sslkit.exporting import ExportResult, export, onnx
from sslkit.exporting.proof import Reference, prove, relative
from sslkit.models.encoder import Encoder
from sslkit.models.weights import ENCODER_FILE, header_of, write_encoder

SWIN = pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)
NAMES = ["test_vit", "vit_tiny_patch16_224", "test_resnet", "convnext_atto", SWIN]


def run_folder(path: Path, name: str = "test_vit", images: str = "fractal:8") -> tuple[Path, Encoder]:
    """What export reads of a run, with random weights in all places."""
    torch.manual_seed(4)
    encoder = Encoder(name, 64).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    path.mkdir()
    write_encoder(encoder, path, ENCODER_FILE, {"sslkit": "0.0.0", "epochs": "3"})
    (path / "run.json").write_text(json.dumps({"data": {"name": images, "fingerprint": "f" * 64}}))
    (path / "config.toml").write_text(f'[data]\nsources = [{json.dumps(images)}]\n[method]\nname = "mfm"\n')
    return path, encoder


def pasted(result: ExportResult, name: str) -> torch.Tensor:
    """Run the printed lines as they stand; they end with features of a black image."""
    scope: dict[str, object] = {}
    exec(result.lines, scope)
    return torch.as_tensor(scope[name]).detach()


@pytest.mark.parametrize("name", NAMES)
def test_timm_export_gives_the_same_features(tmp_path: Path, name: str) -> None:
    source, encoder = run_folder(tmp_path / "run", name)
    result = export(source, tmp_path / "out")
    assert result.difference <= 1e-5
    assert sorted(p.name for p in result.folder.iterdir()) == ["config.json", "model.safetensors"]
    expected = encoder.vector(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(pasted(result, "vector"), expected, rtol=0, atol=1e-5)


def test_result_tells_size_and_hash_of_the_file(tmp_path: Path) -> None:
    source, _ = run_folder(tmp_path / "run")
    result = export(source, tmp_path / "out")
    content = result.file.read_bytes()
    assert (result.bytes, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert result.file == tmp_path / "out" / "model.safetensors"


def test_metadata_say_where_the_weights_come_from(tmp_path: Path) -> None:
    source, _ = run_folder(tmp_path / "run")
    assert header_of(export(source, tmp_path / "out").file)[2] == {
        "format": "pt",
        "sslkit": sslkit.__version__,  # of the writer of this file, not of the run
        "backbone": "test_vit",
        "source": "run",
        "method": "mfm",
        "data": "fractal:8",
        "data_fingerprint": "f" * 64,
        "epochs": "3",
    }


def test_an_export_can_be_exported_again(tmp_path: Path) -> None:
    source, _ = run_folder(tmp_path / "run")
    first = export(source, tmp_path / "first")
    second = export(first.file, tmp_path / "second")
    assert header_of(second.file)[2] == {**header_of(first.file)[2], "source": "model.safetensors"}


def test_features_are_compared_on_the_run_s_images_while_they_are_there(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 255)).save(photos / f"{number}.png")
    (photos / "damaged.png").write_bytes(b"not an image")
    source, _ = run_folder(tmp_path / "run", images=str(photos))
    assert export(source, tmp_path / "out-1").compared == "3 of the run's images"
    photos.rename(tmp_path / "elsewhere")
    assert export(source, tmp_path / "out-2").compared == "8 generated images"
    assert export("random/test_resnet", tmp_path / "out-3").compared == "8 generated images"


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "mfm-1")
    assert export("mfm-1").folder == tmp_path / "exports" / "mfm-1-1"
    assert export(Path("mfm-1") / ENCODER_FILE).folder == tmp_path / "exports" / "mfm-1-2"
    assert export("random/test_resnet").folder == tmp_path / "exports" / "test_resnet-1"


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    source, _ = run_folder(tmp_path / "run")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists") as caught:
        export(source, tmp_path / "out")
    assert caught.value.code == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_features_that_are_not_numbers_fail_and_leave_nothing(tmp_path: Path) -> None:
    source, encoder = run_folder(tmp_path / "run")
    encoder.model.norm.bias[0] = torch.nan
    write_encoder(encoder, source, ENCODER_FILE, {})
    with pytest.raises(UserError, match="differ by nan") as caught:
        export(source, tmp_path / "out")
    assert caught.value.code == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])  # a MobileOne has features of 1e6 and differs by 0.1
@pytest.mark.parametrize("error", [2e-4, -2e-4])
def test_one_wrong_feature_fails(tmp_path: Path, error: float, scale: float) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    vectors = scale * torch.rand(2, 5)
    vectors[0, 0] = -scale
    wrong = vectors.clone()
    wrong[1, 3] += scale * error
    expected = Reference(torch.rand(2, 3, 8, 8), vectors, "two images")
    with pytest.raises(UserError, match=r"differ by 2\.0e-04"):
        prove(tmp_path, file, lambda images: wrong, expected, "")
    with pytest.raises(UserError, match=r"gives \[2, 4\] features"):
        prove(tmp_path, file, lambda images: vectors[:, :4], expected, "")
    assert prove(tmp_path, file, lambda images: vectors, expected, "").difference == 0
    near = prove(tmp_path, file, lambda images: vectors + scale * 5e-5, expected, "").difference
    assert near == pytest.approx(5e-5, rel=0.05)


def test_differences_of_zeros() -> None:
    zeros, one = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1e-30], [0.0, 0.0, 0.0]])
    assert relative(zeros, zeros) == 0
    assert relative(one, zeros) == float("inf")
    assert relative(torch.full((2, 3), torch.nan), zeros) != relative(zeros, zeros)


def test_unknown_formats_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown export format 'onx'") as caught:
        export("random/test_resnet", tmp_path / "out", format="onx")  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean 'onnx'?"


def test_what_people_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sslkit.core.console import Console

    source, _ = run_folder(tmp_path / "run")
    result = export(source, tmp_path / "out", console=Console())
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in (result.sha256, f"{result.bytes / 1e6:.1f} MB", f"{result.difference:.1e}", result.lines):
        assert part in shown.err


# ------------------------------------------------------------------------------------------------- ONNX

NO_ONNX = "needs the extra sslkit[onnx]"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_onnx_export(tmp_path: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason=NO_ONNX)
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    source, encoder = run_folder(tmp_path / "run", name)
    result = export(source, tmp_path / "out", format="onnx")
    assert result.difference <= 1e-4
    assert [p.name for p in result.folder.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(result.file), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.rand(batch, 3, 64, 64)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), encoder.vector(images), rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["method"] == "mfm"
    assert metadata["input"] == "images: float32 [B, 3, 64, 64], RGB in [0, 1]"
    expected = encoder.vector(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(pasted(result, "vectors"), expected, rtol=0, atol=1e-4)


class WithBessel(Encoder):
    """An encoder with a function that ONNX lacks."""

    def vector(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(super().vector(images))


def test_what_onnx_can_not_express_is_told_in_a_plain_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    with pytest.raises(UserError, match=r"test_vit can't be written as ONNX: .*bessel_j0") as caught:
        onnx._write(WithBessel("test_vit", 32), tmp_path / "model.onnx", {})
    assert caught.value.message.isprintable()
    assert caught.value.code == 1


def test_batch_norm_by_our_own_translation(tmp_path: Path) -> None:
    """What torch 2.6 falls back to is used once with any torch."""
    onnxruntime = pytest.importorskip("onnxruntime", reason=NO_ONNX)
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    torch.manual_seed(0)
    encoder, images = Encoder("test_resnet", 32).eval(), torch.rand(3, 3, 32, 32)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = onnx._program(encoder, onnx.OURS)
        program.save(str(tmp_path / "model.onnx"), external_data=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), encoder.vector(images), rtol=0, atol=1e-4)


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "NEEDS", ("json", "no_such_package"))
    with pytest.raises(UserError, match="needs no_such_package") as caught:
        export("random/test_resnet", tmp_path / "out", format="onnx")
    assert caught.value.hint == "pip install 'sslkit[onnx]'"
    assert not (tmp_path / "out").exists()
