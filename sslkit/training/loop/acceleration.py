"""What makes a step faster or smaller and changes nothing else: compiling, checkpointing, parts that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.device import to_device
from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError, first_line
from sslkit.methods.base import Batch, Clock
from sslkit.models.encoder import Encoder, lay_out_
from sslkit.models.input_size import breaks_channels_last
from sslkit.training.loop.depthwise import take_fast_gradients_
from sslkit.training.loop.engine import accumulated, split
from sslkit.training.loop.job import Job
from sslkit.training.loop.out_of_memory import least, smaller
from sslkit.training.loop.sample import sample

_SHARE = 0.9
"""Of the free memory of a GPU that one step may take; fragmentation and other programs need the rest."""


def accelerate_(network: nn.Module, config: PretrainConfig, device: torch.device) -> None:
    """What is asked of every encoder: `speed_up_`, `model.memory_format` and `model.checkpointing`.

    Names, weights and results stay; a copy made before (a teacher) is an encoder of its own.

    Raises:
        UserError: the backbone can't be checkpointed or laid out so, or nothing can be compiled here.
    """
    for encoder in [module for module in network.modules() if isinstance(module, Encoder)]:
        _lay_out(encoder, config.model.memory_format, device)
        if config.model.checkpointing:
            encoder.checkpoint_activations_()
        speed_up_(encoder.model, encoder.family, config.run, device)


def speed_up_(model: nn.Module, family: str, run: Any, device: torch.device) -> None:
    """The fastest convolutions, and `run.compile`.

    Args:
        model: timm's.
        family: of its encoder.
        run: the section of that name.

    Raises:
        UserError: nothing can be compiled here.
    """
    if (
        device.type == "cuda"
    ):  # let cuDNN time its algorithms once for each size: sizes stay while a run trains
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu" and run.precision == "bfloat16" and not run.compile:
        take_fast_gradients_(model)
    if run.compile:
        require_compiler(device)
        for piece in pieces(model, family):
            piece.compile()  # in place: the module keeps its name, class and state


def _lay_out(encoder: Encoder, memory_format: str, device: torch.device) -> None:
    last = memory_format == "channels_last"
    if last and device.type == "cpu" and breaks_channels_last(encoder.model):
        problem = f"model.memory_format: {encoder.name} in channels_last would end the process on a CPU"
        raise UserError(problem, "-s model.memory_format=contiguous, or auto")
    if encoder.family == "cnn":
        lay_out_(encoder.model, torch.channels_last if last else torch.contiguous_format)


def pieces(model: nn.Module, family: str) -> Iterator[nn.Module]:
    """The modules of a backbone that are compiled: a ViT's blocks, which share one program, or whole stages.

    Not the model itself: methods enter it by several doors (`forward_features`, tokens, a masked map).
    """
    for child in model.children():
        blocks = family == "vit" and isinstance(child, nn.Sequential | nn.ModuleList)
        parts = child.children() if blocks else [child]
        yield from (part for part in parts if any(True for _ in part.parameters()))


@cache
def require_compiler(device: torch.device) -> None:
    """Compile something tiny, with its gradient, to know.

    Raises:
        UserError: it did not work.
    """
    try:
        value = torch.zeros(8, device=device, requires_grad=True)
        torch.compile(lambda x: x.sin().sum())(value).backward()
    except Exception as problem:  # each backend has its own
        cure = "a C++ compiler (CPU) or triton (CUDA) is needed; or leave --compile out"
        raise UserError(f"--compile: nothing can be compiled here: {first_line(problem)}", cure) from None


def fitted(job: Job) -> Job:
    """`run.micro_batch = auto` with the number that fits; on the CPU that is the whole batch.

    Raises:
        UserError: not even the smallest part fits, or batch norms of several GPUs share their statistics and
            would wait for one that has run out of memory.
    """
    if "run.micro_batch" not in job.reasons or job.device.type == "cpu":
        return job
    config, part = job.config, job.config.run.batch_size // collectives.world_size()
    if collectives.world_size() > 1 and getattr(config.model, "sync_norm", False):
        raise UserError("--micro-batch auto can't be tried with model.sync_norm", "--micro-batch N")
    batch = to_device(sample(job.images, job.transform, part), job.device)
    found = agreed_micro_batch(job.network, batch, Clock(0, 1, 1, config.run.seed), config, job.device)
    reason = f"{found or 'all'} of {part} fit {torch.cuda.get_device_name(job.device)}"
    run = replace(config.run, micro_batch=found)
    return replace(job, config=replace(config, run=run), reasons={**job.reasons, "run.micro_batch": reason})


def agreed_micro_batch(method: Any, batch: Batch, clock: Clock, config: Any, device: torch.device) -> int:
    """`fitting_micro_batch` in every process by itself; the smallest number of all, which they share."""
    whole = len(batch["index"])
    with collectives.single_process():
        found = fitting_micro_batch(method, batch, clock, config, device)
    smallest = min(processes.all_gather_objects(found or whole))
    return 0 if smallest == whole else smallest


def fitting_micro_batch(method: Any, batch: Batch, clock: Clock, config: Any, device: torch.device) -> int:
    """Images at once in memory for `run.micro_batch = auto`, by one forward and backward pass; 0: all.

    The batch is halved until a part of it trains, on CUDA with room for the optimizer's state and a margin.
    Weights, buffers, random generators and gradients are afterwards as before.

    Args:
        batch: a whole one on the device, as the engine gets it; of several processes this one's part.

    Raises:
        UserError: not even the smallest part fits.
    """
    whole = size = len(batch["index"])
    state = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
    training = method.training
    method.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while not _trains(method, split(batch, size)[0], clock, config, device):
            size = smaller(size, whole, *least(method))
    method.load_state_dict(state)
    method.train(training)
    return 0 if size == whole else size


def _trains(method: Any, part: Batch, clock: Clock, config: Any, device: torch.device) -> bool:
    """Whether one part goes forward and backward within the memory."""
    cuda, room = device.type == "cuda", 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    done = accumulated(method, [part], clock, device, config.run.precision) is not None
    method.zero_grad(set_to_none=True)
    if not done or not cuda:
        return done
    moments = 2 * sum(p.nbytes for p in method.parameters() if p.requires_grad)
    return bool(torch.cuda.max_memory_allocated(device) + moments <= _SHARE * room)
