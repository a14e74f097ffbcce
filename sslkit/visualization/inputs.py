"""Inputs of visualize: a method by its name, a run's trained method, or weights; and the images for it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import CenterCrop
from sslkit.core import rng
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.validate import checked, refuse_range
from sslkit.core.console import SILENT, Console
from sslkit.core.device import pick_device
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.value_range import BYTES, Range, as_set
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.images.formats import ending, is_image
from sslkit.data.loading.workers import reading_workers
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.names import Names
from sslkit.data.sources.set_range import with_range
from sslkit.evaluation.embedding.gallery import class_names, embed_images
from sslkit.methods import card, load, short_name
from sslkit.methods.base import Info, Method
from sslkit.models.encoder import Encoder
from sslkit.models.input_size import check_size
from sslkit.models.weights import EXPORT_FILE, is_finetuning, load_encoder
from sslkit.training.run.folder import RunFolder, load_method, read_configuration

LIMIT, COUNT = 1000, 4
_FEW = 256
"""Images that are read in this process: workers take longer to start."""
GENERATED = "fractal:100"
"""Images for a method when none are given."""


class Inputs:
    """A method or an encoder, and some images, loaded when first asked for.

    Args:
        source: a run folder, a method's name, or any other SOURCE of weights, which have no method.
        images: DATA, or single image files; by default the run's own images, or generated ones.
        count: how many of them; drawn by `seed` where there are more.
        radius: instead of the run's or the method's own.
        size: side of the square pictures, pixels, instead of the run's own; for a method at most 224.
        seed: of the choice of images, and for a method's name of its random views.
        others: runs to compare this one with.
        limit: images at most among which neighbours are found and of which a map is made.

    Raises:
        UserError: none of these sources, a count, radius, size or limit out of range.
    """

    def __init__(
        self, source: str, images: Sequence[str] = (), *, count: int = COUNT, radius: float | None = None,
        size: int | None = None, seed: int = 0, others: Sequence[str] = (), limit: int = LIMIT,
        console: Console = SILENT,
    ) -> None:  # fmt: skip
        checked("--limit", limit, int, {"low": 2, "default": LIMIT})
        checked("--count", count, int, {"low": 1, "default": COUNT})
        if radius is not None:
            checked("--radius", radius, float, {"above": 0})
        refuse_range(size, seed)
        self.source, self.count, self.others, self.limit, self.console = source, count, others, limit, console
        self.has_method = not is_weights(source)
        self.run = open_run(source) if self.has_method else None
        self._images, self._radius, self._size, self._seed = tuple(images), radius, size, seed

    def prepare(self) -> None:
        """Load method and images now: what is wrong with them is an error before anything is written."""
        _ = self.method if self.has_method else self.encoder, self.originals

    @cached_property
    def images(self) -> ImageSet:
        """All images there are to choose from, read as those that the encoder was trained on."""
        return with_range(self._listed(), self._range, self.console)

    @cached_property
    def _config(self) -> PretrainConfig | None:
        """Of a run."""
        return None if self.run is None else read_configuration(self.run.path / "config.toml")

    @property
    def _range(self) -> Range:
        if self._config is not None:
            return as_set(self._config.data)
        return BYTES if self.has_method else self.encoder.range

    def _listed(self) -> ImageSet:
        if self._images:
            return open_pictures(self._images)
        if self._config is None:
            return open_images([GENERATED])
        try:
            return open_images(self._config.data.sources, self._config.data.limit or None)
        except UserError as problem:
            raise UserError(
                f"the images of {self.source} are gone: {problem.message}",
                "name others: sslkit visualize RUN IMAGES",
            ) from None

    @property
    def sources(self) -> Sequence[str]:
        """DATA of `images`."""
        if self._images or self._config is None:
            return self._images or (GENERATED,)
        return self._config.data.sources

    def beside(self, source: str) -> Inputs:
        """Another run with the same images, seed and size of choice."""
        other = Inputs(source, count=self.count, seed=self._seed, console=self.console)
        if other.run is None:
            raise UserError(f"compare: {source} is no run", "give run folders: --with runs/mfm-…-2")
        other.images, other.originals = self.images, self.originals
        return other

    @cached_property
    def originals(self) -> dict[int, Image.Image]:
        """Position in `images` → decoded image, `count` of them where so many can be read."""
        found: dict[int, Image.Image] = {}
        total = len(self.images)
        for index in map(int, rng.permutation(total, self._seed, 0, 0, min(total, 10 * self.count))):
            if len(found) == self.count:
                break
            try:
                found[index] = self.images.read(index)
            except UnreadableImage as problem:
                self.console.warn(f"{problem.path} can't be read: {problem.reason}")
        if not found:
            raise UserError(f"{self.images.name}: no image could be read", "sslkit reads JPEG, PNG, WebP, …")
        return dict(sorted(found.items()))

    @cached_property
    def pictures(self) -> Tensor:
        """The whole central square of each image, float [N, 3, size, size] in [0, 1]."""
        view = CenterCrop(self.size, self.size)
        return torch.stack([view(image) for image in self.originals.values()]).float() / 255

    @cached_property
    def method(self) -> Method:
        """Trained and in evaluation mode for a run; without weights (on torch's meta device) for a name."""
        method = self._blank() if self.run is None else load_method(self.run.path)
        if self._radius is not None and hasattr(method.config, "radius"):
            method.config = dataclasses.replace(method.config, radius=self._radius)
        if self._size is not None and self.run is not None:
            encoder = method.encoder
            check_size(encoder.name, self._size, encoder.stride)
        return method

    def panels(self, images: Tensor) -> Mapping[str, Tensor]:
        """What the method makes of images, float [N, 3, H, W] in [0, 1]."""
        with torch.no_grad():
            return self.method.panels({"image": images, "index": torch.arange(len(images))})

    @cached_property
    def encoder(self) -> Encoder:
        """The run's, in evaluation mode, from its newest checkpoint; or that of the weights."""
        if self.has_method:
            return self.method.encoder
        return load_encoder(self.source, self._size, self._seed, console=self.console)

    @cached_property
    def gallery(self) -> Gallery:
        """The pictures' images and others up to the limit, drawn over the whole set, as vectors."""
        chosen = sorted({*self.originals, *rng.sample(len(self.images), self.limit, self._seed)})
        images = self.images.subset(chosen)
        place = pick_device()
        encoder = self.encoder.to(place)
        workers = reading_workers(place.type == "cpu") if len(images) > _FEW else 0
        found, kept = embed_images(
            encoder.vector, images, self.size, device=place, workers=workers, console=self.console
        )
        encoder.cpu()
        images = images.subset(kept)
        position = {index: row for row, index in enumerate(np.array(chosen)[kept].tolist())}
        rows = [position[index] for index in self.originals]
        return Gallery(images, found, class_names(self.sources, images, self.console), rows)

    @cached_property
    def size(self) -> int:
        if self._size is not None:
            return self._size
        if not self.has_method:
            return self.encoder.size
        return min(224, self.images.native_side()) if self.run is None else self.method.info.size

    @property
    def radius(self) -> float:
        """Where low ends and high begins, bins: as asked, the method's, or MFM's for this size."""
        config = self.method.config if self.has_method else None
        return self._radius or float(getattr(config, "radius", 16 * self.size / 224))

    @property
    def name(self) -> str:
        """The method's, as people read it; of weights, where they come from."""
        return short_name(self._method_name) if self.has_method else Path(self.source).name

    @property
    def title(self) -> str:
        """What pictures of the encoder are called: the run, or the weights."""
        return self.run.path.name if self.run else self.name

    @property
    def masks_frequencies(self) -> bool:
        """Whether the method asks what MFM does, for a `task`."""
        return self.has_method and hasattr(load(self._method_name), "task")

    @property
    def _method_name(self) -> str:
        return self.source if self._config is None else self._config.method_name

    @property
    def degradation(self) -> str:
        """What the inputs of MFM's baselines suffer, e.g. "sr"; empty where frequencies are masked."""
        corruption = str(getattr(self.method.config, "corruption", "frequency"))
        return "" if corruption == "frequency" else corruption

    @property
    def seed(self) -> int:
        """Of the random views: the run's, so that they are the very ones it was trained on."""
        return self._seed if self._config is None else self._config.run.seed

    def _blank(self) -> Method:
        """The method around a network of shapes alone: its views and settings need no weights."""
        info = Info(len(self.images), self.size, self.images.native_side())
        made = load(self.source)
        resolved = made.resolve(made.Config(), "vit", info)
        config = dataclasses.replace(made.Config(), **{name: value for name, (value, _) in resolved.items()})
        with torch.device("meta"):
            patch = math.gcd(info.size, 16)
            return made(config, Encoder("vit_tiny_patch16_224", info.size, patch_size=patch), info).eval()


@dataclass(frozen=True)
class Gallery:
    """Images as the encoder sees them."""

    images: ImageSet
    vectors: NDArray[np.float32]  # [N, D]
    labels: list[str] | None
    queries: list[int]  # positions of the pictures' images

    def thumbnail(self, index: int, side: int = 96) -> Tensor:
        """The central square of an image, float [3, side, side] in [0, 1]."""
        return CenterCrop(side, side)(self.images.read(index)).float() / 255


def is_weights(source: str) -> bool:
    """Whether `source` is a SOURCE of weights that is no pre-training run: nothing is known of a method."""
    path = Path(source)
    if source.startswith(("timm/", "random/")) or (path.is_file() and path.suffix != ".py"):
        return True
    return is_finetuning(path) or ((path / EXPORT_FILE).is_file() and not (path / "run.json").exists())


def open_run(source: str) -> RunFolder | None:
    """The run folder behind `source`, or None for a method's name; UserError when it is neither."""
    if not source.endswith(".py") and (Path(source).exists() or os.sep in source):
        return RunFolder.open(Path(source))
    try:
        card(source)
    except UserError as problem:  # perhaps no method was meant
        problem.hint = nearest_path(source, problem.hint)
        raise
    return None


def open_pictures(sources: Sequence[str]) -> ImageSet:
    """DATA as everywhere, and single image files in the order they were named."""
    files = [name for name in sources if os.path.isfile(name) and is_image(ending(os.fsencode(name)))]
    others = [name for name in sources if name not in files]
    found = open_images(others).paths if others else ()
    paths = dict.fromkeys([*map(os.path.abspath, files), *found])
    return ImageSet(Names(paths), ", ".join(sources))
