"""A fine-tuned classifier on disk: a folder that timm opens, head and class names included."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sslkit.core.console import as_json
from sslkit.core.errors import UserError
from sslkit.evaluation.robustness.measure import resize_labelled
from sslkit.finetuning.classifier import classifier_arguments, classifier_name
from sslkit.models.config_json import read_config, stem_of, timm_config
from sslkit.models.encoder import Encoder
from sslkit.models.factory import create_model
from sslkit.models.foreign import read_safetensors
from sslkit.models.weights import EXPORT_FILE, load_into, save


class OpenedClassifier(nn.Module):
    """Images in [0, 1] → logits: `write_classifier`'s inverse, in evaluation mode.

    Args:
        folder: with model.safetensors and config.json, as `sslkit finetune` leaves it.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = read_config(folder)
        made, arguments = config["pretrained_cfg"], config.get("model_args", {})
        self.size = int(made["input_size"][-1])  # pixels a side
        self.model = create_model(
            config["architecture"], stem_of(config), num_classes=config["num_classes"], **arguments
        )
        found = load_into(self.model, read_safetensors(folder / EXPORT_FILE))
        if found.missing or found.unused:
            names = ", ".join((found.missing + found.unused)[:3])
            raise UserError(f"{folder / EXPORT_FILE} does not fit config.json: {names} …", "was it edited?")
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(made[name]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1], of any size → [B, C]; resized to the classifier's own."""
        logits: Tensor = self.model((resize_labelled(images, self.size) - self.mean) / self.std)
        return logits.float()


def write_classifier(
    model: nn.Module,
    encoder: Encoder,
    size: int,
    classes: tuple[str, ...],
    folder: Path,
    metadata: dict[str, str],
) -> None:
    """model.safetensors, config.json, classes.json; timm opens the folder as "local-dir:FOLDER".

    With the small stem timm's model needs that one first, as `sslkit export` prints it.
    """
    save(model.state_dict(), folder / EXPORT_FILE, metadata)
    config = timm_config(encoder)
    head = classifier_name(model)
    config |= {
        "num_classes": len(classes),
        "model_args": classifier_arguments(encoder, size),
        "label_names": list(classes),
    }
    config["pretrained_cfg"] |= {
        "input_size": [3, size, size],
        "num_classes": len(classes),
        "classifier": head,
        "label_names": list(classes),
    }
    (folder / "config.json").write_text(as_json(config, indent=2) + "\n", encoding="utf-8")
    (folder / "classes.json").write_text(as_json(list(classes), indent=1) + "\n", encoding="utf-8")
