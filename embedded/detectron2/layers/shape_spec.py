"""What one module tells the next about a feature map, without an example tensor."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known before an image comes in."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
