"""Contrastive losses: which of many vectors belongs to a query. In float32, over all processes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.core.distributed import collectives


def batch_logits(vectors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each view against the views of all processes (SimCLR, Chen et al., ICML 2020, equation 1: NT-Xent).

    Args:
        vectors: [2 B, d], first the B first views, then the second views in the same order; any lengths.

    Returns:
        Logits float32 [2 B, 2 W B], cosines by the temperature, and int64 [2 B], the column of each view's
        partner. A view is never compared with itself: that logit is -inf. In float32, as exp(1 / 0.1) is
        near float16's end.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.float(), dim=1)
        first, second = unit.chunk(2)
        every = torch.cat([collectives.gather_with_gradient(first), collectives.gather_with_gradient(second)])
        logits = unit @ every.T / temperature
    count = len(first)
    mine = collectives.rank() * count + torch.arange(count, device=vectors.device)
    own = torch.cat([mine, mine + len(every) // 2])
    return logits.scatter(1, own[:, None], -torch.inf), own.roll(count)


def queue_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Each query against its key and a queue of other keys (MoCo, He et al., CVPR 2020, equation 1).

    Args:
        query: [B, d], any lengths.
        key, queue: [B, d] and [K, d], unit rows.

    Returns:
        Logits float32 [B, 1 + K], cosines by the temperature: in column 0 each query's own key.
    """
    with torch.autocast(query.device.type, enabled=False):
        unit = F.normalize(query.float(), dim=1)
        positive = (unit * key).sum(1, keepdim=True)
        return torch.cat([positive, unit @ queue.T], dim=1) / temperature


def first_is_right(logits: Tensor) -> dict[str, Tensor]:
    """InfoNCE of logits [B, 1 + K] whose column 0 is the answer, and how often it is found.

    Returns:
        "loss", the mean cross-entropy; "chance", the loss divided by that of guessing; "accuracy" and
        "accuracy_5", the shares of queries with fewer than one or five negatives as near as the key.
    """
    loss = F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
    place = (logits[:, 1:] >= logits[:, :1]).sum(1)  # negatives no worse than the key: 0 is found
    return {
        "loss": loss,
        "chance": loss.detach() / math.log(logits.shape[1]),
        "accuracy": (place < 1).float().mean(),
        "accuracy_5": (place < 5).float().mean(),
    }
