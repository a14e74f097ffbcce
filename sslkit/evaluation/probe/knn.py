"""k nearest neighbours with weighted votes, as self-supervised features are customarily read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sslkit.evaluation.embedding.gallery import nearest_neighbours
from sslkit.evaluation.probe.linear import SPLIT, stratified_split


def knn_predict(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Each query's class by the votes of its k most similar training vectors, weighted exp(cosine / T).

    Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, CVPR 2018, with
    DINO's k = 20 and T = 0.07. One difference: vectors are centred by the training mean before they are
    normalised. All cosines between uncentred features with a large common part are near 1, and the vote
    would measure little but that part.

    Args:
        train: float [N, D]; labels: int64 [N]; queries: float [M, D].
        k: at most N; a larger one is cut to N.
        chunk: queries at once, so that memory is chunk x N.

    Returns:
        int64 [M]. Of classes with equal votes the lowest number wins.
    """
    predictions = []
    for nearest, index in nearest_neighbours(train, queries, k, chunk=chunk):  # [m, k] each
        votes = torch.zeros(len(index), classes, dtype=train.dtype, device=train.device)
        votes.scatter_add_(1, labels[index], (nearest / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def choose_knn(readouts: Mapping[str, Tensor], labels: Tensor, *, classes: int, k: int, seed: int = 0) -> str:
    """The read-out (name → float [N, D]) whose kNN is most often right on a stratified fifth of its own set.

    Of equal ones the first. The fifth is the one on which the linear probe chooses.
    """
    if len(readouts) == 1:
        return next(iter(readouts))
    fit, held = stratified_split(labels, SPLIT, seed)
    correct = {}
    for name, vectors in readouts.items():
        found = knn_predict(vectors[fit], labels[fit], vectors[held], classes=classes, k=k)
        correct[name] = int((found == labels[held]).sum())
    return max(correct, key=correct.__getitem__)
