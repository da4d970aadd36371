"""Pillow's bilinear resize of a part of an enlarged image, to the bit: what a crop throws away is never computed.

Only enlarging: which axis comes first when an image shrinks, and so the rounding, differs between versions of Pillow.
h w size of the source, H W size it is enlarged to; a window of the enlarged image is what comes out.
"""

import numpy as np

from ..modeling.ops.numba_tools import compiled

# Pillow's weights are whole numbers, in units of 2 ** -BITS.
BITS = 22


def enlarge_window(image: np.ndarray, size: tuple[int, int], top: int, left: int, out: np.ndarray) -> None:
    """Enlarge an image and write the part that starts at (top, left).

    Args:
        image: (h, w, 3) uint8, strides of any kind.
        size: (H, W), neither smaller than before.
        top, left: of the window, which ends where `out` does or the enlarged image.
        out: (3, height, width) uint8; pixels beyond the enlarged image are left alone.
    """
    height, width = min(out.shape[1], size[0] - top), min(out.shape[2], size[1] - left)
    rows, row_weights = _taps(image.shape[0], size[0], top, height)
    columns, column_weights = _taps(image.shape[1], size[1], left, width)
    first, last = int(rows[0]), int((rows + row_weights.shape[1]).max())
    wide = np.empty((3, min(last, image.shape[0]) - first, width), np.uint8)
    _resize_rows(image[first:last], columns, column_weights, wide)
    _resize_columns(wide, rows - first, row_weights, out[:, :height, :width])


def _taps(source: int, target: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which source positions make positions start to start + count of an enlarged axis.

    Returns:
        (count,) int32 first source position and (count, taps) int32 weights, 0 where a position has less.
    """
    centre = (np.arange(start, start + count) + 0.5) * (source / target)
    first = np.maximum((centre - 0.5).astype(np.int32), 0)
    place = first[:, None] + np.arange(3)
    weights = np.maximum(1 - np.abs(place - centre[:, None] + 0.5), 0) * (place < source)
    total = weights[:, 0] + weights[:, 1] + weights[:, 2]
    return first, (weights / total[:, None] * (1 << BITS) + 0.5).astype(np.int32)


@compiled
def _resize_rows(image, first, weights, out):
    """out[c, y, x] from image[y, :, c]."""
    for y in range(image.shape[0]):
        for x in range(out.shape[2]):
            red = green = blue = np.int32(1 << (BITS - 1))
            for tap in range(weights.shape[1]):
                weight = weights[x, tap]
                if weight:  # beyond the last pixel there is no other
                    at = first[x] + tap
                    red += image[y, at, 0] * weight
                    green += image[y, at, 1] * weight
                    blue += image[y, at, 2] * weight
            out[0, y, x], out[1, y, x], out[2, y, x] = red >> BITS, green >> BITS, blue >> BITS


@compiled
def _resize_columns(image, first, weights, out):
    """out[c, y, x] from image[c, :, x]."""
    sums = np.empty(out.shape[2], np.int32)
    for y in range(out.shape[1]):
        for channel in range(3):
            sums[:] = 1 << (BITS - 1)
            for tap in range(weights.shape[1]):
                weight = weights[y, tap]
                if weight:
                    row = image[channel, first[y] + tap]
                    for x in range(len(sums)):
                        sums[x] += row[x] * weight
            target = out[channel, y]
            for x in range(len(sums)):
                target[x] = sums[x] >> BITS
