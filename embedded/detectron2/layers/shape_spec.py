"""What one module tells the next about a feature map, without an example tensor."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known before an image comes in."""

    # Channels and stride are Any: a backbone gives both, and whoever reads them counts on that.
    channels: Any = None
    height: int | None = None
    width: int | None = None
    stride: Any = None
