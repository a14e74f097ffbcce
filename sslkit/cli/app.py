"""The command line, assembled: one file per command, imported when it is called for.

`main` turns what people may do wrong into two lines, `error: …` and `hint: …`, and an exit code: 0 done,
1 the work failed or a check found something, 2 bad arguments, configuration or data, 130 and 143 signals.
A bug keeps its ordinary traceback.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer

from sslkit.cli.command import WIDEST, described, none
from sslkit.core import allocator
from sslkit.core.console import printable, visible
from sslkit.core.distributed import environment
from sslkit.core.errors import UserError
from sslkit.version import __version__

COMMANDS = (
    "pretrain", "finetune", "probe", "visualize", "export", "embed", "check",
    "pack", "bench", "info", "methods", "models", "doctor", "demo",
)  # fmt: skip
"""Each one's file holds a function of its name, with its options; none imports torch before it runs."""

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for wrong arguments; newer versions carry their own click, so it is not imported."""

app = typer.Typer(
    name="sslkit",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sslkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True
    ),
) -> None:
    """Pre-train a vision backbone on your own images, without labels, and know whether it helped."""


for _name in COMMANDS:
    _module = import_module(f"sslkit.cli.{_name}")
    _kind = described(_module.EXAMPLES, getattr(_module, "defaults", none))
    app.command(cls=_kind)(getattr(_module, _name))


def main() -> None:
    """Run the command line; never returns."""
    # Before torch loads its OpenMP: threads that spin while they wait take the cores from the workers that
    # read images. Beside one busy process a ViT's bfloat16 step is 1.5 times faster when they sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if allocator.COMMANDS.intersection(sys.argv[1:2]):
        allocator.keep_memory()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="sslkit", standalone_mode=False)
        if code == 130:  # newer typer makes this of KeyboardInterrupt, and says nothing
            _tell("interrupted", "", 130)
    except UserError as error:
        code = _tell(error.message, error.hint, error.code)
    except UsageError as error:
        code = _tell(error.format_message(), _usage_hint(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _tell("interrupted", "", 130)
    except BrokenPipeError:
        code = 1
    except (RuntimeError, ImportError) as error:
        code = _tell_of_import(error)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, hint: str, code: int) -> int:
    if code == 2 and environment.number() > 0:  # refused at the door, and the first process says so
        return code
    for line in (f"error: {message}", f"hint: {hint}" if hint else ""):
        if line and sys.stderr:
            print(printable(visible(line), sys.stderr), file=sys.stderr)
    return code


def _tell_of_import(error: RuntimeError | ImportError) -> int:
    """The cure if torch and torchvision do not fit together; anything else is a bug, with its traceback."""
    from sslkit.testing.doctor import broken_import

    known = broken_import(error)
    if known is None:
        raise error
    return _tell(known.message, known.hint, known.code)


def _usage_hint(error: Any) -> str:
    command = error.ctx.command_path if getattr(error, "ctx", None) else "sslkit"
    return f"{command} --help"
