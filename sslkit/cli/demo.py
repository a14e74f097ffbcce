"""sslkit demo"""

from __future__ import annotations

import time
from pathlib import Path

from sslkit.cli import options
from sslkit.core.console import Console

IMAGES = 800
"""Generated images; a fifth of them is held out."""

EXAMPLES = ("sslkit demo", "sslkit demo -o first-look")


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {"out": "default: the next free runs/demo-N"}


def demo(out: options.Out = None, quiet: options.Quiet = False) -> None:
    """The whole way on generated images: pretrain, probe, finetune, export, visualize, report.

    Nothing to download; a few minutes on two cores. It shows that everything works and what it looks like,
    not what pre-training gains: for that, take your own images and more time.
    """
    from sslkit import api
    from sslkit.core.paths import claim_folder, make_folder

    console = Console(quiet)
    folder = make_folder(Path(out)) if out else claim_folder(Path("runs"), "demo")
    data, began = f"fractal:{IMAGES}", time.monotonic()

    def title(text: str) -> None:
        console.say(f"\n[{time.monotonic() - began:.0f} s] {text}")

    title(f"1/5  sslkit pretrain {data} --backbone resnet18 --size 64 --epochs 10")
    # A ResNet-18: at this size faster than a ViT, and on photos it learned where a ViT did not (lab notes).
    run = api.pretrain(
        data, backbone="resnet18", size=64, epochs=10, out=folder / "pretrain", console=console
    )
    title("2/5  sslkit probe: are its frozen features better than random weights and raw pixels?")
    for sentence in api.probe(run, data=data, console=console).verdicts:
        console.say(f"  {sentence}")
    title("3/5  sslkit finetune: a classifier that starts from it")
    api.finetune(run, data, epochs=5, out=str(folder / "finetune"), console=console)
    title("4/5  sslkit export: a file that timm opens")
    api.export(run, folder / "export", console=console)
    title("5/5  sslkit visualize: what MFM sees and predicts")
    for file in api.visualize(run, console=console):
        console.say(f"  {file}")
    title(f"everything lies in {folder}; begin with {run / 'report.html'}")
    console.result(str(run / "report.html"))
