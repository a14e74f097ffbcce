"""What happens to a whole batch of views, around any method: one file, one augmentation, each with its card.

`names()`, `card(name)` and `load(name)`; only the last imports torch.
"""

from pathlib import Path

from sslkit.augmentations import settings
from sslkit.core.cards import CardFolder

_FOLDER = CardFolder(__name__, Path(__file__).parent, "BatchAugment", "augmentation", {"settings": settings})
names, card, load = _FOLDER.names, _FOLDER.card, _FOLDER.load
