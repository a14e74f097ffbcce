"""Encoder and linear probe as one classifier of images, and its robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslkit.core.device import Precision
from sslkit.evaluation.probe.evaluator import ProbeEvaluator
from sslkit.evaluation.probe.linear import LinearProbe
from sslkit.evaluation.probe.readout import read_out
from sslkit.evaluation.robustness.adversarial import Logits
from sslkit.evaluation.robustness.measure import LEFT_OUT, read_labelled, resize_labelled, robustness
from sslkit.evaluation.robustness.robustness_result import EPSILONS, RobustnessResult, make_robustness_plan
from sslkit.models.encoder import Encoder


class ProbeClassifier(NamedTuple):
    """A row of the table that classifies images."""

    name: str
    encoder: Encoder
    readout: str
    head: LinearProbe


def classifier(encoder: Encoder, readout: str, head: LinearProbe) -> Logits:
    """Images in [0, 1] of any size → [B, C]; resized to the encoder's size, head in float32."""
    read = read_out(encoder, (readout,))

    def logits(images: Tensor) -> Tensor:
        vectors = read(resize_labelled(images, encoder.size))[readout].float()
        with torch.autocast(images.device.type, enabled=False):
            return head.logits(vectors)

    return logits


def measure_robustness(
    bench: ProbeEvaluator,
    classifiers: Sequence[ProbeClassifier],
    baselines: Mapping[str, str],
    limit: int,
    attacks: bool | None,
    precision: Precision,
) -> RobustnessResult:
    """All classifiers on the same changed validation images, of the first one's size.

    Args:
        baselines: name → the name that its errors are relative to.
        limit: images, spread over the classes.
        attacks: also FGSM and PGD; None is only where the device is not a CPU.
    """
    side = classifiers[0].encoder.size
    images = read_labelled(bench.scored, side, limit, bench.workers, bench.console)
    attacked = bench.device.type != "cpu" if attacks is None else attacks
    plan = make_robustness_plan(side, seed=bench.seed, epsilons=EPSILONS if attacked else ())
    for one in classifiers:
        one.encoder.to(bench.device)
    sources = [(one.name, classifier(one.encoder, one.readout, one.head)) for one in classifiers]
    found = robustness(
        sources,
        images,
        plan,
        device=bench.device,
        precision=precision,
        baselines=baselines,
        console=bench.console,
    )
    for one in classifiers:
        one.encoder.cpu()
    if not attacked:
        bench.console.say(LEFT_OUT)
    return found
