"""What official codes and papers do, re-spelled, against what sslkit does: the rows of docs/fidelity.md."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from sslkit import pretrain
from sslkit.core.config import build as configuration
from sslkit.core.config.build import flat
from sslkit.core.config.sections import Optim, Schedule
from sslkit.core.errors import UserError
from sslkit.finetuning.classifier import build_model, optimisation
from sslkit.finetuning.config import finetune_config
from sslkit.methods import default_configuration, load, names
from sslkit.methods.base import Clock, Info, Method
from sslkit.models.encoder import Encoder
from sslkit.training.loop.optim import (
    CosineSchedule,
    build_optimizer,
    layer_scales,
    optimizer_and_schedule,
    parameter_groups,
    pretraining,
)
from sslkit.training.pretrain.config import pretrain_config

SMALL = {
    "mfm": {},
    "mae": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
    "simmim": {},
    "simclr": {},
    "moco": {"queue": 8},
    "byol": {"hidden": 16, "projection": 8},
    "dino": {"outputs": 16, "hidden": 16, "bottleneck": 8, "local_crops": 0},
}
"""Settings that make a method small."""


def made(name: str, backbone: str, size: int, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    encoder = Encoder(backbone, size)
    info = Info(count=16, size=size, native=size, backbone=backbone)
    kind = load(name)
    auto = kind.resolve(kind.Config(**SMALL[name]), encoder.family, info)
    chosen = {key: value for key, (value, _) in auto.items() if "." not in key}
    return kind(kind.Config(**{**chosen, **SMALL[name]}), encoder, info).train()


def batch(size: int, count: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    views = {view: torch.rand(count, 3, size, size, generator=draw) for view in ("image", "first", "second")}
    return {**views, "index": torch.arange(count)}


# --------------------------------------------------------------------------------- stochastic depth, dropout

DRAWING = [  # of each kind of timm's families whose entry drops something while it trains, the smallest
    ("focalnet_tiny_srf", 64),
    ("nextvit_small", 64),
    ("swinv2_cr_tiny_ns_224", 64),
    ("ghostnet_050", 64),  # a function, by the model's drop_rate
    ("legacy_seresnet18", 64),
    ("rexnet_100", 64),
    ("vit_relpos_small_patch16_224", 224),
]


@pytest.mark.parametrize(("backbone", "size"), DRAWING)
def test_no_backbone_draws_anything_in_training(backbone: str, size: int) -> None:
    """As the official codes pre-train (MFM, SimMIM: drop path 0), and as keyed draws need it."""
    encoder, images = Encoder(backbone, size).train(), torch.rand(2, 3, size, size)
    vectors = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            vectors.append(encoder.vector(images))
    assert torch.equal(*vectors)


SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("name", "backbone"),
    [(name, SWIN) for name in ("mfm", "simmim", "dino")]
    + [(name, "legacy_seresnet18") for name in ("simclr", "moco", "byol", "dino")]
    + [(name, "test_vit") for name in names()],
)
def test_two_torch_seeds_give_one_loss(name: str, backbone: str) -> None:
    """Teachers and targets stand in training mode too."""
    method, losses = made(name, backbone, 64), []
    state = {key: value.clone() for key, value in method.state_dict().items()}
    for seed in (0, 1):
        method.load_state_dict(state)
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append(method(batch(64), Clock(3, 10, 5))["loss"].item())
    assert losses[0] == losses[1]


def rates(model: nn.Module) -> list[float]:
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


def test_fine_tuning_obeys_a_drop_path_of_zero() -> None:
    encoder = Encoder(SWIN, 64)
    still, _, _ = build_model(encoder, 3, 64, scratch=True, drop_path=0.0)
    moved, _, _ = build_model(encoder, 3, 64, scratch=True, drop_path=0.3)
    assert rates(still)
    assert not any(rates(still))
    assert max(rates(moved)) == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------------- schedules


def official_mae(step: int, steps: int, warmup: int, peak: float, low: float) -> float:
    """lr_sched.adjust_learning_rate, with the epoch as a fraction: per iteration, before the update."""
    if step < warmup:
        return peak * step / warmup
    share = (step - warmup) / (steps - warmup)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * share))


def official_byol(step: int, steps: int, warmup: int, peak: float) -> float:
    """schedules.learning_schedule, and SimCLR's WarmUpAndCosineDecay: tf's cosine_decay after the warm-up."""
    decay = 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / (steps - warmup)))
    return step / warmup * peak if step < warmup else peak * decay


def official_dino(step: int, steps: int, warmup: int, peak: float, low: float) -> float:
    """utils.cosine_scheduler: numpy's linspace holds its end, so it divides by warmup - 1."""
    rise = [peak * number / (warmup - 1) for number in range(warmup)]
    length = steps - warmup
    fall = [low + 0.5 * (peak - low) * (1 + math.cos(math.pi * number / length)) for number in range(length)]
    return (rise + fall)[step]


def ours(
    name: str, epochs: int, warmup: int, low: float, peak: float = 1.0, per_epoch: int = 20
) -> list[float]:
    """The rate of every update with a method's own defaults."""
    schedule = replace(default_configuration(name).schedule, epochs=epochs, warmup_epochs=warmup, min_lr=low)
    optim, clock = Optim(name="sgd", lr=peak, weight_decay=0.0), Clock(0, epochs * per_epoch, per_epoch)
    groups: list[dict[str, object]] = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0}]
    optimizer, course = optimizer_and_schedule(
        groups, replace(optim, weight_decay_end=0.0), schedule, 512, clock
    )
    found = []
    for step in range(clock.steps):
        course.apply(step)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def test_mae_s_rates_are_the_official_ones() -> None:
    expected = [official_mae(step, 600, 40, 1.0, 1e-3) for step in range(600)]
    assert ours("mae", 30, 2, 1e-3) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_simclr_s_and_byol_s_rates_are_the_official_ones(name: str) -> None:
    expected = [official_byol(step, 600, 40, 1.0) for step in range(600)]
    assert ours(name, 30, 2, 0.0) == pytest.approx(expected, abs=1e-12)


def test_dino_s_rates_are_the_official_ones_but_for_the_end_of_a_linspace() -> None:
    expected = [official_dino(step, 600, 40, 1.0, 1e-3) for step in range(600)]
    found = ours("dino", 30, 2, 1e-3)
    assert found[40:] == pytest.approx(expected[40:], abs=1e-12)
    assert found[:40] == pytest.approx(expected[:40], abs=1 / 40 + 1e-9)  # one part of the warm-up at most


def test_moco_s_rate_without_a_warm_up_begins_as_the_official_one() -> None:
    """adjust_learning_rate: lr · 0.5 · (1 + cos(π epoch / epochs)), which stands still within an epoch."""
    found = ours("moco", 30, 0, 0.0)
    expected = [0.5 * (1 + math.cos(math.pi * (step // 20) / 30)) for step in range(600)]
    assert found[::20] == pytest.approx(expected[::20], abs=1e-12)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1.6 / 30


@pytest.mark.parametrize("name", ["mfm", "simmim"])
def test_mfm_s_and_simmim_s_cosine_counts_from_step_0_a_step_late(name: str) -> None:
    found = ours(name, 30, 2, 1e-3)
    fall = [1e-3 + 0.5 * (1 - 1e-3) * (1 + math.cos(math.pi * step / 600)) for step in range(600)]
    assert found[41:] == pytest.approx(fall[40:-1], abs=1e-12)
    assert found[0] == found[1]


def test_a_schedule_that_is_planned_anew_keeps_its_form() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = CosineSchedule(optimizer, 600, 40, 0.0, 0.0, after_warmup=True)
    schedule.plan(300, 20)
    schedule.apply(160)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(official_mae(160, 300, 20, 1.0, 0.0))


def test_a_config_of_an_earlier_version_means_what_it_meant(tmp_path: Any) -> None:
    """A run's own file has every setting that its version knew; one written by hand has few."""
    by_hand = "[method]\nname = 'moco'\n[schedule]\nmin_lr = 0.0\n"
    (tmp_path / "hand.toml").write_text(by_hand)
    whole = by_hand + "[run]\nout = 'runs/old'\nlog_every = 5\n[optim]\neps = 1e-8\n"
    (tmp_path / "run.toml").write_text(whole)
    hand, run = (pretrain_config(["x"], config=str(tmp_path / file)) for file in ("hand.toml", "run.toml"))
    assert (hand.schedule.cosine_after_warmup, hand.optim.decay_norms) == (True, True)
    assert (run.schedule.cosine_after_warmup, run.optim.decay_norms) == (False, False)
    assert (Schedule().cosine_after_warmup, Optim().decay_norms) == (False, False)  # what --resume takes


# ---------------------------------------------------------------------------- weight decay and first weights


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_moco_decays_all_parameters(backbone: str) -> None:
    """main_moco.py gives the optimizer model.parameters(), v3's too; a ViT's positions are ours to spare."""
    method = made("moco", backbone, 64)
    config = default_configuration("moco")
    config = replace(config, optim=replace(config.optim, name="sgd", lr=0.03, weight_decay=1e-4))
    config = replace(config, schedule=replace(config.schedule, warmup_epochs=0))
    config = replace(
        config, run=replace(config.run, batch_size=4), optim=replace(config.optim, weight_decay_end=1e-4)
    )
    optimizer, _ = pretraining(method, config, Clock(0, 10, 5))
    given = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: given[id(p)] for name, p in method.named_parameters() if p.requires_grad}
    spared = {name for name in found if name.endswith(("pos_embed", "cls_token"))}
    assert {found[name] for name in spared} <= {0.0}
    assert {decay for name, decay in found.items() if name not in spared} == {1e-4}
    assert any(name.endswith("bias") for name in found)


@pytest.mark.parametrize("name", ["simclr", "byol", "mfm", "dino"])
def test_the_others_decay_matrices_only(name: str) -> None:
    assert default_configuration(name).optim.decay_norms is False


@pytest.mark.parametrize(
    ("name", "first"), [("moco", 1.0), ("dino", 1.0), ("simclr", 0.0), ("byol", 0.0), ("mfm", 0.0)]
)
@pytest.mark.parametrize(("backbone", "last"), [("resnet18", "bn2"), ("test_resnet", "bn3")])
def test_the_last_norm_of_a_block_begins_as_in_the_official_network(
    name: str, first: float, backbone: str, last: str
) -> None:
    """torchvision's ResNet as it is in MoCo and DINO; 0 in SimCLR and BYOL; MFM's is timm's."""
    method = made(name, backbone, 64)
    gammas = [
        parameter
        for module in (method, *(getattr(method, part, nn.Module()) for part in ("key_encoder", "student")))
        for key, parameter in module.named_parameters()
        if "layer" in key and key.endswith(f"{last}.weight")
    ]
    assert gammas
    assert all(bool((gamma == first).all()) for gamma in gammas)


def test_dino_s_class_token_begins_as_the_official_one() -> None:
    token = made("dino", "vit_tiny_patch16_224", 64).encoder.model.cls_token
    assert token.std().item() == pytest.approx(0.02, rel=0.15)  # of 192 numbers


# --------------------------------------------------------------------------------------------------- recipes


def test_simclr_s_recipe_is_version_1_s() -> None:
    assert configuration.read("simclr-resnet50")["optim.weight_decay"] == 1e-6


@pytest.mark.parametrize("recipe", ["simclr-resnet50", "byol-resnet50", "dino-resnet50"])
def test_recipes_share_batch_norm_where_the_authors_did(recipe: str) -> None:
    assert pretrain_config(["x"], config=recipe).model.sync_norm
    assert not pretrain_config(["x"], config="moco-resnet50").model.sync_norm  # there it is shuffled


@pytest.mark.parametrize(
    "file", sorted(configuration.RECIPES.glob("*.toml")), ids=lambda file: str(file.stem)
)
def test_a_recipe_has_its_paper_s_form_of_the_schedule(file: Any) -> None:
    built = pretrain_config(["x"], config=file.stem)
    assert built.schedule.cosine_after_warmup == (built.method_name not in ("mfm", "simmim"))
    assert built.optim.decay_norms == (built.method_name == "moco")


def official_layer(name: str, depth: int) -> int:
    """MAE's lr_decay.get_layer_id_for_vit."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


MAE = {
    "mae-vit-b16": (5e-4, 0.65, 0.1, 100),
    "mae-vit-l16": (1e-3, 0.75, 0.2, 50),
    "mae-vit-h14": (1e-3, 0.75, 0.3, 50),
}


@pytest.mark.parametrize("recipe", MAE)
def test_mae_s_fine_tuning_is_the_official_one(recipe: str) -> None:
    """FINETUNE.md's commands and main_finetune.py's defaults."""
    blr, decay, drop_path, epochs = MAE[recipe]
    built = finetune_config("RUN", "imagenet", config=recipe)
    assert (built.optim.lr, built.optim.layer_decay, built.model.drop_path) == (blr, decay, drop_path)
    assert (built.schedule.epochs, built.schedule.warmup_epochs, built.run.batch_size) == (epochs, 5, 1024)
    assert built.schedule.min_lr * built.run.batch_size / built.optim.reference_batch == 1e-6
    augment = {key: value for key, value in flat(built).items() if key.startswith("augment.")}
    assert augment == {
        "augment.crop_scale": (0.08, 1.0),
        "augment.flip": 0.5,
        "augment.rand_augment": "rand-m9-mstd0.5-inc1",
        "augment.erasing": 0.25,
        "augment.mixup": 0.8,
        "augment.cutmix": 1.0,
        "augment.mix_probability": 1.0,
        "augment.smoothing": 0.1,
    }
    assert (built.optim.weight_decay, built.optim.betas, built.optim.clip) == (0.05, (0.9, 0.999), 0.0)
    header = (configuration.FINETUNING_RECIPES / f"{recipe}.toml").read_text().split("[data]")[0]
    assert f"sslkit finetune RUN imagenet -c {recipe}\n" in header


def test_mae_s_fine_tuning_has_the_official_rate_in_every_layer_and_step() -> None:
    """Each group's whole rate is scaled by its layer, the minimum too; and the head begins at 2e-5."""
    encoder = Encoder("vit_tiny_patch16_224", 64)
    model, _, _ = build_model(encoder, 1000, 64, scratch=False, drop_path=0.1)
    head = model.get_parameter("head.weight")
    assert head.std().item() == pytest.approx(2e-5, rel=0.05)
    built = finetune_config("RUN", "imagenet", config="mae-vit-b16", settings=["optim.weight_decay_end=0.05"])
    clock = Clock(0, 500, 5)
    optimizer, schedule = optimisation(model, built, clock)
    layers = {id(p): official_layer(name, 12) for name, p in model.named_parameters()}
    for step in (0, 1, 24, 25, 26, 300, 499):
        schedule.apply(step)
        rate = official_mae(step, 500, 25, 5e-4 * 1024 / 256, 1e-6)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert group["lr"] == pytest.approx(rate * 0.65 ** (13 - layers[id(parameter)]), rel=1e-9)


def test_a_recipe_of_pre_training_is_told_from_one_of_fine_tuning() -> None:
    with pytest.raises(UserError) as error:
        finetune_config("RUN", "x", config="mfm-vit-b16")
    assert error.value.message == "mfm-vit-b16 is a recipe of pretrain"
    assert "mae-vit-b16, mae-vit-h14, mae-vit-l16" in error.value.hint


def test_fine_tuning_is_mfm_s_by_default() -> None:
    schedule = finetune_config("RUN", "x").schedule
    assert (schedule.cosine_after_warmup, schedule.min_lr_by_layer) == (False, False)


# ------------------------------------------------------------- what differs, and is said in docs/fidelity.md


def test_a_swin_s_layers_are_timm_s_but_for_eleven_tensors() -> None:
    """Their get_swin_layer: merging belongs to the stage before it, the last norm to the head."""
    model = timm.create_model(SWIN, img_size=64, num_classes=5)
    before = [0, 2, 4, 10]

    def official(name: str) -> int:
        stage = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+))?", name)
        if stage is None:
            return 0 if name.startswith("patch_embed") else 13
        return before[int(stage[1])] + (int(stage[2]) + 1 if stage[2] else 0)

    scales = layer_scales(model, 0.8)
    other = {name for name, scale in scales.items() if abs(scale - 0.8 ** (13 - official(name))) > 1e-9}
    assert len(scales) == 173
    assert len(other) == 11
    assert all(".downsample." in name or name.startswith("norm.") for name in other)


def test_simmim_s_mask_token_has_no_weight_decay() -> None:
    method = made("simmim", "test_vit", 64)
    groups = parameter_groups(method, 0.05, method.overrides)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert decays[id(method.mask_token)] == 0.0


def test_dino_s_small_crops_have_antialiased_positions() -> None:
    """The official interpolate_pos_encoding keeps more of what is finer than the smaller grid."""
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", 224)
    position = encoder.model.pos_embed.detach()
    grid = position[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    plain = F.interpolate(grid, scale_factor=6.1 / 14, mode="bicubic").flatten(2).transpose(1, 2)
    timm_s = resample_abs_pos_embed(position, [6, 6], [14, 14], num_prefix_tokens=1)[:, 1:]
    assert timm_s.std() < 0.7 * plain.std()


@pytest.mark.parametrize("change", [1.0, 0.8])
def test_lars_is_the_official_one_at_a_constant_rate(change: float) -> None:
    """lars_optimizer.py has the rate inside the momentum: v = m v + rate · trust · g, w = w - v."""
    torch.manual_seed(0)
    weight, gradients = nn.Parameter(torch.randn(4, 3)), torch.randn(12, 4, 3)
    official, velocity = weight.detach().clone(), torch.zeros(4, 3)
    groups: list[dict[str, object]] = [{"params": [weight], "weight_decay": 1e-12}]
    optimizer = build_optimizer(groups, Optim(name="lars", lr=1.0, weight_decay=1e-12), 1.0)
    for step, gradient in enumerate(gradients):
        rate = change**step
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + rate * 0.001 * official.norm() / gradient.norm() * gradient
        official = official - velocity
    apart = float((weight.detach() - official).norm() / official.norm())
    assert apart < 1e-6 if change == 1.0 else apart > 1e-4


def test_shared_batch_norm_is_torch_s_in_one_process(tmp_path: Any) -> None:
    made_runs = [
        pretrain(
            "fractal:8",
            method="simclr",
            backbone="test_resnet",
            size=64,
            epochs=1,
            batch_size=4,
            pictures=0,
            out=tmp_path / str(shared),
            settings=[f"model.sync_norm={str(shared).lower()}", "data.workers=0", "run.device='cpu'"],
        )
        for shared in (True, False)
    ]
    first, second = (load_file(Path(run) / "encoder.safetensors") for run in made_runs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
