"""Names that other scripts import next to ours, for models that are not here."""

from typing import Any


class _NeedsUpstream:
    """Importable, so that a script's import line works; constructing one says what to install."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} is not part of the embedded detectron2, which holds what Mask2Former needs. "
            "Install upstream detectron2 to use it."
        )


class Keypoints(_NeedsUpstream):
    """Stub."""


class RotatedBoxes(_NeedsUpstream):
    """Stub."""


class ROIMasks(_NeedsUpstream):
    """Stub."""
