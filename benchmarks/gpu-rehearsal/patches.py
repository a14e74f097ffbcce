"""What a program needs to get through on a device that computes nothing.

Everything replaced here is out of what a rehearsal can show; README.md lists it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import rehearsal
import torch
from torch import Tensor

ON_THE_HOST = ("cholesky", "eigh", "eigvalsh", "inv", "lstsq", "qr", "svd")


def compiled_on_the_way() -> None:
    """What NVRTC or cuDNN compile when it is first used: here there is no device to compile for."""
    torch.special.entr = lambda p: torch.where(p > 0, p, 1.0)
    # cuDNN's search times what it finds; here no algorithm ever runs.
    setattr(type(torch.backends.cudnn), "benchmark", property(lambda _: False, lambda _, __: None))  # noqa: B010
    torch.backends.cuda.enable_cudnn_sdp(False)  # FlashAttention, one launch as well, is in torch itself
    try:
        torch.nn.functional.conv2d(
            torch.zeros(1, 1, 3, 3, device="cuda"), torch.zeros(1, 1, 3, 3, device="cuda")
        )
    except (
        RuntimeError
    ):  # torch 2.6 asks cuDNN for more than the stand-in answers; torch's own take its place
        torch.backends.cudnn.enabled = False


def results_that_matter() -> None:
    """Routines that fail, loop for ever or refuse when what kernels should have written isn't there."""
    compiled_on_the_way()
    for name in ON_THE_HOST:
        setattr(torch.linalg, name, _on_the_host(getattr(torch.linalg, name)))
    torch.linalg.solve = lambda a, b, **options: torch.zeros_like(b)  # no matrix is regular
    torch.linalg.svdvals = lambda matrix: matrix.new_ones(min(matrix.shape)) + 0 * matrix.sum()
    torch.pca_lowrank = _on_the_host(torch.pca_lowrank)
    torch.unique = _on_the_host(torch.unique)
    torch.optim.LBFGS.step = lambda self, closure: closure()  # type: ignore[method-assign]


def losses_that_are_not_finite() -> None:
    """No loss is a number here, so sslkit must not stop after a few of them."""
    from sslkit.training.run.nonfinite import NonFinite

    NonFinite._note = lambda self, step: None  # type: ignore[method-assign]


def _on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """The CPU's routine on copies. The copies there count as host waits, as NVIDIA's routines wait too."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        device = next((one.device for one in args if isinstance(one, Tensor)), None)
        here = [one.cpu() if isinstance(one, Tensor) else one for one in args]
        with rehearsal.unheard():
            output = function(*here, **options)
            if isinstance(output, Tensor):
                return output.to(device)
            return tuple(one.to(device) for one in output) if isinstance(output, tuple) else output

    return wrapped
