"""The step on a device: nothing waits for it, less memory and compiled blocks give the same gradients."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.core.config.sections import Optim
from sslkit.core.errors import UserError
from sslkit.methods import card, names
from sslkit.methods.base import Clock
from sslkit.models.encoder import Encoder
from sslkit.testing.contract.case import Case
from sslkit.training.loop.acceleration import accelerate_, fitting_micro_batch, pieces
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, build_optimizer, parameter_groups
from sslkit.training.pretrain.auto import resolve
from sslkit.training.run import checkpoint

CPU, META = torch.device("cpu"), torch.device("meta")


# ------------------------------------------------------------------------------- nothing waits for the device


class NoCopies(TorchFunctionMode):
    """Refuses what copies numbers of Python to a device: the host would wait until it is done.

    Whatever asks a device for a value (item, bool, nonzero, a boolean index) fails on the meta device by
    itself, as there are no values.
    """

    MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.MAKERS and result.device.type == "meta":
            raise AssertionError(f"{func.__name__} copies {args} to the device")
        return result


@pytest.fixture
def autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.autocast knows no meta device; switched off there it is nothing."""
    known = torch.autocast

    def lenient(device_type: str, *args: Any, **options: Any) -> Any:
        return nullcontext() if device_type == "meta" else known(device_type, *args, **options)

    monkeypatch.setattr(torch, "autocast", lenient)


def meta_steps(name: str, backbone: str, wrap: Callable[[Any], Any] = lambda method: method) -> int:
    """Two steps of a method, micro-batches included, by the engine on a device without values."""
    case = Case(name, backbone)
    method = wrap(case.build().to(META))
    config = case.ready.config
    optimizer = build_optimizer(parameter_groups(method, 0.05, method.overrides), config.optim, 1e-3)
    batches = [{n: v.to(META) for n, v in case.batch.items() if n != "bad"} for _ in range(2)]
    schedule = CosineSchedule(optimizer, 2, 0, 0.0, 0.0)
    clocks = Clock(0, 2, 1).rest()
    with NoCopies():
        steps = train(method, batches, optimizer, schedule, clocks, device=META, clip=3.0, micro_batch=4)
        return len(list(steps))


@pytest.mark.usefixtures("autocast_on_meta")
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("name", names())
def test_a_step_never_asks_the_device(name: str, backbone: str) -> None:
    if not Case(name, backbone).accepted:
        pytest.skip(f"{name} takes no {backbone}")
    assert meta_steps(name, backbone) == 2


def asking(method: Any) -> Any:
    """The same method with a look at its loss."""
    forward = method.forward

    def curious(batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = forward(batch, clock)
        if outputs["loss"] > 0:
            return outputs
        return outputs

    method.forward = curious
    return method


def copying(method: Any) -> Any:
    """The same method with a loss scaled by a number that is copied to the device."""
    forward = method.forward

    def slow(batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = forward(batch, clock)
        return {**outputs, "loss": outputs["loss"] * outputs["loss"].new_tensor(2.0)}

    method.forward = slow
    return method


@pytest.mark.usefixtures("autocast_on_meta")
@pytest.mark.parametrize(("wrap", "seen"), [(asking, RuntimeError), (copying, AssertionError)])
def test_a_step_that_waits_is_seen(wrap: Callable[[Any], Any], seen: type[Exception]) -> None:
    with pytest.raises(seen):
        meta_steps("mfm", "test_vit", wrap)


# ------------------------------------------------------------------------------------------------ attention


class Counted(TorchFunctionMode):
    """How often one function of torch is called."""

    def __init__(self, wanted: Callable[..., Any]) -> None:
        super().__init__()
        self.wanted, self.calls = wanted, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.calls += func is self.wanted
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_every_block_of_a_vit_attends_by_one_fused_call(name: str) -> None:
    encoder = Encoder(name, 32)
    with Counted(torch.nn.functional.scaled_dot_product_attention) as attention:
        encoder.vector(torch.rand(1, 3, 32, 32))
    assert attention.calls == len(encoder.model.blocks) == 12


# ------------------------------------------------------------------------------------------- checkpointing


def changed(config: PretrainConfig, **values: Any) -> PretrainConfig:
    """A configuration with other settings: model_checkpointing=True."""
    for name, value in values.items():
        section, _, key = name.partition("_")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def gradients(method: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    method.zero_grad()
    torch.manual_seed(0)
    method(batch, Clock(0, 2, 1))["loss"].backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mfm", "mae", "simmim", "dino"])
def test_checkpointing_gives_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name, "test_vit")
    method = case.build()
    expected = gradients(method, case.batch)
    accelerate_(method, changed(case.ready.config, model_checkpointing=True), CPU)
    calls = []
    checkpointed = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or checkpointed(*a, **k)
    )
    found = gradients(method, case.batch)
    assert calls
    assert found.keys() == expected.keys()
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-5, atol=1e-7)


def test_batch_norms_are_not_checkpointed() -> None:
    """They would take each batch into their running statistics twice."""
    encoder = Encoder("resnet18", 32)
    with pytest.raises(UserError, match="batch norms of resnet18 would count twice"):
        encoder.checkpoint_activations_()


def test_a_model_without_checkpointing_is_refused() -> None:
    encoder = Encoder("test_vit", 32, patch_size=8)
    encoder.model = torch.nn.Identity()
    with pytest.raises(UserError, match="timm's test_vit has none"):
        encoder.checkpoint_activations_()


# ------------------------------------------------------------------------------------------------ compiling


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own look while it compiles
@pytest.mark.filterwarnings("ignore:Skipping serialization:UserWarning")  # torch 2.6
def test_compiled_encoders_keep_names_and_gradients() -> None:
    case = Case("mfm", "test_vit")
    method = case.build()
    expected, names = gradients(method, case.batch), list(method.state_dict())
    accelerate_(method, changed(case.ready.config, run_compile=True), CPU)
    found = gradients(method, case.batch)
    assert list(method.state_dict()) == names
    assert (
        sum(
            piece._compiled_call_impl is not None
            for piece in pieces(method.encoder.model, method.encoder.family)
        )
        > 2
    )
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_a_compiler_it_is_one_line(tmp_path: Path) -> None:
    program = (
        "import torch\nfrom sslkit.core.errors import UserError\n"
        "from sslkit.training.loop.acceleration import require_compiler\n"
        "try:\n    require_compiler(torch.device('cpu'))\n"
        "except UserError as error:\n    print(error.message)"
    )
    surroundings = {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("--compile: nothing can be compiled here"), done.stderr
    assert done.stdout.count("\n") == 1


# ------------------------------------------------------------------------------ memory formats, fused updates


def test_a_convolution_s_weights_keep_a_pixel_s_channels_together() -> None:
    encoder = Encoder("resnet18", 32)
    assert encoder.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    encoder = Encoder("test_vit", 32, patch_size=8)
    assert encoder.model.patch_embed.proj.weight.is_contiguous()


def trained(steps: int, network: Any, optimizer: torch.optim.Optimizer) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(network: Any) -> torch.optim.Optimizer:
    return build_optimizer(parameter_groups(network, 0.05, {}), Optim(name="adamw", weight_decay=0.05), 1e-2)


@pytest.mark.parametrize("name", ["fastvit_t8", "mobileone_s0", "repvgg_a0", "resnet18", "convnext_atto"])
def test_layers_that_end_the_process_are_laid_out_otherwise(name: str) -> None:
    encoder = Encoder(name, 64)
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    fatal = any(m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 16 for m in convolutions)
    assert fatal is name.startswith(("fastvit", "mobileone", "repvgg"))
    kernel = next(m.weight for m in convolutions if m.kernel_size[0] > 1 and m.weight.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last) is not fatal


@pytest.mark.parametrize(
    ("name", "asked", "written"),
    [
        ("resnet10t", "auto", "channels_last"),
        ("resnet10t", "contiguous", "contiguous"),
        ("repvgg_a0", "auto", "contiguous"),
        ("test_vit", "auto", "contiguous"),
    ],
)
def test_memory_format_is_resolved_and_followed(name: str, asked: str, written: str) -> None:
    known = card("mfm")
    own = {"model.backbone": name, "data.size": 64, "model.memory_format": asked, "run.batch_size": 4}
    config = resolve(
        build_pretrain("mfm", known.Config, {**known.facts["defaults"], **own}), 64, 64, CPU
    ).config
    assert config.model.memory_format == written
    encoder = Encoder(name, 64, patch_size=config.model.patch_size or None)
    accelerate_(encoder, config, CPU)
    kernels = [p for p in encoder.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels[1 if len(kernels) > 1 else 0].is_contiguous() is (written == "contiguous")


def test_what_would_end_the_process_is_refused() -> None:
    known = card("mfm")
    own = {"model.backbone": "repvgg_a0", "data.size": 64, "model.memory_format": "channels_last"}
    config = resolve(
        build_pretrain("mfm", known.Config, {**known.facts["defaults"], **own}), 64, 64, CPU
    ).config
    with pytest.raises(UserError, match="repvgg_a0 in channels_last would end the process"):
        accelerate_(Encoder("repvgg_a0", 64), config, CPU)


FATAL = """
import torch
from sslkit.models.encoder import Encoder
torch.manual_seed(0)
encoder = Encoder("fastvit_t8", 256).train()
encoder.vector(torch.rand(4, 3, 256, 256)).mean().backward()
print("alive")
"""


@pytest.mark.slow
def test_a_step_of_fastvit_in_float32_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FATAL], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.parametrize("saved_as", [torch.channels_last, torch.contiguous_format])
def test_a_checkpoint_fits_either_memory_format(saved_as: torch.memory_format, tmp_path: Path) -> None:
    """Fused updates read a parameter and its state in the order of memory: both must have one order."""
    torch.manual_seed(0)
    whole = torch.nn.Conv2d(3, 8, 3)
    first = copy.deepcopy(whole).to(memory_format=saved_as)
    straight = adamw(whole)
    assert straight.param_groups[0]["fused"]
    trained(4, whole, straight)

    optimizer = adamw(first)
    trained(2, first, optimizer)
    written = checkpoint.write(tmp_path, 2, first, optimizer, {})
    second = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    optimizer = adamw(second)
    checkpoint.restore(written, second, optimizer)
    trained(2, second, optimizer)
    torch.testing.assert_close(second.weight, whole.weight, rtol=1e-5, atol=1e-6)


def test_fused_and_plain_updates_read_each_other_s_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = torch.nn.Conv2d(3, 8, 3)
    first = copy.deepcopy(whole)
    trained(4, whole, adamw(whole))
    plain = torch.optim.AdamW(parameter_groups(first, 0.05, {}), lr=1e-2, foreach=False)
    trained(2, first, plain)
    written = checkpoint.write(tmp_path, 2, first, plain, {})
    optimizer = adamw(first)
    checkpoint.restore(written, first, optimizer)
    trained(2, first, optimizer)
    torch.testing.assert_close(first.weight, whole.weight, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------- --micro-batch auto


class Greedy(torch.nn.Module):
    """Runs out of memory above so many images, and changes a buffer each time it is called."""

    minimum_batch = 2
    calls: torch.Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []  # type: ignore[var-annotated]
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, batch: dict[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        self.calls += torch.rand(1)
        self.seen.append(len(batch["index"]))
        if self.seen[-1] > self.most:
            raise torch.OutOfMemoryError("full")
        return {"loss": (self.weight * batch["image"].mean()).sum()}


def configuration() -> PretrainConfig:
    known = card("mfm")
    return build_pretrain("mfm", known.Config, {"data.sources": ["x"], "run.precision": "float32"})


@pytest.mark.parametrize(
    ("most", "found", "tried"), [(64, 0, [32]), (9, 8, [32, 16, 8]), (2, 2, [32, 16, 8, 4, 2])]
)
def test_micro_batches_are_halved_until_one_fits(most: int, found: int, tried: list[int]) -> None:
    method = Greedy(most).eval()
    batch = {"image": torch.rand(32, 3, 4, 4), "index": torch.arange(32)}
    random = torch.get_rng_state()
    assert fitting_micro_batch(method, batch, Clock(0, 1, 1), configuration(), CPU) == found
    assert method.seen == tried
    assert (method.calls.item(), method.weight.grad, method.training) == (0, None, False)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_that_never_fits_is_one_line() -> None:
    batch = {"image": torch.rand(32, 3, 4, 4), "index": torch.arange(32)}
    with pytest.raises(UserError, match="out of memory with 2 of 32 images"):
        fitting_micro_batch(Greedy(1), batch, Clock(0, 1, 1), configuration(), CPU)
