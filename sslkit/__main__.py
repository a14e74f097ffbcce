"""`python -m sslkit` and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; an interruption while its modules are still imported is one line too."""
    try:
        from sslkit.cli.app import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr:
            print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
