"""Names that other scripts import next to ours, for models that are not here."""

from typing import Any

from detectron2._unsupported import refuse


class _NeedsUpstream:
    """Importable, so that a script's import line works; constructing one says what to install."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse(f"structures.{type(self).__name__}")


class Keypoints(_NeedsUpstream):
    """Stub."""


class RotatedBoxes(_NeedsUpstream):
    """Stub."""


class ROIMasks(_NeedsUpstream):
    """Stub."""
