"""Data sets: importing this registers their names and reads nothing."""

from . import register_shapes  # noqa: F401
