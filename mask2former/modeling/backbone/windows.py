"""An image cut into windows, and what the shift of the windows may not bring together.

B images, C channels, H W size of an image, N = w*w pixels of a window, T windows of an image.
"""

import torch
from torch import Tensor

from ..position_encoding import cached_per_shape


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, T, N, C), windows and their pixels in raster order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def from_windows(windows: Tensor, height: int, width: int, window: int) -> Tensor:
    """The inverse of `to_windows`."""
    batch, _, _, channels = windows.shape
    x = windows.reshape(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


@cached_per_shape(maxsize=16)
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Rolling brings opposite edges of the image into one window: keep them from seeing each other.

    Returns:
        (T, N, N), 0 between pixels that were neighbours before the roll, otherwise -100.
    """
    return parting_mask(shift_regions(height, width, window, shift, device))


def shift_regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """A number for each of the nine parts of a rolled image that were not neighbours before, (T, N)."""
    y, x = (_regions(size, window, shift, device) for size in (height, width))
    return to_windows((3 * y[:, None] + x)[None, :, :, None], window)[0, :, :, 0]


def parting_mask(regions: Tensor) -> Tensor:
    """(T, N) -> (T, N, N), 0 between pixels of one region, otherwise -100."""
    return (regions[:, :, None] != regions[:, None]) * -100.0


def _regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """0 before the last window, 1 in it, 2 for what the roll brought from the other edge; (size,)."""
    at = torch.arange(size, device=device)
    return (at >= size - window).long() + (at >= size - shift).long()
