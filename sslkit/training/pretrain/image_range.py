"""By which range a run reads images of more than 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.setting import AUTO
from sslkit.core.distributed import processes
from sslkit.core.value_range import BYTES, Range
from sslkit.data.images.range_estimate import RangeEstimate
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.set_range import find_range
from sslkit.models.config_json import range_behind, read_config
from sslkit.models.foreign import is_foreign
from sslkit.models.unfinished import folder_of, range_of
from sslkit.models.weights import encoder_file


def open_with_range(config: PretrainConfig) -> tuple[ImageSet, RangeEstimate]:
    """The images of a run, read by its range, and that range; one process finds it for all."""
    images = open_images(config.data.sources, config.data.limit or None)
    found = processes.run_on_first(lambda: range_for(images, config))
    return replace(images, range=found.range), found


def range_for(images: ImageSet, config: PretrainConfig) -> RangeEstimate:
    """The range of a run's images: as set, that of the weights it starts from, or the set's own."""
    data, init = config.data, config.model.init
    if data.range == AUTO and init and (known := known_range(init)).known:
        return RangeEstimate(known, f"that of {init}", f"that of {init}")
    return find_range(images, data.range, data.nodata)


def known_range(source: str) -> Range:
    """The range that a SOURCE tells of, without building it; `BYTES` where there is none."""
    if source.startswith(("timm/", "random/")) or is_foreign(source):
        return BYTES
    file = encoder_file(Path(source))
    if folder_of(file) != file.parent:  # a checkpoint of a run that has not ended
        return range_of(folder_of(file))
    return range_behind(file, read_config(file.parent))
