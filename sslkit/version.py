"""The version, in a file of its own: everything may name it, and nothing is imported with it."""

__version__ = "0.1.0"
