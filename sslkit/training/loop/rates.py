"""What `throughput.py` has found out about a training, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sslkit.core.config.build import PretrainConfig


@dataclass(frozen=True)
class Rates:
    """Images per second of each side, and what the model costs."""

    loader: float  # data loading only
    model: float  # the method's whole step on one batch again and again
    whole: float  # both, as in a run
    bare: float  # the backbone alone: forward, backward, optimizer; 0: not measured
    wait: float  # share of the whole's time that passes waiting for images
    memory: int  # bytes: the GPU's peak, or this process's peak resident set
    kept: int = 0  # bytes of decoded images that the loader reads; 0: it reads files
    decoding: float = 0.0  # seconds to decode them once, before the first step
    workers: int = 0  # processes that read
    flops: float = 0.0  # of one image in a step of the method, forward and backward
    bare_flops: float = 0.0  # the same of the backbone alone
    peak: float = 0.0  # FLOP/s the device could do in this precision; 0: unknown

    @property
    def use(self) -> dict[str, float]:
        """Model FLOPs utilisation by side: the share of the device's peak that the model's products take."""
        work = {"bare": self.bare * self.bare_flops, "model": self.model * self.flops}
        work["whole"] = self.whole * self.flops
        return {side: done / self.peak for side, done in work.items() if self.peak}

    @property
    def source(self) -> str:
        """Where the loader's images come from, in words."""
        if not self.kept:
            return "images are read from files"
        return f"images are decoded once, in {self.decoding:.1f} s, and kept: {self.kept / 2**20:,.1f} MB"

    def limit(self, config: PretrainConfig) -> str:
        """Which side holds the other up, and the cure."""
        if self.loader < self.model:
            asked = config.data.workers
            alone = self.kept and not asked  # from memory, by the training process itself
            cures = [f"more than {asked} --workers"] if self.workers == asked and not alone else []
            cures += ["--cache auto"] if config.data.cache == "off" else []
            cures += [] if self.kept else ["sslkit pack"]
            return "the loader is the limit: " + (", or ".join(cures) or "a smaller --size")
        cures = [] if config.run.compile else ["--compile"]
        cures += ["--precision bfloat16"] if config.run.precision in ("float32", "tf32") else []
        if config.run.device.startswith("cuda"):
            cures.append("a larger --batch-size")
        return "the model is the limit: " + (", ".join(cures) or "a smaller --size or --backbone")

    def to_document(self) -> dict[str, Any]:
        return {**asdict(self), "use": self.use}


@dataclass(frozen=True)
class DryRun:
    """What a run would take."""

    rates: Rates
    steps: int
    hours: float  # decoding included
    disk: int  # bytes: checkpoints that stay and the one that is being written, the encoder, pictures
    limit: str

    def lines(self) -> list[str]:
        """For people."""
        rates = self.rates
        return [
            f"loader alone  {rates.loader:8.1f} images/s",
            f"model alone   {rates.model:8.1f} images/s",
            f"together      {rates.whole:8.1f} images/s, {rates.wait:.1%} of the time waiting for images",
            f"memory        {rates.memory / 2**30:8.2f} GB at most",
            f"whole run     {self.hours:8.2f} hours, {self.steps:,} steps",
            f"disk          {self.disk / 2**30:8.2f} GB",
            rates.source,
            self.limit,
        ]

    def to_document(self) -> dict[str, Any]:
        own = {"steps": self.steps, "hours": self.hours, "disk": self.disk, "limit": self.limit}
        return {**self.rates.to_document(), **own}
