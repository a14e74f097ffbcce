"""From images to a run folder: what is chosen, what is written, what is skipped, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig, build_pretrain, flat
from sslkit.core.config.setting import AUTO
from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError
from sslkit.core.paths import next_folder
from sslkit.methods import card
from sslkit.models.weights import load_encoder
from sslkit.training.loop.intervals import interval
from sslkit.training.pretrain.auto import resolve
from sslkit.training.pretrain.config import pretrain_config
from sslkit.training.pretrain.pretrain import pretrain
from sslkit.training.run.folder import RunFolder, build_method, load_method, read_configuration

Tiny = Callable[..., PretrainConfig]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def same_weights(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(path / "encoder.safetensors") for path in (run, other))
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ------------------------------------------------------------------------------------------- run folder


def test_a_run_leaves_what_it_promises(tiny: Tiny, tmp_path: Path) -> None:
    run = pretrain(tiny("run", **{"run.pictures": 2}))
    assert {path.name for path in run.iterdir()} == {
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "log.txt",
        "encoder.safetensors",
        "config.json",
        "images.jsonl.gz",
        "checkpoints",
        "pictures",
    }
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["step"], facts["data"]["count"]) == ("completed", 12, 16)
    assert facts["data"]["native"] == 36
    assert {"started", "finished", "heartbeat", "versions", "command", "device"} <= set(facts)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000012"]
    pictures = sorted(path.name for path in (run / "pictures").iterdir())
    assert pictures == ["step-00000006.png", "step-00000012.png"]
    with Image.open(run / "pictures" / pictures[0]) as picture:
        assert picture.size == (4 * 32, 8 * 32)  # image, corrupted, prediction, composite × 8 images
        left = np.asarray(picture)[:32, :32]
    assert left.std() > 5


@pytest.mark.parametrize(("wanted", "made"), [(0, 0), (1, 1), (5, 5), (100, 12)])
def test_as_many_pictures_as_asked_for(tiny: Tiny, wanted: int, made: int) -> None:
    run = pretrain(tiny("run", **{"run.pictures": wanted}))
    assert len(list((run / "pictures").iterdir())) == made


def test_metrics_say_how_it_went(tiny: Tiny) -> None:
    lines = metrics(pretrain(tiny("run")))
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["epoch"] for line in lines] == [step / 4 for step in range(1, 13)]
    peak, start, end = (base * 4 / 512 for base in (0.05, 2.5e-7, 2.5e-6))
    for line in lines:
        t = max(0, line["step"] - 2)
        cosine = end + (peak - end) * (1 + math.cos(math.pi * t / 12)) / 2
        assert line["lr"] == pytest.approx(start + t * (peak - start) / 4 if t < 4 else cosine, rel=1e-5)
        assert 0 < line["loss"] < 10
        assert 0 <= line["wait"] <= 1
        assert 1 <= line["rank"] <= 4.001
        assert line["skipped"] == 0
    both = [line for line in lines if line["loss_low"] is not None and line["loss_high"] is not None]
    assert both
    for line in both:
        pair = sorted([line["loss_low"], line["loss_high"]])
        assert pair[0] <= line["loss"] <= pair[1]


def test_log_lines_mean_over_their_steps(tiny: Tiny) -> None:
    fine, coarse = metrics(pretrain(tiny("fine"))), metrics(pretrain(tiny("coarse", **{"run.log_every": 5})))
    assert [line["step"] for line in coarse] == [5, 10, 12]
    means = [
        np.mean([line["loss"] for line in fine[part]]) for part in (slice(5), slice(5, 10), slice(10, 12))
    ]
    assert [line["loss"] for line in coarse] == pytest.approx(means, rel=1e-4)


def test_its_own_configuration_repeats_a_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pretrain(tiny("first", **{"optim.lr": AUTO, "method.radius": AUTO, "run.log_every": AUTO}))
    monkeypatch.chdir(tmp_path)
    again = pretrain_config([], config=first / "config.toml")
    assert again.run.out == AUTO
    second = pretrain(again)
    assert second == Path("runs/mfm-test_vit-1")
    ours, theirs = (flat(read_configuration(run / "config.toml")) for run in (first, second))
    assert {key for key in ours if ours[key] != theirs[key]} == {"run.out"}
    assert AUTO not in ours.values()
    assert same_weights(first, second)


def test_the_seed_is_of_everything(tiny: Tiny) -> None:
    first, second = pretrain(tiny("first")), pretrain(tiny("second", **{"run.seed": 1}))
    assert not same_weights(first, second)


def test_an_encoder_is_what_was_trained(tiny: Tiny) -> None:
    run = pretrain(tiny("run"))
    encoder, method = load_encoder(run), load_method(run)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = method.encoder.eval().vector(images)
        torch.testing.assert_close(encoder.vector(images), ours, rtol=0, atol=0)
        plain = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
        mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close(plain((images - mean) / std), ours, rtol=0, atol=1e-5)


def test_text_goes_to_the_log_and_the_console_is_given_back(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    run = pretrain(tiny("run"), console)
    shown = capsys.readouterr().err
    assert (run / "log.txt").read_text() == shown
    assert "16 images" in shown
    assert "model.backbone = test_vit" in shown  # what was given is said as well
    assert console.log is None
    pretrain(tiny("quiet"))
    assert SILENT.log is None


def test_what_the_tool_chose_is_said_with_its_reason(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(tiny("run", **{"method.radius": AUTO, "optim.lr": AUTO}), Console())
    shown = capsys.readouterr().err
    assert "method.radius = 2.29  (16 bins at 224 px, scaled to 32 px)" in shown
    assert "optim.lr = " in shown


def test_of_the_rest_only_what_differs_from_the_defaults_is_listed(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(tiny("run", **{"optim.clip": 2.0, "optim.eps": 1e-8}), Console())
    (given,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  as given: ")]
    assert "optim.clip = 2.0" in given
    assert "run.seed" not in given
    assert "optim.eps" not in given  # the default, though given
    assert "sources" not in given


# ---------------------------------------------------------------------------------------------- choices


def resolved(device: torch.device = CPU, count: int = 1000, native: int = 300, **values: Any) -> Any:
    settings = [f"{key}={configuration.toml_value(value)}" for key, value in values.items()]
    return resolve(pretrain_config(["photos"], settings=settings), count, native, device)


def test_nothing_is_left_open_and_every_choice_has_a_reason() -> None:
    left_open = {key for key, value in flat(pretrain_config(["photos"])).items() if value == AUTO}
    ready = resolved()
    assert AUTO not in flat(ready.config).values()
    assert set(ready.reasons) == left_open
    untold = {"data.range", "data.nodata"}  # of images of more than 8 bits, and here are none
    assert all(reason for name, reason in ready.reasons.items() if name not in untold)


def test_what_was_given_stays() -> None:
    given = {
        "model.backbone": "resnet18",
        "data.size": 64,
        "schedule.epochs": 7,
        "run.batch_size": 10,
        "optim.lr": 0.5,
        "method.radius": 3.0,
        "method.low_share": 0.9,
        "data.workers": 0,
    }
    ready = resolved(**given)
    assert {key: flat(ready.config)[key] for key in given} == given
    assert not set(given) & set(ready.reasons)


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({}, "model.backbone", "vit_tiny_patch16_224"),
        ({}, "data.size", 96),
        ({"native": 40}, "data.size", 32),
        ({"native": 20}, "data.size", 32),
        ({"native": 70}, "data.size", 64),
        ({}, "model.patch_size", 0),
        ({"native": 32}, "model.patch_size", 4),
        ({"native": 64}, "model.patch_size", 8),
        ({"native": 32, "model.backbone": "resnet18"}, "model.patch_size", 0),
        ({}, "method.radius", 6.86),  # 16 · 96 / 224
        ({"native": 32}, "method.radius", 2.29),
        ({"native": 48, "data.size": 96}, "method.radius", 3.43),  # what the pixels hold, not the view
        ({}, "method.low_share", 0.5),
        ({"model.backbone": "resnet18"}, "method.low_share", 0.3),
        ({"model.backbone": "convnext_tiny"}, "method.low_share", 0.3),
        ({"model.backbone": "test_vit"}, "method.low_share", 0.5),
        ({"model.backbone": "deit_tiny_patch16_224"}, "method.low_share", 0.5),
        ({}, "run.batch_size", 64),
        ({"count": 10}, "run.batch_size", 10),
        ({"count": 10}, "schedule.epochs", 800),
        ({"count": 10_000_000}, "schedule.epochs", 5),
        ({"count": 3000}, "schedule.epochs", 100),
        ({"run.batch_size": 512, "count": 9000}, "optim.lr", 1.2e-3),
        ({"run.batch_size": 2048, "count": 9000}, "optim.lr", 3e-4),
    ],
)
def test_choices(values: dict[str, Any], key: str, expected: Any) -> None:
    assert flat(resolved(**values).config)[key] == expected


@pytest.mark.parametrize(("name", "decay"), [("adamw", 0.05), ("sgd", 1e-4), ("lars", 1e-4)])
def test_weight_decay_suits_the_optimizer_and_stays(name: str, decay: float) -> None:
    optim = resolved(**{"optim.name": name}).config.optim
    assert (optim.weight_decay, optim.weight_decay_end) == (decay, decay)
    assert resolved(**{"optim.weight_decay": 0.3}).config.optim.weight_decay_end == 0.3


def test_a_method_may_choose_shared_settings_for_a_backbone() -> None:
    def chosen(backbone: str) -> Any:
        values = {"model.backbone": backbone, "run.batch_size": 64}
        config = build_pretrain(
            "simclr", card("simclr").Config, {**card("simclr").facts["defaults"], **values}
        )
        return resolve(config, 1000, 300, CPU)

    cnn, vit = chosen("resnet18"), chosen("vit_tiny_patch16_224")
    assert (cnn.config.optim.name, cnn.config.optim.lr, cnn.config.optim.weight_decay) == ("sgd", 0.12, 1e-4)
    assert "LARS" in cnn.reasons["optim.lr"]
    assert (vit.config.optim.name, vit.config.optim.weight_decay) == ("adamw", 0.05)
    assert vit.config.optim.lr < 0.01


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="batch of 11 is larger than the data: 10 images"):
        resolved(count=10, **{"run.batch_size": 11})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", (30, "seconds")),
        ("10m", (600, "seconds")),
        ("1.5h", (5400, "seconds")),
        ("5e", (5, "epochs")),
        ("500", (500, "steps")),
    ],
)
def test_intervals(text: str, expected: tuple[float, str]) -> None:
    assert interval(text) == expected


@pytest.mark.parametrize("text", ["", "0m", "-5", "ten", "5 minutes", "5d", "nan"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(UserError, match="is not an interval"):
        interval(text)


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert next_folder(tmp_path, "a") == tmp_path / "a-1"
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-3").mkdir()
    assert next_folder(tmp_path, "a") == tmp_path / "a-2"


def test_saving_by_epoch_and_by_step(tiny: Tiny) -> None:
    for text, kept in (("1e", [8, 12]), ("5", [10, 12]), ("0.5e", [10, 12]), ("1h", [12])):
        run = pretrain(tiny(f"saved-{text}", **{"run.save_every": text}))
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names == [f"step-{step:08d}" for step in kept]


# --------------------------------------------------------------------------------------- other beginnings


def test_init_starts_from_other_weights(tiny: Tiny) -> None:
    first = pretrain(tiny("first"))
    still = {"model.init": str(first), "optim.lr": 1e-30, "schedule.min_lr": 0.0, "schedule.warmup_lr": 0.0}
    second = pretrain(tiny("second", **still))
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (first, second))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-9, msg=name)


def test_init_with_weights_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    first = pretrain(tiny("first"))
    other = {
        "model.init": str(first),
        "model.backbone": "test_resnet",
        "model.patch_size": 0,
        "data.size": 64,
    }
    with pytest.raises(UserError, match="lacks"):
        pretrain(tiny("second", **other))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_other_backbones_train(tiny: Tiny, backbone: str) -> None:
    changes = {"model.backbone": backbone, "model.patch_size": 0, "data.size": 64, "schedule.epochs": 1}
    run = pretrain(tiny("run", **changes, **{"run.pictures": 1, "run.precision": "bfloat16"}))
    assert load_encoder(run).name == backbone
    assert status(run) == "completed"


def test_micro_batches_train(tiny: Tiny) -> None:
    run = pretrain(tiny("run", **{"run.micro_batch": 2}))
    assert len(metrics(run)) == 12
    assert not same_weights(run, pretrain(tiny("whole")))  # MFM pools its loss over what it sees at once


# --------------------------------------------------------------------------------------- damaged images


def damage(photos: Path, count: int) -> list[str]:
    """The first files of the folder are no pictures any more."""
    files = sorted(photos.glob("*.png"))[:count]
    for file in files:
        file.write_bytes(b"no picture")
    return [str(file) for file in files]


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_counted_and_listed_once(
    tiny: Tiny, photos: Path, workers: int
) -> None:
    bad = damage(photos, 3)
    run = pretrain(tiny("run", **{"data.max_bad": 0.2, "data.workers": workers}))
    rows = [line.split("\t") for line in (run / "skipped.tsv").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == bad
    assert all(len(row) == 2 and row[1] for row in rows)
    assert metrics(run)[-1]["skipped"] == 3
    assert status(run) == "completed"


def test_one_unreadable_image_never_stops_a_run(tiny: Tiny, photos: Path) -> None:
    damage(photos, 1)
    assert status(pretrain(tiny("run", **{"data.max_bad": 0.01}))) == "completed"


def test_too_many_unreadable_images_stop_it_with_the_list(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    bad = damage(photos, 5)
    with pytest.raises(UserError, match="of 16 images can't be read, more than 1") as error:
        pretrain(tiny("run", **{"data.max_bad": 0.1}))
    assert error.value.code == 1
    assert str(tmp_path / "run/skipped.tsv") in error.value.hint
    listed = {line.split("\t")[0] for line in (tmp_path / "run/skipped.tsv").read_text().splitlines()}
    assert 2 <= len(listed) <= 5
    assert listed <= set(bad)
    assert status(tmp_path / "run") == "failed"


def test_nothing_but_damage_fails(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    for file in photos.rglob("*.png"):
        file.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    with pytest.raises(UserError):
        pretrain(tiny("run", **{"data.max_bad": 1.0}))


# ----------------------------------------------------------------------------------------------- faults


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite 3 times in a row") as error:
        pretrain(tiny("run", **{"optim.lr": 1e38, "optim.clip": 0.0, "run.save_every": "1"}))
    assert error.value.code == 1
    assert status(tmp_path / "run") == "failed"
    for line in metrics(tmp_path / "run"):
        assert line["loss"] is not None or line["nonfinite"]
    for file in (tmp_path / "run/checkpoints").glob("*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_an_existing_folder_is_never_touched(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="run exists"):
        pretrain(tiny("run"))
    assert list((tmp_path / "run").iterdir()) == []
    finished = pretrain(tiny("finished"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match="finished exists") as error:
        pretrain(tiny("finished"))
    assert f"--resume {finished}" in error.value.hint
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_place_that_can_t_be_written_is_told_before_any_work(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't create"):
        pretrain(tiny("run", **{"run.out": str(tmp_path / "file" / "run")}))


def test_a_method_is_loaded_from_what_was_saved(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        load_method(tmp_path)
    config = tiny("run")
    ready = dataclasses.replace(config)
    run = RunFolder.create(Path(ready.run.out))
    run.update(kind="pretrain", status="running", data={"count": 16, "native": 36, "fingerprint": ""})
    (run.path / "config.toml").write_text(configuration.dump(ready))
    with pytest.raises(UserError, match="has saved nothing yet"):
        load_method(run.path)


def test_weights_depend_on_the_seed_alone(tiny: Tiny) -> None:
    from sslkit.methods.base import Info

    config, info = tiny("run"), Info(16, 32, 36)
    torch.manual_seed(9)
    first = build_method(config, info).state_dict()
    torch.rand(5)
    for name, tensor in build_method(config, info).state_dict().items():
        assert torch.equal(tensor, first[name]), name
