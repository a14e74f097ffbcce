"""A classifier as SOURCE: the encoder inside it, and what every command makes of a fine-tuned folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslkit import api
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import open_images
from sslkit.finetuning.classifier import build_model
from sslkit.finetuning.classifier_files import write_classifier
from sslkit.models.encoder import Encoder
from sslkit.models.weights import (
    Architecture,
    architecture,
    load_encoder,
    load_into,
    tensors_for,
    write_encoder,
)

QUICK: dict[str, Any] = {"workers": 0, "device": "cpu"}
TINY: dict[str, Any] = {**QUICK, "epochs": 1, "batch_size": 8, "precision": "float32"}
SWIN = "swin_tiny_patch4_window7_224"
CLASSES = ("ant", "bee", "cat")


def trained(name: str, size: int = 32, **options: Any) -> Encoder:
    """An encoder whose norms are no longer the identity."""
    torch.manual_seed(3)
    encoder = Encoder(name, size, **options).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return encoder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """The folder that a fine-tuning of a ViT leaves, its weights drawn instead of learned."""
    return written(trained("test_vit"), tmp_path / "classifier")


def written(encoder: Encoder, folder: Path) -> Path:
    model, _, _ = build_model(encoder, len(CLASSES), encoder.size, scratch=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder.mkdir()
    write_classifier(model, encoder, encoder.size, CLASSES, folder, {})
    return folder


def by_timm(folder: Path, images: Tensor, **arguments: Any) -> Tensor:
    """What plain timm makes of images in [0, 1] with the weights of a folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        found: Tensor = model((images - mean) / std)
    return found


# ---------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", SWIN])
def test_the_vector_is_what_the_last_layer_is_given(tmp_path: Path, name: str) -> None:
    folder, images = written(trained(name, 64), tmp_path / "ft"), torch.rand(3, 3, 64, 64)
    encoder = load_encoder(folder)
    with torch.no_grad():
        vectors = encoder.vector(images)
    torch.testing.assert_close(vectors, by_timm(folder, images, num_classes=0), rtol=0, atol=1e-5)
    tensors = load_file(folder / "model.safetensors")
    head = json.loads((folder / "config.json").read_text())["pretrained_cfg"]["classifier"]
    logits = vectors @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"]
    torch.testing.assert_close(logits, by_timm(folder, images), rtol=0, atol=1e-5)
    assert architecture(str(folder)) == Architecture(name, 64, 0, "standard")


def test_a_small_stem_and_small_patches_stay(tmp_path: Path) -> None:
    folder = written(trained("resnet18", stem="small"), tmp_path / "resnet")
    assert load_encoder(folder).stem == architecture(str(folder)).stem == "small"
    folder = written(trained("test_vit", patch_size=8), tmp_path / "vit")
    assert load_encoder(folder).stride == architecture(str(folder)).patch_size == 8


def test_another_size(classifier: Path) -> None:
    images = torch.rand(2, 3, 48, 48)
    encoder = load_encoder(classifier, size=48)
    with torch.no_grad():
        expected = by_timm(classifier, images, num_classes=0)
        torch.testing.assert_close(encoder.vector(images), expected, rtol=0, atol=1e-5)
    assert encoder.size == 48


def test_the_file_and_the_folder_last_are_the_same(classifier: Path) -> None:
    shutil.copytree(classifier, classifier / "last")
    images = torch.rand(2, 3, 32, 32)
    first = load_encoder(classifier).vector(images)
    for place in (classifier / "model.safetensors", classifier / "last"):
        assert torch.equal(load_encoder(place).vector(images), first)


def test_one_line_says_what_was_left(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_encoder(classifier, console=Console())
    told = f"  weights  {classifier}: classifier of 3 classes; its last layer (head) is not taken\n"
    assert capsys.readouterr().err == told


def test_weights_alone_keep_the_norm_after_the_mean(classifier: Path) -> None:
    """As in the fine-tuned files of the papers: .pth, or safetensors without a config.json."""
    images = torch.rand(2, 3, 32, 32)
    expected = by_timm(classifier, images, num_classes=0)
    (classifier / "config.json").unlink()
    found = load_encoder(classifier / "model.safetensors", backbone="test_vit").vector(images).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------- classifiers made by others


@pytest.mark.parametrize("told", [True, False], ids=["as it is written", "without model_args"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {}),
        ("test_vit", {"img_size": 64, "global_pool": "avg", "patch_size": 8}),
        ("test_vit", {"img_size": 64, "global_pool": "avg", "patch_size": 32}),
        ("test_vit", {"img_size": 64, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_a_classifier_that_timm_saved(
    tmp_path: Path, name: str, arguments: dict[str, Any], told: bool
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    if not told:  # as by timm 1.0.26
        config = json.loads((tmp_path / "config.json").read_text())
        config.pop("model_args", None)
        config["pretrained_cfg"]["input_size"] = [3, 160, 160]
        (tmp_path / "config.json").write_text(json.dumps(config))
    images, encoder = torch.rand(2, 3, 64, 64), load_encoder(tmp_path)
    assert encoder.size == architecture(str(tmp_path)).size == arguments.get("img_size", 160)
    with torch.no_grad():
        features = model.forward_features((images - encoder.mean) / encoder.std)
        expected = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(encoder.vector(images), expected, rtol=0, atol=1e-5)


def test_a_class_token_that_is_not_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    load_encoder(tmp_path, console=Console())
    assert "vectors are means where it pooled by 'token'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- what is refused


def changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 4}, r"no last layer \(head\) of 4 classes"),
        ({"num_classes": -3}, "no last layer"),
        ({"pretrained_cfg": {"classifier": "neck"}}, r"no last layer \(neck\) of 3"),
        ({"pretrained_cfg": {"classifier": 7}}, r"no last layer \(of no name\)"),
        ({"model_args": {"act_layer": "relu"}}, "model_args act_layer 'relu' is not built here"),
        ({"model_args": {"pool_include_prefix": True}}, "model_args pool_include_prefix True is not"),
        ({"architecture": "test_vit3"}, "does not fit test_vit3"),
    ],
)
def test_a_config_that_is_not_of_the_weights(classifier: Path, changes: dict[str, Any], message: str) -> None:
    changed(classifier, **changes)
    with pytest.raises(UserError, match=message):
        load_encoder(classifier)


def test_what_does_not_fit_names_the_cure(classifier: Path) -> None:
    tensors = load_file(classifier / "model.safetensors")
    save_file({**tensors, "neck.weight": torch.ones(2)}, classifier / "model.safetensors")
    with pytest.raises(UserError, match=r"neck\.weight") as caught:
        load_encoder(classifier)
    assert "the encoder that it was fine-tuned from" in caught.value.hint


def test_a_comparison_names_one_of_its_models(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    for seed in (5, 4):
        (tmp_path / f"source-seed-{seed}").mkdir()
    for ask in (load_encoder, lambda place: architecture(str(place)), api.visualize):
        with pytest.raises(UserError, match="compares several fine-tunings") as caught:
            ask(tmp_path)
        assert str(tmp_path / "source-seed-4") in caught.value.hint


def test_an_unfinished_fine_tuning_says_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "finetune"}')
    for ask in (load_encoder, api.visualize):
        with pytest.raises(UserError, match="has no classifier yet") as caught:
            ask(tmp_path)
        assert f"sslkit finetune --resume {tmp_path}" in caught.value.hint


# ------------------------------------------------------------------------------------ where the weights go


def test_a_classifier_of_a_classifier_keeps_its_norm(classifier: Path) -> None:
    encoder, tensors = load_encoder(classifier), load_file(classifier / "model.safetensors")
    model, found, new = build_model(encoder, 7, 32, scratch=False)
    assert new == ("head.weight", "head.bias")
    assert found.taken == len(tensors) - 2
    assert torch.equal(model.state_dict()["fc_norm.weight"], tensors["fc_norm.weight"])


def test_pretraining_from_a_classifier_norms_tokens_by_its_norm(classifier: Path) -> None:
    fresh = Encoder("test_vit", 32).model
    found = load_into(fresh, tensors_for(load_encoder(classifier), fresh))
    assert (found.missing, found.unused) == ((), ())
    expected = load_file(classifier / "model.safetensors")["fc_norm.weight"]
    assert torch.equal(fresh.state_dict()["norm.weight"], expected)


def test_the_export_is_the_same_encoder(classifier: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    made = api.export(classifier, tmp_path / "out")
    expected = by_timm(classifier, images, num_classes=0)
    found = load_encoder(made.folder).vector(images).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_timm(made.folder, images), expected, rtol=0, atol=1e-5)
    assert made.difference < 1e-5


# ----------------------------------------------------------------------------------- a real run, by commands


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "vit", an exported encoder, and "ft", a fine-tuning of it."""
    place = tmp_path_factory.mktemp("whole")
    (place / "vit").mkdir()
    write_encoder(trained("test_vit"), place / "vit", "model.safetensors", {})
    kept = ["run.keep=best"]
    api.finetune(place / "vit", "fractal:40", out=str(place / "ft"), size=32, settings=kept, **TINY)
    return place


@pytest.fixture
def finetuned(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """It, and nothing is changed in it."""
    before = listing(whole / "ft")
    monkeypatch.chdir(tmp_path)
    yield whole / "ft"
    assert listing(whole / "ft") == before


def listing(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_probe(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = api.probe(
        finetuned, data="fractal:40", baselines=[str(finetuned / "last")], console=Console(), **QUICK
    )
    assert [row.name for row in found.rows] == [str(finetuned), str(finetuned / "last")]
    said = capsys.readouterr().err
    assert said.count("classifier of ") == 2
    assert "was not written" not in said


def test_embed_gives_what_timm_gives(finetuned: Path, tmp_path: Path) -> None:
    api.embed(finetuned, "fractal:4", tmp_path / "v.safetensors", precision="float32", **QUICK)
    images = [CenterCrop(32)(open_images(["fractal:4"]).read(index)) for index in range(4)]
    expected = by_timm(finetuned, torch.stack(images).float() / 255, num_classes=0)
    found = load_file(tmp_path / "v.safetensors")["vectors"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_visualize_draws_what_weights_show(finetuned: Path, tmp_path: Path) -> None:
    kinds = ["attention", "pca", "filters", "layers", "neighbours", "map"]
    made = api.visualize(finetuned, ["fractal:8"], kinds=kinds, count=2, size=64)
    assert [file.parent for file in made] == [Path("pictures-ft")] * 6
    for kind in ("recon", "curves", "robust"):
        with pytest.raises(UserError, match="needs a run of pretrain, and"):
            api.visualize(finetuned, kinds=[kind])


def test_fine_tuned_once_more(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = api.finetune(finetuned, "fractal:40", out="again", size=32, console=Console(), **TINY)
    assert not again.scratch
    said = capsys.readouterr().err
    assert "2 new, 0 not used; new: head.weight, head.bias" in said
    assert "report.html" not in said


def test_pretrained_from_and_not_resumed(finetuned: Path, tmp_path: Path) -> None:
    run = api.pretrain("fractal:8", init=str(finetuned), out="run", pictures=0, **TINY)
    assert load_encoder(run).size == 32
    with pytest.raises(UserError, match="is not a pre-training run") as caught:
        api.pretrain(resume=finetuned)
    assert f"sslkit finetune --resume {finetuned}" in caught.value.hint
