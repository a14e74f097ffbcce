"""Batch norm of all processes; tests/training/test_distributed.py has two of them."""

from __future__ import annotations

import torch
from torch import nn

from sslkit.models.norm import BatchNorm1d


def test_batch_norm_of_one_process_is_torch_s() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = BatchNorm1d(4), nn.BatchNorm1d(4)
    assert torch.equal(ours(rows), theirs(rows))
    assert torch.equal(ours.eval()(rows), theirs.eval()(rows))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
