"""The fifteen common corruptions of Hendrycks and Dietterich, in five severities, on the device.

Our own: the libraries that have them call what scikit-image has removed, or bring OpenCV, SciPy and Numba and
draw from NumPy's global generator (docs/robustness.md).
"""

from sslkit.augmentations.corruptions.common import common_corruption
from sslkit.augmentations.corruptions.severity import CORRUPTIONS, GROUPS, SEVERITIES

__all__ = ["CORRUPTIONS", "GROUPS", "SEVERITIES", "common_corruption"]
