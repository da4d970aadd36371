"""Two bilinear resizes as one: where each row or column of a result reads in the mask logits."""

import torch
from torch import Tensor

from .modeling.position_encoding import cached_per_shape

TAPS = 4


@cached_per_shape(maxsize=64)
def taps(source: int, padded: int, image: int, output: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Resizing an axis from `source` to `padded` positions, cutting it to `image`, and resizing to `output`.

    Returns:
        (output, 4) int32 source positions and float32 weights, on the device; kept between calls.
    """
    low, high, outer = neighbours(image, output)
    below, above, inner = neighbours(source, padded)
    index = torch.stack([below[low], above[low], below[high], above[high]], 1)
    first, second = inner[low], inner[high]
    weight = torch.stack([(1 - outer) * (1 - first), (1 - outer) * first, outer * (1 - second), outer * second], 1)
    return index.int().to(device), weight.to(device)


def neighbours(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear resizing of one axis without aligned corners: both source positions, and the share of the second.

    Returns:
        (target,) int64, int64 and float32.
    """
    position = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
