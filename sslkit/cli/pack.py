"""sslkit pack DATA... OUT"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sslkit.cli import options
from sslkit.cli.command import of_settings
from sslkit.core.console import Console, counted, visible

if TYPE_CHECKING:
    from sslkit.data.packs.writer import Packing


EXAMPLES = (
    "sslkit pack photos/ photos-256 --size 256",
    "sslkit pack photos/ more-photos/ packed --shard-size 1GB",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    from sslkit.core.config.build import SECTIONS

    read = of_settings({"range": "data.range", "limit": "data.limit"}, SECTIONS)
    return {**read, "size": "default: as it is", "workers": "auto: one per core with --size, else 0"}


def pack(
    arguments: Annotated[
        list[str], typer.Argument(metavar="DATA... OUT", help="Images as everywhere, then a new folder.")
    ],
    size: Annotated[
        int | None,
        typer.Option("--size", help="Short side of what is larger, pixels."),
    ] = None,
    shard_size: Annotated[
        str, typer.Option("--shard-size", metavar="BYTES", help="Of a shard, e.g. 100MB or 1GB.")
    ] = "256MB",
    quality: Annotated[int, typer.Option("--quality", help="Of JPEG files made smaller, 1 to 100.")] = 92,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that make images smaller; 0: none.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Use at most so many images.")] = None,
    range: options.Range = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Many image files into few tar shards that are read faster: DATA like any other, in the same order."""
    from sslkit import api
    from sslkit.core.errors import UserError

    if len(arguments) < 2:
        raise UserError("pack needs DATA and OUT", "sslkit pack photos/ photos-256 --size 256")
    console = Console(quiet, json)
    *data, out = arguments
    packing = api.pack(
        *data,
        out=out,
        size=size,
        shard_size=shard_size,
        quality=quality,
        workers=workers,
        limit=limit,
        range=range,
        console=console,
    )
    _tell(packing, console)
    console.result(str(packing.path), packing.to_document())


def _tell(packing: Packing, console: Console) -> None:
    rate = packing.count / max(packing.seconds, 1e-9)
    console.say(
        f"{counted(packing.count, 'image')}, {packing.resized:,} of them made smaller, "
        f"in {counted(packing.shards, 'shard')}: "
        f"{packing.bytes / 1e6:,.1f} MB ({rate:.0f} images/s)"
    )
    if packing.unreadable:
        (name, reason), more = packing.unreadable[0], len(packing.unreadable) - 1
        others = f" and {more:,} more, listed in {packing.path / 'pack.json'}" if more else ""
        console.warn(f"kept as they are, training will skip them: {visible(name)}: {reason}{others}")
