"""Fine-tuning: official counts and schedule, strict loading, keyed augmentation, a folder for timm."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.augmentations.crops import CenterCrop
from sslkit.core import rng
from sslkit.core.config import build as configuration
from sslkit.core.errors import UserError
from sslkit.data.images.picture import Picture
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.metrics.scores import calibration_error, confusion, f1, scores
from sslkit.finetuning.augmentation import Mixing, TrainingView, seeded
from sslkit.finetuning.auto import Facts, resolve
from sslkit.finetuning.classifier import HEAD_SCALE, build_model, finetune_groups, optimisation
from sslkit.finetuning.config import Augment, FinetuneConfig, finetune_config
from sslkit.finetuning.finetune import finetune
from sslkit.methods.base import Clock
from sslkit.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from sslkit.models.weights import write_encoder

QUICK: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 0}
VIEW = Augment(
    crop_scale=(0.35, 1.0),
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.5,
    mixup=0.8,
    cutmix=1.0,
    mix_probability=1.0,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise: horizontal and vertical stripes."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    stripes = np.where(np.arange(36) // 6 % 2, 200, 40)[:, None, None]
    for name, pattern in (("rows", stripes), ("columns", stripes.transpose(1, 0, 2))):
        (folder / name).mkdir()
        for number in range(40):
            picture = (pattern + noise.integers(-40, 40, (36, 36, 3))).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(7)
    write_encoder(Encoder("vit_tiny_patch16_224", 32), folder, "model.safetensors", {})
    return folder


# ------------------------------------------------------------------------------- the official numbers


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit_base_patch16_224", 86_567_656), ("vit_small_patch16_224", 22_046_056 + 12 * 384)],
)
def test_parameter_counts(name: str, count: int) -> None:
    """The official models, and timm's k biases where the official ViT has none."""
    with torch.device("meta"):
        model, _, _ = build_model(Encoder(name, 224), 1000, 224, scratch=True)
    assert sum(p.numel() for p in model.parameters()) == count


def test_layer_scales_and_learning_rates() -> None:
    """Official: ViT-B, 100 epochs of 625 steps at batch 2048, layer decay 0.8."""
    encoder = Encoder("vit_tiny_patch16_224", 32)
    model, _, _ = build_model(encoder, 10, 32, scratch=True)
    settings = ["optim.lr=2e-3", "optim.layer_decay=0.8", "schedule.warmup_epochs=5", "run.batch_size=2048"]
    config, _ = resolve(finetune_config("a", "b", None, settings), Facts(1_281_167, "vit", 224, False))
    optimizer, schedule = optimisation(model, config, Clock(0, 62_500, 625))
    rate_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    layers = ["pos_embed", *(f"blocks.{i}.mlp.fc1.weight" for i in range(12)), "head.weight"]

    def rates(update: int) -> list[float]:
        schedule.apply(update)
        return [rate_of[id(named[name])]["lr"] for name in layers]

    expected = [
        0.054976, 0.068719, 0.085899, 0.107374, 0.134218, 0.167772, 0.209715,
        0.262144, 0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0,
    ]  # fmt: skip
    scales = [rate_of[id(named[name])]["initial_lr"] / 8e-3 for name in layers]
    assert scales == pytest.approx(expected, abs=1e-6)
    assert rates(3125)[-1] == pytest.approx(7.99744e-3, rel=1e-6)  # update k uses lr(k - 1)
    assert rates(3126)[-1] == pytest.approx(7.95076e-3, rel=1e-6)
    assert rates(3126)[0] == pytest.approx(4.371034e-4, rel=1e-5)
    assert rates(31_251)[-1] == pytest.approx(4.0005e-3, rel=1e-6)
    assert rates(0) == pytest.approx([1e-6] * 14)


def test_norm_and_head_belong_to_the_last_layer_and_vectors_do_not_decay() -> None:
    model, _, _ = build_model(Encoder("vit_tiny_patch16_224", 32), 10, 32, scratch=True)
    group_of = {id(p): group for group in finetune_groups(model, 0.05, 0.8) for p in group["params"]}  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        plain = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert group["weight_decay"] == (0.0 if plain else 0.05), name
        if name.startswith(("fc_norm", "head")):
            assert group["lr_scale"] == 1.0


def test_a_cnn_has_one_learning_rate() -> None:
    model, _, _ = build_model(Encoder("resnet10t", 32), 3, 32, scratch=True)
    assert {group.get("lr_scale", 1.0) for group in finetune_groups(model, 0.02, 1.0)} == {1.0}


# ----------------------------------------------------------------------------------------- loading


def test_everything_but_the_final_norm_is_taken_over() -> None:
    encoder = Encoder("vit_tiny_patch16_224", 32)
    nn.init.constant_(encoder.model.norm.weight, 3.0)
    model, found, new = build_model(encoder, 5, 32, scratch=False, drop_path=0.1)
    own, theirs = model.state_dict(), encoder.model.state_dict()
    shared = [name for name in own if not name.startswith(("fc_norm.", "head."))]
    assert all(torch.equal(own[name], theirs[name]) for name in shared)
    assert found.taken == len(shared) == len(theirs) - 2
    assert new == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    assert torch.equal(own["fc_norm.weight"], torch.ones(192))
    assert 0 < own["head.weight"].abs().max() < 0.02 * 6 * HEAD_SCALE
    assert not own["head.bias"].any()


def test_missing_and_unknown_tensors_are_errors() -> None:
    encoder = Encoder("resnet10t", 32)
    del encoder.model.layer1[0].conv1
    with pytest.raises(UserError, match=r"1 weights missing, 0 unknown: layer1\.0\.conv1\.weight"):
        build_model(encoder, 5, 32, scratch=False)
    encoder = Encoder("resnet10t", 32)
    encoder.model.stray = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="0 weights missing, 1 unknown: stray"):
        build_model(encoder, 5, 32, scratch=False)


def test_another_size_resamples_the_position_embedding() -> None:
    encoder = Encoder("vit_tiny_patch16_224", 32).eval()
    model, _, _ = build_model(encoder, 5, 48, scratch=False)
    tensors = model.state_dict()
    assert tensors["pos_embed"].shape == (1, 1 + 9, 192)
    # A bilinear-like resampling keeps the class token as it is, and the corners near the old corners.
    assert torch.equal(tensors["pos_embed"][:, 0], encoder.model.pos_embed[:, 0])
    images = torch.rand(2, 3, 48, 48)
    tokens = model.eval().forward_features(encoder.normalize(images))  # type: ignore[operator]
    own = encoder.model.norm(tokens[:, 1:]).mean(dim=1)
    assert torch.allclose(own, encoder.vector(images), atol=1e-5)


def test_a_vit_from_scratch_has_timms_own_weights() -> None:
    """Those of `timm.create_model` with the same seed, the head included."""
    model, found, _ = build_model(Encoder("vit_tiny_patch16_224", 32), 5, 32, scratch=True, seed=3)
    torch.manual_seed(3)
    plain = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=5,
        img_size=32,
        global_pool="avg",
        fc_norm=True,
        dynamic_img_size=True,
    ).state_dict()
    assert found.taken == 0
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------ augmentation


def test_global_generators_are_put_back() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    with seeded(rng.generator(0, 0, 0)):
        first = random.random(), np.random.rand(), float(torch.rand(1))
    with seeded(rng.generator(0, 0, 0)):
        assert first == (random.random(), np.random.rand(), float(torch.rand(1)))
    with seeded(rng.generator(0, 1, 0)):
        assert first != (random.random(), np.random.rand(), float(torch.rand(1)))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_views_depend_on_the_image_and_not_on_the_workers(photos: Path) -> None:
    train, _ = open_labelled(str(photos))

    def batches(workers: int) -> list[Tensor]:
        loader = pretraining_loader(
            train,
            TrainingView(32, VIEW),
            batch_size=8,
            seed=1,
            start_step=0,
            steps=3,
            steps_per_epoch=2,
            workers=workers,
        )
        return [batch["image"] for batch in loader]

    alone, together = batches(0), batches(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert alone[0].shape == (8, 3, 32, 32)


def test_a_view_without_augmentation_is_the_image_in_unit_range() -> None:
    plain = replace(VIEW, crop_scale=(1.0, 1.0), rand_augment="", erasing=0.0, flip=0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    view = TrainingView(32, plain)(Picture(Image.fromarray(pixels)), rng.generator(0, 0, 0))["image"]
    # The crop has a random aspect ratio, so only a square one of the whole area is the image itself.
    assert view.min() > -1e-6
    assert view.max() < 1 + 1e-6
    assert view.mean() == pytest.approx(pixels.mean() / 255, abs=0.03)


def test_mixing_is_keyed_by_the_step_and_keeps_the_mass_of_targets() -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    mixing = Mixing(VIEW, 3)
    one, targets = mixing(images.clone(), labels, seed=0, step=5)
    again, same = mixing(images.clone(), labels, seed=0, step=5)
    assert torch.equal(one, again)
    assert torch.equal(targets, same)
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))
    others = [mixing(images.clone(), labels, seed=0, step=step)[0] for step in range(6, 10)]
    assert not any(torch.equal(one, other) for other in others)


def test_without_mixing_targets_are_smoothed_as_torch_does() -> None:
    off = Mixing(replace(VIEW, mixup=0.0, cutmix=0.0, smoothing=0.2), 4)
    images, labels, logits = torch.rand(3, 3, 8, 8), torch.tensor([0, 3, 1]), torch.randn(3, 4)
    kept, targets = off(images, labels, seed=0, step=0)
    assert kept is images
    loss = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels, label_smoothing=0.2).item())


def test_odd_batches_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="even"):
        Mixing(VIEW, 3)(torch.rand(3, 3, 8, 8), torch.arange(3), 0, 0)


# -------------------------------------------------------------------------------------- the recipe


def test_later_layers_win(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "[optim]\nlr = 1e-3\neps = 1e-7\n[schedule]\nepochs = 3\n[run]\nout = 'old'\n"
    )
    config = finetune_config(
        "run", "data", str(tmp_path / "c.toml"), ["optim.lr=2e-3"], {"epochs": 9, "lr": None}
    )
    assert (config.optim.lr, config.optim.eps, config.schedule.epochs) == (2e-3, 1e-7, 9)
    assert (config.model.source, config.data.source, config.run.out) == ("run", "data", "old")


def test_a_resolved_configuration_survives_the_file() -> None:
    config, _ = resolve(finetune_config("run", "data"), Facts(3000, "vit", 96, False))
    values = configuration.loads(configuration.dump(config))
    again = {
        item: configuration.build(type(getattr(config, item)), item, values)
        for item in ("data", "model", "optim", "schedule", "augment", "run")
    }
    assert FinetuneConfig(**again) == config


def test_large_data_gets_the_papers_recipe() -> None:
    config, _ = resolve(finetune_config("run", "data"), Facts(1_281_167, "vit", 224, False))
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (100, 5)
    assert config.optim.betas == (0.9, 0.999)
    assert (config.optim.weight_decay, config.optim.layer_decay, config.model.drop_path) == (0.05, 0.8, 0.1)
    assert config.augment == Augment((0.08, 1.0), 0.5, "rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0, 1.0, 0.1)


def test_random_weights_get_the_same_budget_and_no_layer_decay() -> None:
    pretrained, _ = resolve(finetune_config("run", "data"), Facts(3000, "vit", 96, False))
    scratch, reasons = resolve(finetune_config("run", "data"), Facts(3000, "vit", 96, True))
    assert pretrained.optim.layer_decay == 0.8
    assert scratch.optim.layer_decay == 1.0
    assert "optim.layer_decay" in reasons
    assert replace(scratch, optim=replace(scratch.optim, layer_decay=0.8)) == pretrained


def test_nothing_stays_auto_and_each_choice_has_its_reason() -> None:
    untold = {"data.range", "data.nodata"}  # of images of more than 8 bits, and here are none
    for family in ("vit", "cnn", "swin"):
        for count in (20, 1000, 50_000, 2_000_000):
            config, reasons = resolve(finetune_config("run", "data"), Facts(count, family, 96, False))
            left = {key for key, value in configuration.flat(config).items() if value == "auto"}
            assert left == {"run.out", "run.device", "run.precision", "robustness.attacks"}
            assert all(reason for name, reason in reasons.items() if name not in untold)
            assert config.run.batch_size <= count


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (["optim.lrr=1"], {}, "unknown setting 'optim.lrr'"),
        (["augment.mixup=-1"], {}, "augment.mixup: -1.* is not >= 0"),
        ([], {"epoch": 3}, "finetune has no setting 'epoch'"),
        ([], {"batch_size": 500}, "batch of 500 is larger than the data: 64"),
        ([], {"batch_size": 15}, "even"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    photos: Path, tmp_path: Path, settings: list[str], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        finetune("random/resnet10t", str(photos), settings=settings, out=tmp_path / "run", size=32, **flags)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ from end to end


@pytest.mark.parametrize(("source", "epochs"), [("random/resnet10t", 4), ("exported", 8)])
def test_it_learns_and_timm_opens_the_folder(
    photos: Path, exported: Path, tmp_path: Path, source: str, epochs: int
) -> None:
    out = tmp_path / "run"
    source = str(exported) if source == "exported" else source
    settings = ["augment.rand_augment=''", "augment.flip=0"]
    result = finetune(
        source, str(photos), out=out, size=32, epochs=epochs, batch_size=16, settings=settings, **QUICK
    )
    assert result.folder == out
    assert result.top1 >= 90
    assert result.counts == {
        "train": 64,
        "held_out": 0,
        "validation": 16,
        "classes": 2,
        "unreadable": 0,
    }
    assert json.loads((out / "classes.json").read_text()) == ["columns", "rows"]
    assert json.loads((out / "run.json").read_text())["status"] == "completed"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 * epochs
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "tensors loaded" in (out / "log.txt").read_text()
    same_as_timm(out, str(photos))


def same_as_timm(folder: Path, data: str) -> None:
    """predictions.csv is what plain timm gives for the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == ["columns", "rows"]
    _, validation = open_labelled(data)
    views = torch.stack([CenterCrop(32)(validation.read(i)) for i in range(len(validation))]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        confidence, predicted = model((views - mean) / std).softmax(dim=1).max(dim=1)
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(validation.paths)
    assert [row["predicted"] for row in rows] == [validation.classes[i] for i in predicted]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(confidence.tolist(), abs=2e-4)


def test_the_same_seed_gives_the_same_weights_and_its_configuration_repeats_it(
    photos: Path, tmp_path: Path
) -> None:
    source, data, first = "random/resnet10t", str(photos), tmp_path / "a"
    finetune(source, data, out=first, size=32, epochs=1, seed=3, **QUICK)
    finetune(source, data, out=tmp_path / "b", config=first / "config.toml")
    weights, again = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    with pytest.raises(UserError, match="exists"):
        finetune(source, data, out=first, size=32, epochs=1, **QUICK)


# -------------------------------------------------------------------------------------- the scores


def test_scores_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (200,), generator=generator)
    labels[labels == 4] = 3  # a class without images
    probabilities = (2 * torch.randn(200, 7, generator=generator)).softmax(dim=1)
    found = scores(probabilities, labels, tuple("abcdefg"))
    rows, truth = probabilities.tolist(), labels.tolist()
    predicted = [row.index(max(row)) for row in rows]
    hits = [a == b for a, b in zip(predicted, truth, strict=True)]
    assert found.top1 == pytest.approx(100 * sum(hits) / 200)
    best = [sorted(range(7), key=lambda c: -row[c])[:5] for row in rows]
    assert found.top5 == pytest.approx(100 * sum(t in b for t, b in zip(truth, best, strict=True)) / 200)
    assert found.macro_f1 == pytest.approx(100 * np.mean([slow_f1(predicted, truth, c) for c in set(truth)]))
    recalls = {
        c: sum(h for h, t in zip(hits, truth, strict=True) if t == c) / truth.count(c) for c in set(truth)
    }
    assert [name for name, _, _ in found.worst] == [
        "abcdefg"[c] for c in sorted(recalls, key=recalls.__getitem__)
    ]


def slow_f1(predicted: list[int], truth: list[int], label: int) -> float:
    pairs = list(zip(predicted, truth, strict=True))
    hits = sum(p == t == label for p, t in pairs)
    precision = hits / max(1, sum(p == label for p, _ in pairs))
    recall = hits / sum(t == label for _, t in pairs)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def test_the_calibration_error_of_a_case_by_hand() -> None:
    """Two bins in use: three images at 0.9 of which two are right, one at 0.5 that is wrong."""
    confidence, right = torch.tensor([0.9, 0.9, 0.9, 0.5]), torch.tensor([True, True, False, False])
    assert calibration_error(confidence, right) == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.5)


def test_the_calibration_error_has_fifteen_equal_bins() -> None:
    """Each bin alone, (low, high]: accuracy and confidence of all bins enter by their share of the images."""
    generator = np.random.default_rng(0)
    confidence = generator.random(500)
    right = (confidence * 15).astype(int) % 2 == 0  # neighbours err to different sides: none can be merged
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        total += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    found = calibration_error(torch.from_numpy(confidence), torch.from_numpy(right))
    assert found == pytest.approx(total)
    edge = torch.tensor([0.2, 0.25], dtype=torch.float64)  # 0.2 = 3/15 ends the third bin
    assert calibration_error(edge, torch.tensor([True, False])) == pytest.approx((0.8 + 0.25) / 2)


def test_the_confusion_matrix_has_a_row_for_every_truth() -> None:
    counts = confusion(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert f1(counts).tolist() == pytest.approx([2 / 3, 2 / 3, 0])


def test_five_classes_have_no_top5() -> None:
    assert scores(torch.eye(5), torch.arange(5), tuple("abcde")).top5 is None
