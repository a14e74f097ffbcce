"""MoCo against its papers: losses of known vectors, the official loop written out, the queue, the shuffle."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import two_views
from torch import Tensor, nn

from sslkit.core.distributed import collectives
from sslkit.core.rng import uniform
from sslkit.losses.contrastive import queue_logits
from sslkit.methods.base import Clock, Info
from sslkit.methods.contrastive.moco import MoCo
from sslkit.models.encoder import Encoder
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule

CLOCK = Clock(step=0, steps=100_000, steps_per_epoch=10)
UNCHANGED = {"jitter_share": 0.0, "grayscale": 0.0, "blur": 0.0}
"""Settings under which a view is the picture that the worker cut."""


def make(backbone: str = "test_vit", size: int = 32, **knobs: Any) -> Any:
    torch.manual_seed(0)
    encoder = Encoder(backbone, size, patch_size=8 if backbone == "test_vit" else None)
    config = MoCo.Config(**{"queue": 16, "blur": 0.5, "projection": 8, **knobs})
    return MoCo(config, encoder, Info(count=32, size=size, native=size))


# ------------------------------------------------------------------------------------------------- loss


# --------------------------------------------------------------------------------- the step as a whole


def official_losses(
    method: Any, batches: list[dict[str, Tensor]], rate: float, momentum: float
) -> list[float]:
    """The official loop, with its queue of columns and its momentum update before the keys."""
    query = nn.ModuleList([copy.deepcopy(method.encoder), copy.deepcopy(method.head)])
    key = copy.deepcopy(query).requires_grad_(False)
    columns, pointer, losses = method.queue.T.clone(), 0, []
    for batch in batches:
        q = F.normalize(query[1](query[0].vector(batch["first"])), dim=1)
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.copy_(slow * momentum + fast * (1 - momentum))
            k = F.normalize(key[1](key[0].vector(batch["second"])), dim=1)
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        logits = torch.cat([positive, torch.einsum("nc,ck->nk", q, columns.clone())], 1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        columns[:, pointer : pointer + len(k)] = k.T
        pointer = (pointer + len(k)) % columns.shape[1]
        query.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in query.parameters():
                weight -= rate * weight.grad
        losses.append(loss.item())
    return losses


def test_six_steps_are_the_official_ones() -> None:
    """Updating the key encoder after the step equals updating it before the next keys."""
    method = make(**UNCHANGED, momentum=0.9)
    batches = [two_views(4, seed=seed) for seed in range(6)]
    expected = official_losses(method, batches, rate=0.5, momentum=0.9)
    optimizer, losses = torch.optim.SGD(method.parameters(), lr=0.5), []
    for step, batch in enumerate(batches):
        loss = method(batch, CLOCK.at(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(CLOCK.at(step))
        losses.append(loss.item())
    assert losses == pytest.approx(expected, abs=2e-5)
    assert max(losses) - min(losses) > 0.1


def test_a_symmetric_step_is_the_mean_of_both_directions_over_one_queue() -> None:
    batch = two_views(4)
    swapped = {**batch, "first": batch["second"], "second": batch["first"]}
    one_way = [make(**UNCHANGED)(views, CLOCK)["loss"].item() for views in (batch, swapped)]
    method = make(**UNCHANGED, symmetric=True)
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(sum(one_way) / 2, rel=1e-5)
    torch.testing.assert_close(method.queue[:4], method.key(batch["second"]))
    torch.testing.assert_close(method.queue[4:8], method.key(batch["first"]))
    assert method.pointer.tolist() == [8]


def test_figures_say_where_training_stands() -> None:
    method = make(queue=64)
    figures = method(two_views(4), CLOCK)
    assert figures["chance"].item() == pytest.approx(figures["loss"].item() / math.log(65))
    assert figures["queue_age"] == 16
    assert figures["momentum"].item() == pytest.approx(0.999)
    assert not any(value.requires_grad for name, value in figures.items() if name != "loss")
    with torch.no_grad():
        for weight in [*method.head.parameters(), *method.key_head.parameters()]:
            weight.zero_()
        method.head[-1].bias.fill_(1), method.key_head[-1].bias.fill_(1)
        found = method(two_views(4), CLOCK)
        method.queue.copy_(F.normalize(torch.ones(64, 8), dim=1))
        collapsed = method(two_views(4), CLOCK)
    assert (found["accuracy"], found["accuracy_5"]) == (1, 1)
    assert (collapsed["accuracy"], collapsed["accuracy_5"]) == (0, 0)  # all equal: nothing is found
    assert collapsed["chance"].item() == pytest.approx(1)


def test_only_the_query_s_side_is_trained() -> None:
    method = make()
    method(two_views(4), CLOCK)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad != name.startswith("key_"), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not method.queue.requires_grad


# ------------------------------------------------------------------------------------------------ queue


def test_the_queue_is_a_ring() -> None:
    method, keys = make(queue=8, projection=2), torch.arange(24.0).view(12, 2)
    for step, expected in enumerate((3, 6, 1, 4)):
        method.enqueue_(keys[3 * step : 3 * step + 3])
        assert method.pointer.tolist() == [expected]
    assert torch.equal(method.queue, keys[[8, 9, 10, 11, 4, 5, 6, 7]])  # the last eight, in their places


def test_of_more_keys_than_the_queue_holds_the_last_stay() -> None:
    method, keys = make(queue=4, projection=2), torch.arange(22.0).view(11, 2)
    method.enqueue_(keys[:1])
    method.enqueue_(keys[1:])
    assert torch.equal(method.queue, keys[[8, 9, 10, 7]])
    assert method.pointer.tolist() == [3]


def test_a_fresh_queue_holds_random_directions() -> None:
    queue = make(queue=1024, projection=128).queue
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(1024))
    cosines = (queue @ queue.T)[~torch.eye(1024, dtype=torch.bool)]
    assert cosines.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert cosines.mean().abs() < 0.001


@pytest.mark.parametrize(
    ("count", "queue"), [(1_281_167, 65536), (50_000, 16384), (3068, 1024), (129, 64), (3, 1), (1, 1)]
)
def test_the_queue_is_at_most_half_of_the_images(count: int, queue: int) -> None:
    assert MoCo.resolve(MoCo.Config(), "vit", Info(count, 224, 224))["queue"][0] == queue


def test_a_saved_queue_goes_on_bit_by_bit() -> None:
    method, other = make(), make()
    method(two_views(5), CLOCK)
    other.queue.zero_()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.queue, method.queue)
    assert other.pointer.tolist() == [5]
    losses = [m(two_views(5, seed=2), CLOCK)["loss"] for m in (method, other)]
    assert torch.equal(*losses)
    assert torch.equal(other.queue, method.queue)


# ---------------------------------------------------------------------------------------- key encoder


def test_the_key_encoder_follows_slowly() -> None:
    method = make(momentum=0.9)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.fill_(float(parameter.requires_grad))
    for expected in (0.1, 0.19):
        method.after_step(CLOCK)
        for network in (method.key_encoder, method.key_head):
            for parameter in network.parameters():
                torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_given_weights_reach_the_key_encoder() -> None:
    method = make()
    with torch.no_grad():
        method.encoder.model.pos_embed.add_(1)
        method.encoder.mean.fill_(0.25)
    method.prepare(None)
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(method.key_encoder.state_dict()[name], tensor), name


def test_accumulated_steps_update_the_key_encoder_once() -> None:
    method = make(momentum=0.5)
    before = method.key_encoder.model.pos_embed.clone()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    clock = Clock(0, 1000, 1000)
    schedule = CosineSchedule(optimizer, 1000, warmup=0, warmup_lr=0.0, min_lr=0.0)
    steps = train(
        method, [two_views(8)], optimizer, schedule, clock.rest(), device=torch.device("cpu"), micro_batch=2
    )
    next(steps)
    torch.testing.assert_close(
        method.key_encoder.model.pos_embed, (before + method.encoder.model.pos_embed) / 2
    )
    assert method.pointer.tolist() == [8]


# -------------------------------------------------------------------------------------------- shuffle


def shuffle(count: int, clock: Clock, stream: str) -> Tensor:
    """A permutation int64 [count], another one in every step, the same in all processes."""
    return uniform(clock.seed, clock.step, torch.arange(count), stream).argsort(stable=True)


@pytest.mark.parametrize("world", [1, 4])
def test_shuffled_keys_come_back_in_order(world: int) -> None:
    images = torch.randn(16, 3)
    order = shuffle(16, CLOCK, "keys")
    keys = torch.cat([2 * images[own] for own in order.chunk(world)])
    assert torch.equal(keys[order.argsort()], 2 * images)
    assert order.tolist() != list(range(16))
    assert order.tolist() != shuffle(16, CLOCK.at(1), "keys").tolist()


def keys_of_a_process(rank: int, folder: str) -> None:
    """What one of two processes computes and holds after a step, written to folder/RANK."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    method, whole = make("test_resnet", 64, **UNCHANGED), two_views(8, 64)
    batch = {name: value.chunk(2)[rank] for name, value in whole.items()}
    figures = method(batch, CLOCK)
    found = {"queue": method.queue, "pointer": method.pointer, "loss": figures["loss"].detach()}
    torch.save(found, f"{folder}/{rank}")
    collectives.end_group()


@pytest.mark.slow
def test_two_processes_shuffle_what_batch_norm_sees(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(keys_of_a_process, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    method, batch = make("test_resnet", 64, **UNCHANGED), two_views(8, 64)
    order = shuffle(8, CLOCK, "moco.shuffle0")
    with torch.no_grad():
        shuffled = torch.cat([method.key(batch["second"][own]) for own in order.chunk(2)])[order.argsort()]
        unshuffled = torch.cat([method.key(part) for part in batch["second"].chunk(2)])
        assert (shuffled - unshuffled).abs().max() > 0.01
        for rank, own in enumerate(torch.arange(8).chunk(2)):
            torch.testing.assert_close(found[rank]["queue"][:8], shuffled)
            assert found[rank]["pointer"].tolist() == [8]
            query = method.head(method.encoder.vector(batch["first"][own]))
            logits = queue_logits(query, shuffled[own], method.queue, 0.2)
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64)).item()
            assert found[rank]["loss"].item() == pytest.approx(loss, rel=1e-5)


# ------------------------------------------------------------------------------------- choices, pictures


def test_version_one_has_a_linear_head() -> None:
    def shapes(head: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]

    width = make().encoder.width
    assert shapes(make(head="linear").head) == [(8, width)]
    assert shapes(make().head) == [(width, width), (8, width)]
    assert not any("Norm" in type(layer).__name__ for layer in make().head)


def test_a_cnn_gets_the_paper_s_sgd_and_a_vit_adamw() -> None:
    def chosen(family: str, size: int = 224) -> dict[str, Any]:
        found = MoCo.resolve(MoCo.Config(), family, Info(3068, size, size))
        return {name: value for name, (value, _) in found.items()}

    assert chosen("cnn") == {
        "queue": 1024, "blur": 0.5, "optim.name": "sgd", "optim.lr": 0.03, "optim.weight_decay": 1e-4,
    }  # fmt: skip
    assert chosen("vit") == {
        "queue": 1024, "blur": 0.5, "optim.name": "adamw", "optim.weight_decay": 0.1,
    }  # fmt: skip
    assert chosen("vit", 64)["blur"] == 0


def test_views_and_panels_are_different_pictures_of_one_image() -> None:
    method, images = make(), two_views(8)["first"]
    panels = method.panels({"image": images, "index": torch.arange(8)})
    assert list(panels) == ["image", "first", "second"]
    assert torch.equal(panels["image"], images)
    for one, other in (("first", "second"), ("image", "first"), ("image", "second")):
        assert (panels[one] - panels[other]).abs().mean() > 0.05
    assert all(0 <= panel.min() <= panel.max() <= 1 for panel in panels.values())
    crops = method.transform().views
    assert {name: (crop.size, crop.scale, crop.flip) for name, crop in crops.items()} == {
        "first": (32, (0.2, 1.0), 0.5),
        "second": (32, (0.2, 1.0), 0.5),
    }
