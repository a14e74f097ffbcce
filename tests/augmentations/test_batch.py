"""What holds for every augmentation of a batch; the cards of all that goes around a method."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from around import At, made
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sslkit.augmentations import batch, curricula
from sslkit.core.errors import UserError


def views(count: int, device: str = "cpu") -> dict[str, Tensor]:
    """Two large views, a small one and a thing that is no view."""
    random = torch.Generator().manual_seed(2)
    sides = {"first": 32, "second": 32, "local1": 16}
    noise = {name: torch.rand(count, 3, side, side, generator=random) for name, side in sides.items()}
    return {name: view.to(device) for name, view in noise.items()} | {
        "local1_box": torch.full((count, 5), 7.0, device=device)
    }


@pytest.mark.parametrize("name", batch.names())
def test_views_stay_in_range_and_nothing_is_changed_in_place(name: str) -> None:
    given = views(6)
    before = {key: value.clone() for key, value in given.items()}
    after = made(name)(given, torch.arange(6), At())
    assert {*given} <= {*after}
    for key, value in before.items():
        assert torch.equal(given[key], value)
        assert after[key].shape == value.shape
        assert after[key].dtype == torch.float32
    for key in ("first", "second", "local1"):
        assert after[key].isfinite().all()
        assert after[key].min() >= 0
        assert after[key].max() <= 1
    assert torch.equal(after["local1_box"], before["local1_box"])
    assert any(not torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", batch.names())
def test_draws_are_keyed(name: str) -> None:
    augment, given = made(name), views(6)

    def first(moment: At) -> Tensor:
        return augment(given, torch.arange(6) + 10, moment)["first"]

    assert torch.equal(first(At()), first(At()))
    assert not torch.equal(first(At()), first(At(step=4, epoch=2)))
    assert not torch.equal(first(At()), first(At(seed=6)))
    same = {**given, "second": given["first"]}
    once = augment(same, torch.arange(6), At())
    assert not torch.equal(once["first"], once["second"])  # by view


@pytest.mark.parametrize("name", ["fields", "maxtree"])
def test_what_happens_to_an_image_depends_on_no_other(name: str) -> None:
    augment, given, order = made(name), views(6), torch.tensor([4, 1, 5, 0, 3, 2])
    whole = augment(given, torch.arange(6), At())
    for indices in (order, order[:2]):
        part = augment({key: value[indices] for key, value in given.items()}, indices, At())
        assert all((part[key] - whole[key][indices]).abs().max() < 1e-6 for key in given)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", batch.names())
def test_batches_of_none_and_of_one(name: str, count: int) -> None:
    given = views(count)
    after = made(name)(given, torch.arange(count), At())
    assert all(after[key].shape == value.shape for key, value in given.items())
    if name in ("bss", "fourier", "mix"):  # nothing to mix it with
        assert all((after[key] - value).abs().sum() < 1e-3 for key, value in given.items())


@pytest.mark.parametrize("name", batch.names())
def test_sixteen_bits_change_nothing(name: str) -> None:
    augment, given = made(name), views(4)
    expected = augment(given, torch.arange(4), At())
    with torch.autocast("cpu", torch.bfloat16):
        ours = augment(given, torch.arange(4), At())
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


class NoCopies(TorchFunctionMode):
    """Refuses what copies numbers of Python to a device: the host would wait until it is done."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device.type == "meta":
            raise AssertionError(f"{func.__name__} copies {args} to the device")
        return result


@pytest.mark.parametrize("name", batch.names())
def test_the_device_is_never_asked(name: str) -> None:
    """A device without values: whatever asks for one fails."""
    given = {key: value for key, value in views(4, "meta").items() if "local1" in key}
    values = {"strength": 1.0} if name == "bss" else {"kind": "mixup"} if name == "mix" else {}
    for options in [{}, values] if values else [{}]:
        with NoCopies():
            after = made(name, **options)(given, torch.arange(4, device="meta"), At())
        assert all(after[key].shape == value.shape for key, value in given.items())


# --------------------------------------------------------------------------------------------- cards


@pytest.mark.parametrize(
    ("folder", "known"),
    [
        (batch, {"bss", "fields", "fourier", "maxtree", "mix"}),
        (curricula, {"efficienttrain", "efficienttrain_pp", "lowpass"}),
    ],
)
def test_a_card_says_what_the_file_says(folder: Any, known: set[str]) -> None:
    assert known <= set(folder.names())
    for name in folder.names():
        card, kind = folder.card(name), folder.load(name)
        assert card.summary == inspect.getdoc(kind)
        assert card.facts["link"].startswith("https://")
        assert 2016 < card.facts["year"] < 2030
        assert card.facts["paper"] in " ".join(sys.modules[kind.__module__].__doc__.split())
        assert card.facts.get("wants", {}) == getattr(kind, "wants", {})
        assert card.Config is not kind.Config
        for ours, real in zip(dataclasses.fields(card.Config), dataclasses.fields(kind.Config), strict=True):
            assert (ours.name, ours.default, ours.metadata) == (real.name, real.default, real.metadata)
            assert ours.metadata["help"]
    with pytest.raises(UserError, match="unknown"):
        folder.card("bsss")


def test_cards_need_no_torch() -> None:
    program = (
        "import sys\n"
        "from sslkit.augmentations import batch, curricula\n"
        "[folder.card(name) for folder in (batch, curricula) for name in folder.names()]\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
