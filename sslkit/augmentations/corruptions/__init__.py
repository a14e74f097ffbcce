"""The fifteen common corruptions of Hendrycks and Dietterich, in five severities, on the device."""

from sslkit.augmentations.corruptions.common import common_corruption
from sslkit.augmentations.corruptions.severity import CORRUPTIONS, GROUPS, SEVERITIES

__all__ = ["CORRUPTIONS", "GROUPS", "SEVERITIES", "common_corruption"]
