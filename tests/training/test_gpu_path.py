"""No forward pass makes the host wait for a GPU: shown on fake CUDA tensors, without GPU and driver.

Meta tensors can't show this: to write a Python number into one element is a copy from the host on CUDA, and
no copy at all on meta. Fake tensors know their device. Backward passes are out, as autograd asks CUDA's
driver; tests/training/test_gpu_rehearsal.py has them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sslkit.augmentations.batch_crops import crop_resize_batch
from sslkit.methods import card, names
from sslkit.methods.base import Clock, Method
from sslkit.testing.contract import BACKBONES, Case
from sslkit.training.run.folder import build_method

pytestmark = pytest.mark.skipif(
    not hasattr(torch._C, "_ensureCUDADeviceGuardSet") and not torch.cuda.is_available(),
    reason="this torch asks CUDA's driver when a fake tensor is indexed; test_gpu_rehearsal.py needs none",
)

CUDA = torch.device("cuda", 0)
PAIRS = [(name, backbone) for name in names() for backbone in BACKBONES]
ACCEPTED = [pair for pair in PAIRS if BACKBONES[pair[1]] in card(pair[0]).facts["backbones"]]
MFM = [
    *({"mask": mask} for mask in ("square", "rhombus", "gaussian", "butterworth", "adaptive")),
    *({"mask": mask, "radius_range": (0.5, 1.5)} for mask in ("disc", "butterworth")),
    *({"corruption": corruption} for corruption in ("sr", "deblur", "denoise")),
    *({"clamp": clamp} for clamp in ("half", "none")),
    {"target": "all"},
    {"gamma": 2.0},
    {"reduction": "balanced"},
    {"reduction": "per_sample", "stratified": True},
    {"teacher_weight": 1.0},
]
COPIES = ("aten::copy_", "aten::_to_copy")


class NoWaits(TorchDispatchMode):
    """Refuses copies between devices for which the host would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        output = func(*args, **options)
        name = func._schema.name
        if name in COPIES:
            source, made = (args[1], args[0]) if name == "aten::copy_" else (args[0], output)
            waits = not (options.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
            if waits and source.device.type != made.device.type:
                raise AssertionError(f"{source.device.type} → {made.device.type}: the host waits")
        return output


def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def moved(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    copied = fake.from_tensor(tensor.detach())
    with fake:
        return copied.to(CUDA)


def on_cuda(
    method: nn.Module, batch: dict[str, Tensor], fake: FakeTensorMode
) -> tuple[Any, dict[str, Tensor]]:
    """Copies whose tensors are fake ones on a CUDA device; parameters that are shared stay shared."""
    memo: dict[int, Any] = {id(one): moved(one, fake) for one in method.buffers()}
    for one in method.parameters():
        memo[id(one)] = nn.Parameter(moved(one, fake), requires_grad=one.requires_grad)
    return copy.deepcopy(method, memo), {name: moved(value, fake) for name, value in batch.items()}


def clear_caches() -> None:
    """What sslkit keeps of tensors; fake ones must be made anew, and must not stay."""
    for module in [module for name, module in sys.modules.items() if name.startswith("sslkit.")]:
        for value in vars(module).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    # Both ask a real device what it can do.
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    clear_caches()
    yield FakeTensorMode()
    clear_caches()


def goes_forward(method: Method, batch: dict[str, Tensor], fake: FakeTensorMode) -> None:
    there, fakes = on_cuda(method, batch, fake)
    with torch.no_grad(), fake:
        there(fakes, Clock(3, 8, 4))  # fills the caches; here it may wait
        with NoWaits():
            there(fakes, Clock(4, 8, 4))


@pytest.mark.parametrize(("name", "backbone"), ACCEPTED)
def test_no_method_waits(name: str, backbone: str, gpu: FakeTensorMode) -> None:
    case = Case(name, backbone)
    goes_forward(case.build(), case.batch, gpu)


def test_no_option_of_mfm_waits(gpu: FakeTensorMode) -> None:
    case = Case("mfm", "test_resnet")
    config = case.ready.config
    for settings in MFM:
        own: Any = dataclasses.replace(config.method, **settings)
        changed = dataclasses.replace(config, method=own)
        goes_forward(build_method(changed, case.ready.info).train(), case.batch, gpu)


def test_every_choice_of_mfm_was_tried() -> None:
    """A new mask or corruption belongs into the list above, and into that of the rehearsal."""
    config = card("mfm").Config
    hints, defaults = get_type_hints(config), {one.name: one.default for one in dataclasses.fields(config)}
    for name in ("mask", "corruption", "clamp", "target", "reduction"):
        tried = {settings[name] for settings in MFM if name in settings} | {defaults[name]}
        assert tried == set(get_args(hints[name])), name


def test_a_wait_is_seen(gpu: FakeTensorMode) -> None:
    """One element set to a number of Python's, an index by a list, a copy to the host."""
    weights = moved(torch.ones(4), gpu)
    with gpu, NoWaits():
        weights[:1] = 2
        (weights[::2] + 3).sum()
        with pytest.raises(AssertionError, match="cpu → cuda: the host waits"):
            weights[0] = 2
        with pytest.raises(AssertionError, match="cpu → cuda: the host waits"):
            weights[[0, 2]]
        with pytest.raises(AssertionError, match="cuda → cpu: the host waits"):
            weights.cpu()


def test_views_are_cut_on_the_device(gpu: FakeTensorMode) -> None:
    images, boxes = torch.zeros(6, 3, 40, 36, dtype=torch.uint8), torch.tensor([[2, 3, 20, 11]]).repeat(6, 1)
    there = [moved(one, gpu) for one in (images, boxes, torch.arange(6) % 2 == 0)]
    with gpu, NoWaits():
        assert crop_resize_batch(*there, 16).device == CUDA
