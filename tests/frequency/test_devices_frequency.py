"""Frequency work on devices, under autocast and in compiled graphs, and what it refuses.

Meta tensors stand in for a device that is not here: they have shapes and no values, so whatever reads a value
on the device (a host sync) fails, and a dispatch mode sees each operation that such a device would be given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslkit.frequency import (
    apply_mask,
    corrupt,
    disc,
    gaussian,
    high_pass,
    low_pass,
    masked_spectral_loss,
    spectral_error,
    spectral_loss,
)
from sslkit.methods import load
from sslkit.methods.base import Batch, Clock, Info, Method
from sslkit.models.encoder import Encoder

KEEP = torch.tensor([True, False, True])


def images(size: int = 32, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- compiled ---------------------------------------------------------------------------------------------


def mfm() -> tuple[Method, Batch]:
    torch.manual_seed(0)
    encoder = Encoder("test_vit", 32, patch_size=8)
    method = load("mfm")
    settings: Any = method.Config(radius=4.0, low_share=0.5)
    return method(settings, encoder, Info(8, 32, 32)), {"index": torch.arange(3), "image": images()}


def loss_and_gradients(
    method: Callable[..., dict[str, Tensor]], module: Method, batch: Batch
) -> list[Tensor]:
    module.zero_grad()
    loss = method(batch, Clock(0, 4, 2))["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


# Dynamo traces through caches and says so; what is cached here does not change. In torch 2.6 it makes an
# object of a class of gradients.
def untold(test: Callable[..., None]) -> Callable[..., None]:
    for said in (
        "Dynamo detected a call to a `functools.lru_cache`:UserWarning",
        "<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{said}")(test)
    return test


@untold
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "method"])
def test_compiled_training_gives_the_eager_loss_and_gradients(whole: bool) -> None:
    """The encoder alone, with the spectral loss outside the graph, and the method, with the loss inside."""
    method, batch = mfm()
    expected = loss_and_gradients(method, method, batch)
    compiled: Any = method
    if whole:
        compiled = torch.compile(method, backend="aot_eager")
    else:
        method.encoder.model.compile(backend="aot_eager")
    got = loss_and_gradients(compiled, method, batch)
    assert len(got) == len(expected) > 10
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@untold
def test_the_loss_compiles_into_one_graph() -> None:
    """A small batch has no step that depends on its values: nothing breaks the graph."""
    whole = torch.compile(masked_spectral_loss, backend="aot_eager", fullgraph=True)
    prediction, target = images().requires_grad_(), images(seed=1)
    (got,) = torch.autograd.grad(whole(prediction, target, KEEP, 4.0), prediction)
    (expected,) = torch.autograd.grad(masked_spectral_loss(prediction, target, KEEP, 4.0), prediction)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-8)


# --- precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [32, 448])  # the second is cut by task, and its discs go through products
def test_dtypes_in_and_out_under_autocast(autocast: torch.dtype, dtype: torch.dtype, size: int) -> None:
    batch, target = images(size, dtype).requires_grad_(), images(size, torch.float32, seed=1)
    with torch.autocast("cpu", dtype=autocast):
        for result in (low_pass(batch, 4), high_pass(batch, 4), corrupt(batch, KEEP, 4)):
            assert result.dtype == dtype
        loss = masked_spectral_loss(batch, target, KEEP, 4)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (inside,) = torch.autograd.grad(loss, batch, retain_graph=True)  # also the gradient is exact
    (outside,) = torch.autograd.grad(loss, batch)
    assert inside.dtype == dtype
    assert torch.equal(inside, outside)


def test_a_target_of_higher_precision_keeps_it() -> None:
    target = images(dtype=torch.float64).requires_grad_()
    loss = masked_spectral_loss(images(seed=1).bfloat16(), target, KEEP, 4)
    assert loss.dtype == torch.float64
    (gradient,) = torch.autograd.grad(loss, target)
    exact = target.detach().clone().requires_grad_()
    full = masked_spectral_loss(images(seed=1).bfloat16().double(), exact, KEEP, 4)
    assert torch.allclose(gradient, torch.autograd.grad(full, exact)[0], rtol=1e-12, atol=0)


# --- cut by task ------------------------------------------------------------------------------------------


def radii() -> Tensor:
    return torch.tensor([2.0, 5.0, 9.0])


CUTOFFS: list[Callable[[int], Any]] = [
    lambda size: 5.0,
    lambda size: radii(),
    lambda size: gaussian(size, size, 5.0),
    lambda size: disc(size, size, radii()),
    lambda size: disc(size, size, radii())[:1],  # one mask for all, with the axes of a batch
]


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_cutting_by_task_does_not_show(monkeypatch: pytest.MonkeyPatch, cutoff: Callable[[int], Any]) -> None:
    """Bytes that make every part one image; the whole batch at once is what other devices do."""
    radius, target = cutoff(36), images(36, torch.float64, seed=1)
    results = []
    for whole in (2**40, 0):
        monkeypatch.setattr("sslkit.frequency.losses.WHOLE_BYTES", whole)
        monkeypatch.setattr("sslkit.frequency.losses.CHUNK_BYTES", 1)
        prediction = images(36, torch.float64).requires_grad_()
        total = spectral_error(prediction, target, KEEP, radius).total
        weighted = (total * torch.tensor([1.0, 2.0, 3.0])).sum()
        results.append((total, *torch.autograd.grad(weighted, prediction, retain_graph=True)))
        assert torch.equal(results[-1][1], torch.autograd.grad(weighted, prediction)[0])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


# --- devices ----------------------------------------------------------------------------------------------


def calls(device: str) -> dict[str, Callable[[], Tensor]]:
    """What a training step does, on `device`."""
    batch, keep = images().to(device), KEEP.to(device)
    leaf = batch.clone().requires_grad_()

    def gradient(cutoff: Any) -> Tensor:
        return torch.autograd.grad(masked_spectral_loss(leaf, batch, keep, cutoff, 1.0, "balanced"), leaf)[0]

    return {
        "low_pass": lambda: low_pass(batch, 4),
        "high_pass of bfloat16": lambda: high_pass(batch.bfloat16(), 4),
        "apply_mask": lambda: apply_mask(batch, gaussian(32, 32, 4)),
        "corrupt": lambda: corrupt(batch, keep, 4),
        "corrupt, radii": lambda: corrupt(batch, keep, radii().to(device)),
        "loss": lambda: gradient(4),
        "loss, radii": lambda: gradient(radii().to(device)),
        "loss of all frequencies": lambda: spectral_loss(leaf, batch, patches=2),
    }


class Refuse(TorchDispatchMode):
    """Operations on `device` raise NotImplementedError where `refused` says so."""

    def __init__(self, device: str, refused: Callable[[Any, list[Tensor]], bool]) -> None:
        super().__init__()
        self.device, self.refused = device, refused

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look_at(
            function, args
        )  # before it runs: torch 2.6 takes an FFT of a fake tensor on a real device
        result = function(*args, **(kwargs or {}))
        self.look_at(function, result)
        return result

    def look_at(self, function: Any, values: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        if any(leaf.device.type == self.device for leaf in tensors) and self.refused(function, tensors):
            raise NotImplementedError(f"{function} on {self.device}")


@pytest.mark.parametrize("name", calls("cpu"))
def test_nothing_is_read_from_a_device_and_no_float64_goes_there(name: str) -> None:
    def double(function: Any, tensors: list[Tensor]) -> bool:
        wide = (torch.float64, torch.complex128)
        return any(t.dtype in wide for t in tensors if t.device.type == "meta")

    expected = calls("cpu")[name]()
    call = calls("meta")[name]
    with Refuse("meta", double):
        got = call()
    assert (got.device.type, got.dtype, got.shape) == ("meta", expected.dtype, expected.shape)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Matrices and answers cached under a pretended device must not meet a real one."""

    def forget() -> None:
        for module in [m for name, m in sys.modules.items() if name.startswith("sslkit.frequency")]:
            for member in vars(module).values():
                if hasattr(member, "cache_clear") and not isinstance(member, ModuleType):
                    member.cache_clear()

    forget()
    yield
    forget()


def test_a_device_without_fourier_transform_hands_over_to_the_cpu_with_one_warning(forgetful: None) -> None:
    def fourier(function: Any, tensors: list[Tensor]) -> bool:
        return "_fft" in str(function)

    with FakeTensorMode(allow_non_fake_inputs=True), Refuse("cuda", fourier):
        try:
            torch.empty(2, 3, device="cuda")[:, None]
        except RuntimeError:
            pytest.skip(f"torch {torch.__version__} asks for a driver to index a fake tensor of a GPU")
        batch = torch.empty(2, 3, 32, 32, device="cuda")
        keep = torch.empty(2, dtype=torch.bool, device="cuda")
        with pytest.warns(UserWarning, match="cuda has no FFT: frequency work runs on the CPU") as record:
            results = [
                low_pass(batch.half(), 4),
                corrupt(batch, keep, 4),
                corrupt(batch, keep, torch.empty(2, device="cuda")),
                high_pass(batch, 15),
                spectral_error(batch, batch, keep, 4).total,
            ]
    assert len(record) == 1
    assert [(r.device.type, r.dtype) for r in results] == [("cuda", torch.float16)] + 4 * [
        ("cuda", torch.float32)
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares with a GPU, and none is here")
@pytest.mark.parametrize("name", calls("cpu"))
def test_a_gpu_gives_the_cpu_s_numbers(name: str) -> None:
    expected, got = calls("cpu")[name](), calls("cuda")[name]()
    assert got.dtype == expected.dtype
    assert (got.cpu().double() - expected.double()).abs().max() <= 1e-5 * expected.abs().max().double()


# --- refusals ---------------------------------------------------------------------------------------------

BATCH = images(8)
WRONG: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (TypeError, "images is torch.uint8, expected a floating", lambda: corrupt(BATCH.byte(), KEEP, 2)),
    (TypeError, "prediction is torch.uint8", lambda: masked_spectral_loss(BATCH.byte(), BATCH, KEEP, 2)),
    (TypeError, "target is torch.int64", lambda: spectral_loss(BATCH, BATCH.long())),
    (ValueError, r"\(3, 8, 8\), expected \[B, C, H, W\]", lambda: corrupt(BATCH[0], KEEP, 2)),
    (ValueError, r"\(3, 3, 0, 8\), expected \[B, C, H, W\]", lambda: low_pass(BATCH[:, :, :0], 2)),
    (TypeError, "keep_low is torch.int64, expected torch.bool", lambda: corrupt(BATCH, KEEP.long(), 2)),
    (TypeError, "keep_low is a bool, expected torch.bool, one per image", lambda: corrupt(BATCH, True, 2)),  # type: ignore[arg-type]
    (
        TypeError,
        "keep_low is a list, expected torch.bool",
        lambda: masked_spectral_loss(BATCH, BATCH, [True], 2),
    ),  # type: ignore[arg-type]
    (TypeError, "images is a list, expected a float", lambda: low_pass([[1.0]], 2)),  # type: ignore[arg-type]
    (ValueError, "radius is 0, expected > 0", lambda: corrupt(BATCH, KEEP, 0)),
    (ValueError, "radius is -1.5, expected > 0", lambda: masked_spectral_loss(BATCH, BATCH, KEEP, -1.5)),
    (ValueError, "radius is nan, expected > 0", lambda: corrupt(BATCH, KEEP, math.nan)),
    (TypeError, "radius is '16', expected a number", lambda: corrupt(BATCH, KEEP, "16")),  # type: ignore[arg-type]
    (TypeError, "radius is None, expected a number", lambda: corrupt(BATCH, KEEP, None)),  # type: ignore[arg-type]
    (ValueError, r"\(9, 5\), expected \[..., 8, 5\]", lambda: apply_mask(BATCH, torch.ones(9, 5))),
    (
        ValueError,
        r"\(2, 1\), expected \[3, 1\]",
        lambda: masked_spectral_loss(BATCH, BATCH, KEEP, torch.ones(2)),
    ),
    (ValueError, "patches is 3, expected a divisor of 8", lambda: spectral_loss(BATCH, BATCH, patches=3)),
    (ValueError, "gamma is nan, expected > 0", lambda: spectral_loss(BATCH, BATCH, gamma=math.nan)),
]


@pytest.mark.parametrize(("kind", "message", "call"), WRONG)
def test_errors_name_the_value_and_what_was_expected(
    kind: type[Exception], message: str, call: Callable[[], object]
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_an_endless_radius_keeps_everything() -> None:
    assert torch.allclose(low_pass(BATCH, math.inf), BATCH, atol=1e-6)
    assert masked_spectral_loss(BATCH, BATCH + 1, ~KEEP, math.inf).isfinite()
