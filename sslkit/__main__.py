"""`python -m sslkit` and the console script."""

from sslkit.cli.app import main

if __name__ == "__main__":
    main()
