"""DINO against its card's numbers, the official computation written as loops, and what must not matter."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import unfreshened
from PIL import Image
from torch import Tensor, nn

from sslkit.core.config.sections import Optim
from sslkit.core.errors import UserError
from sslkit.data.images.picture import Picture
from sslkit.data.sources.image_set import open_images
from sslkit.methods.base import Clock, Info
from sslkit.methods.self_distillation.dino import DINO
from sslkit.models.encoder import Encoder
from sslkit.models.heads import Prototypes
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, build_optimizer, parameter_groups

CLOCK = Clock(step=20, steps=100, steps_per_epoch=10)  # epoch 2
SMALL = {"outputs": 64, "hidden": 32, "bottleneck": 16}


def make(backbone: str = "test_vit", size: int = 32, patch: int | None = 8, **knobs: Any) -> DINO:
    torch.manual_seed(0)
    encoder, info = Encoder(backbone, size, patch_size=patch), Info(count=16, size=size, native=size)
    given = {**SMALL, **knobs}
    auto = DINO.resolve(DINO.Config(**given), encoder.family, info)
    chosen = {key: value for key, (value, _) in auto.items() if "." not in key}
    return DINO(DINO.Config(**{**chosen, **given}), encoder, info)


def worn(method: DINO) -> DINO:
    """Student and teacher random and different, and a centre that is not zero."""
    with torch.no_grad():
        method.centre.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return unfreshened(method)


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch_for(method: DINO, count: int = 4) -> dict[str, Tensor]:
    crops = {
        name: random(count, 3, *2 * [crop.size], seed=number)
        for number, (name, crop) in enumerate(method.views.crops.items())
    }
    return {**crops, "index": torch.arange(count)}


def photographed(method: DINO, batch: dict[str, Tensor]) -> list[Tensor]:
    return [
        colours(batch[name], batch["index"], CLOCK.seed, CLOCK.epoch, f"dino.{name}")
        for name, colours in method.views.photometry.items()
    ]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.named_parameters() if not torch.equal(tensor, before[name])}


def run(method: DINO, clock: Clock, batch: dict[str, Tensor], micro_batch: int = 0) -> None:
    """All steps of `clock` in the real engine, by AdamW with weight decay."""
    groups = parameter_groups(method, 0.04, method.overrides)
    optimizer = build_optimizer(groups, Optim(name="adamw", weight_decay=0.04), lr=1e-3)
    schedule = CosineSchedule(optimizer, 1000, warmup=0, warmup_lr=0.0, min_lr=0.0)
    batches = [batch] * (clock.steps - clock.step)
    device = torch.device("cpu")
    list(train(method, batches, optimizer, schedule, clock.rest(), device=device, clip=3.0, clip_by="tensor",
               micro_batch=micro_batch))  # fmt: skip


# ------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(("outputs", "expected"), [(4096, 8.317766), (65536, 11.090355)])
def test_answers_that_say_nothing_cost_log_k(outputs: int, expected: float) -> None:
    method = make(outputs=outputs)
    with torch.no_grad():
        for head in (method.student_head, method.teacher_head):
            head.direction.zero_()
    out = method(batch_for(method, 2), CLOCK)
    assert out["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert out["teacher_entropy"].item() == pytest.approx(expected, abs=1e-5)
    assert out["chance"].item() == pytest.approx(1, abs=1e-6)
    assert out["kl"].item() == pytest.approx(0, abs=1e-5)


def official_head(head: Prototypes, vectors: Tensor) -> Tensor:
    """The head with torch's own weight normalisation."""
    last = nn.Linear(head.direction.shape[1], len(head.direction), bias=False)
    last = nn.utils.parametrizations.weight_norm(last)
    first, _, second, _, third = head.mlp
    middle = F.gelu(second(F.gelu(first(vectors))))
    parts = {"parametrizations.weight.original0": head.length}
    parts["parametrizations.weight.original1"] = head.direction
    return torch.func.functional_call(last, parts, (F.normalize(third(middle), dim=1),))


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_forward_is_the_official_formula(norm_last_layer: bool) -> None:
    method = worn(make(norm_last_layer=norm_last_layer))
    batch = batch_for(method)
    crops = photographed(method, batch)
    assert [crop.shape[-1] for crop in crops] == [32, 32] + 8 * [16]
    student = [official_head(method.student_head, method.student.vector(crop)) for crop in crops]
    with torch.no_grad():
        vectors = [method.encoder.vector(crop) for crop in crops[:2]]
        teacher = [official_head(method.teacher_head, vector) for vector in vectors]
    sharp = [((answer - method.centre) / 0.04).softmax(1) for answer in teacher]
    pairs = [
        -(sharp[q] * (student[v] / 0.1).log_softmax(1)).sum(1).mean()
        for q in range(2)
        for v in range(10)
        if v != q
    ]
    loss = torch.stack(pairs).mean()
    entropy = torch.stack([-(p * p.clamp_min(1e-30).log()).sum(1).mean() for p in sharp]).mean()
    out = method(method.coloured(batch, CLOCK), CLOCK)
    assert out["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert out["teacher_entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)
    assert out["kl"].item() == pytest.approx(loss.item() - entropy.item(), rel=1e-4)
    assert out["chance"].item() == pytest.approx(loss.item() / math.log(64), rel=1e-5)
    torch.testing.assert_close(out["embedding"], torch.cat(vectors))
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(loss, list(trained.values()))
    found = torch.autograd.grad(out["loss"], list(trained.values()))
    for name, one, other in zip(trained, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


def test_the_teacher_sees_large_crops_only() -> None:
    method = worn(make())
    batch = batch_for(method)
    other = {name: 1 - crop if name.startswith("local") else crop for name, crop in batch.items()}
    first, second = method(batch, CLOCK), method(other, CLOCK)
    assert torch.equal(first["embedding"], second["embedding"])
    assert torch.equal(first["teacher_entropy"], second["teacher_entropy"])
    assert first["loss"] != second["loss"]


def test_softmaxes_are_float32_under_autocast() -> None:
    method = worn(make())
    batch = batch_for(method)
    with torch.autocast("cpu", torch.bfloat16):
        out = method(batch, CLOCK)
        logits = method.student_head(out["embedding"])
    assert out["loss"].dtype == logits.dtype == method.answered.dtype == torch.float32
    assert logits.unique().numel() > 0.9 * logits.numel()  # bfloat16 would leave a few hundred values


# --------------------------------------------------------------------------------- centre, temperature


def answer_mean(method: DINO, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        crops = torch.cat(photographed(method, batch)[:2])
        return method.teacher_head(method.encoder.vector(crops)).mean(0, keepdim=True)


def test_the_centre_follows_the_mean_answer() -> None:
    method = make(momentum=1.0)
    batch = batch_for(method)
    mean = answer_mean(method, batch)
    for share in (0.1, 0.19):
        method(method.coloured(batch, CLOCK), CLOCK)
        method.after_step(CLOCK)
        assert method.centre.shape == (1, 64)
        torch.testing.assert_close(method.centre, share * mean, rtol=1e-5, atol=1e-7)


def test_the_centre_moves_after_the_loss_and_once_in_a_step_of_many_parts() -> None:
    whole, parts = worn(make(momentum=1.0)), worn(make(momentum=1.0))
    batch = batch_for(whole)
    clock = Clock(step=20, steps=21, steps_per_epoch=10)
    run(whole, clock, batch)
    run(parts, clock, batch, micro_batch=1)
    torch.testing.assert_close(parts.centre, whole.centre, rtol=1e-5, atol=1e-7)
    for (name, one), other in zip(parts.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-4, msg=name)


def test_the_teacher_s_temperature_warms_up_by_epoch() -> None:
    method = make(teacher_temperature=0.07, warmup_teacher_epochs=30)
    expected = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(20, 0.07)])
    assert [method.temperature(epoch) for epoch in range(50)] == pytest.approx(expected)
    assert [make().temperature(epoch) for epoch in (0, 1, 99)] == [0.04] * 3
    assert make(teacher_temperature=0.07, warmup_teacher_epochs=1).temperature(0) == 0.04


def test_a_colder_teacher_is_surer() -> None:
    batch = batch_for(make())
    knobs = {"teacher_temperature": 0.07, "warmup_teacher_epochs": 5}
    method = worn(make(**knobs))
    entropy = [
        method(batch, Clock(step, 100, steps_per_epoch=10))["teacher_entropy"].item() for step in (0, 40)
    ]
    assert entropy[0] < entropy[1]


# ------------------------------------------------------------------------------------- head, optimizer


def test_only_the_student_s_rows_may_have_lengths() -> None:
    assert not worn(make()).student_head.length.requires_grad
    free = make(norm_last_layer=False)
    assert free.student_head.length.requires_grad
    assert not free.teacher_head.length.requires_grad


def test_the_head_is_the_official_one() -> None:
    """Three layers to 256, then K rows: widths and initialisation."""
    with torch.device("meta"):
        official = make("vit_small_patch16_224", 224, None, outputs=65536, hidden=2048, bottleneck=256)
    layers = 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256
    count = sum(p.numel() for p in official.student_head.parameters() if p.requires_grad)
    assert count == layers + 65536 * 256
    head = make(hidden=256, bottleneck=64, outputs=256).student_head
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    assert 0.95 / 8 < head.direction.abs().max() <= 1 / 8  # torch's Linear: uniform within 1/√64


def test_the_last_layer_rests_in_the_first_epoch() -> None:
    method = make(norm_last_layer=False)
    batch, before = batch_for(method), weights(method.student_head)
    run(method, Clock(step=0, steps=3, steps_per_epoch=3), batch)
    assert changed(before, method.student_head) == set(before) - {"direction", "length"}
    run(method, Clock(step=3, steps=4, steps_per_epoch=3), batch)
    assert changed(before, method.student_head) == set(before)
    assert method.student_head.direction.grad is None


def test_weight_decay_rises_for_matrices_only() -> None:
    method = make(norm_last_layer=False)
    names = {id(p): name for name, p in method.named_parameters()}
    groups = parameter_groups(method, 0.04, method.overrides)
    optimizer = build_optimizer(groups, Optim(name="adamw", weight_decay=0.04), lr=1e-3)
    schedule = CosineSchedule(optimizer, 100, 0, 0.0, 0.0, weight_decay_end=0.4)
    decayed, plain = sorted(optimizer.param_groups, key=lambda group: -group["weight_decay"])
    for step, expected in ((0, 0.04), (50, 0.22), (100, 0.4)):
        schedule.apply(step)
        assert decayed["weight_decay"] == pytest.approx(expected)
        assert plain["weight_decay"] == 0
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert all(name.startswith("student") for name in trained)
    assert {names[id(p)] for p in plain["params"]} == {
        name for name in trained if name.endswith(".bias") or "norm" in name
    }
    kept = {names[id(p)] for p in decayed["params"]}
    assert {"student.model.pos_embed", "student.model.cls_token", "student_head.direction"} <= kept


# ---------------------------------------------------------------------------------------------- teacher


def test_the_teacher_is_exported_and_follows_the_student() -> None:
    method = worn(make(momentum=0.9))
    teacher = {"encoder": method.student, "teacher_head": method.student_head}
    before = {name: weights(getattr(method, name)) for name in teacher}
    clock = Clock(step=25, steps=100, steps_per_epoch=10)
    own = 1 - 0.1 * (1 + math.cos(math.pi / 4)) / 2  # the schedule at a quarter
    method.after_step(clock)
    for name, student in teacher.items():
        for key, tensor in student.named_parameters():
            expected = own * before[name][key] + (1 - own) * tensor
            torch.testing.assert_close(getattr(method, name).get_parameter(key), expected)
            assert not getattr(method, name).get_parameter(key).requires_grad


def test_a_momentum_of_one_keeps_the_teacher() -> None:
    method = worn(make(momentum=1.0))
    before = {name: weights(getattr(method, name)) for name in ("encoder", "teacher_head", "student")}
    run(method, Clock(step=20, steps=22, steps_per_epoch=10), batch_for(method))
    assert not changed(before["encoder"], method.encoder)
    assert not changed(before["teacher_head"], method.teacher_head)
    assert changed(before["student"], method.student) == set(before["student"])


def test_student_and_teacher_start_alike_and_from_given_weights() -> None:
    method = make()
    for own, other in ((method.student, method.encoder), (method.student_head, method.teacher_head)):
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    with torch.no_grad():  # what --init does, after the method is built
        for parameter in method.encoder.parameters():
            parameter.add_(1)
        method.encoder.mean.add_(0.1)
    method.prepare(open_images(["fractal:4"]))
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(tensor, method.student.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in method.student.parameters())


def test_the_teacher_s_batch_norm_has_statistics_of_its_own() -> None:
    method = make("test_resnet", 64, None, local_crops=4, local_size=64)
    batch = batch_for(method)
    method(batch, CLOCK)
    own = copy.deepcopy(dict(method.encoder.named_buffers()))
    counts = [int(tensor) for name, tensor in own.items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {1}
    student = dict(method.student.named_buffers())
    assert {int(student[n]) for n in student if n.endswith("num_batches_tracked")} == {2}  # large, then small
    method.after_step(CLOCK)
    for name, tensor in method.encoder.named_buffers():
        assert torch.equal(tensor, own[name]), name


# ------------------------------------------------------------------------------------- crops, settings


def test_crops_are_large_and_small() -> None:
    method = make(local_crops=3)
    views = method.transform()(Picture(Image.new("RGB", (40, 36))), np.random.default_rng(0))
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    large, small = (3, 32, 32), (3, 16, 16)
    assert shapes == {"first": large, "second": large, "local1": small, "local2": small, "local3": small}
    none = make(local_crops=0)
    views = none.transform()(Picture(Image.new("RGB", (40, 36))), np.random.default_rng(0))
    assert list(views) == ["first", "second"]
    assert torch.isfinite(none(batch_for(none), CLOCK)["loss"])


def test_crop_areas_are_those_that_are_set() -> None:
    """On an image whose values are its columns, the range of a crop tells its width."""
    columns = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (240, 240, 3))
    transform = make(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4)).transform()
    random_generator = np.random.default_rng(0)
    spans: dict[str, list[int]] = {"first": [], "second": [], "local1": [], "local8": []}
    for _ in range(200):
        views = transform(Picture(Image.fromarray(columns)), random_generator)
        for name, found in spans.items():
            found.append(int(views[name].max()) - int(views[name].min()))
    # Widths are 240 √(area · ratio) with ratios of 3/4 … 4/3, less what interpolation takes at the rims.
    for name in ("first", "second"):
        assert min(spans[name]) > 240 * math.sqrt(0.4 * 0.75) - 12
        assert max(spans[name]) > 220
    for name in ("local1", "local8"):
        assert min(spans[name]) < 60
        assert max(spans[name]) < 240 * math.sqrt(0.4 / 0.75)


def test_colours_change_as_in_the_paper() -> None:
    method = make("vit_tiny_patch16_224", 224, None)
    views = method.views.photometry
    assert [views[name].blur for name in ("first", "second", "local1", "local8")] == [1.0, 0.1, 0.5, 0.5]
    assert [views[name].solarize for name in ("first", "second", "local1")] == [0.0, 0.2, 0.0]
    for photometry in views.values():
        jitter = (photometry.brightness, photometry.contrast, photometry.saturation, photometry.hue)
        assert (*jitter, photometry.jitter, photometry.grayscale) == (0.4, 0.4, 0.2, 0.1, 0.8, 0.2)
        assert photometry.blur_sigma == (0.1, 2.0)


@pytest.mark.parametrize(
    ("family", "size", "crops", "side"),
    [
        ("vit", 224, 8, 96),
        ("vit", 96, 8, 48),
        ("vit", 64, 8, 32),
        ("vit", 32, 8, 16),
        ("cnn", 224, 8, 96),
        ("cnn", 96, 8, 64),
        ("cnn", 64, 0, 32),
        ("cnn", 32, 0, 32),
        ("swin", 224, 0, 96),
    ],
)
def test_crops_suit_size_and_backbone(family: str, size: int, crops: int, side: int) -> None:
    found = DINO.resolve(DINO.Config(), family, Info(1000, size, size))
    assert (found["local_crops"][0], found["local_size"][0]) == (crops, side)
    assert found["global_scale"][0] == ((0.4, 1.0) if family == "vit" else (0.14, 1.0))
    assert found["local_scale"][0] == ((0.05, 0.14) if family == "cnn" else (0.05, 0.4))
    assert found["blur"][0] == ((0.0, 0.0, 0.0) if size <= 64 else (1.0, 0.1, 0.5))
    none = DINO.resolve(DINO.Config(local_crops=0), family, Info(1000, size, size))
    assert none["global_scale"][0] == (0.14, 1.0)


def test_the_optimizer_is_the_paper_s() -> None:
    keys = ("optim.name", "optim.lr", "optim.weight_decay", "optim.weight_decay_end", "outputs")
    for family, count, expected in (
        ("vit", 1_281_167, ["adamw", 5e-4, 0.04, 0.4, 65536]),
        ("cnn", 1_281_167, ["sgd", 0.03, 1e-4, 1e-4, 65536]),
        ("vit", 50_000, ["adamw", 5e-4, 0.04, 0.4, 4096]),
    ):
        found = DINO.resolve(DINO.Config(), family, Info(count, 224, 400))
        assert [found[key][0] for key in keys] == expected
        assert all(reason for _, reason in found.values())


def test_local_crops_hold_whole_patches() -> None:
    method = make(size=36, patch=6)
    assert (method.config.local_size, method.local_size) == (16, 18)
    assert torch.isfinite(method(batch_for(method), CLOCK)["loss"])


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"local_size": 8}, "local_size: 8 is not in 16 … 32 for test_vit"),
        ({"local_size": 64}, "local_size: 64 is not in 16 … 32 for test_vit"),
    ],
)
def test_crops_that_can_t_be_are_refused(knobs: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        make(**knobs)


def test_a_backbone_of_one_size_goes_without_local_crops() -> None:
    name = "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        assert make(name, 224, None).config.local_crops == 0
        with pytest.raises(UserError, match="takes images of one size") as error:
            make(name, 224, None, local_crops=8)
    assert error.value.hint is not None
    assert "local_crops=0" in error.value.hint


def test_panels_show_each_kind_of_crop_s_colours() -> None:
    method = make().eval()
    pictures = random(3, 3, 32, 32)
    panels = method.panels({"image": pictures, "index": torch.arange(3)})
    assert list(panels) == ["image", "first", "second", "local"]
    assert torch.equal(panels["image"], pictures)
    assert all(not torch.equal(panels[name], pictures) for name in ("first", "second", "local"))
    assert list(make(local_crops=0).panels({"image": pictures, "index": torch.arange(3)}))[1:] == [
        "first",
        "second",
    ]
