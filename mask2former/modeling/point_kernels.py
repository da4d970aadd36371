"""Masks at points on the CPU: one pass over the points, where PyTorch would write down four corners and weights.

M rows of points, G masks, P points, H W size of a mask.
"""

import numpy as np
import torch
from torch import Tensor

from .ops.numba_tools import compiled
from .ops.threads import in_threads

_F = np.float32
_HALF = _F(0.5)


def sample_masks(masks: Tensor, points: Tensor, segments: Tensor) -> Tensor:
    """See `points.sample_masks`; `points` has one row, or one for each of the `segments` (M)."""
    kind = torch.uint8 if masks.dtype == torch.bool else masks.dtype
    out = torch.empty(len(segments), points.shape[1])
    arguments = (
        masks.detach().contiguous().view(kind).numpy(),
        points.detach().float().contiguous().numpy(),
        segments.numpy(),
        out.numpy(),
    )
    in_threads(_sample, len(segments), out.numel(), arguments)
    return out


@compiled
def _sample(first, last, masks, points, segments, out):
    """Items are rows of `out`."""
    height, width = masks.shape[1], masks.shape[2]
    for item in range(first, last):
        mask, row = masks[segments[item]], points[item if len(points) > 1 else 0]
        for n in range(row.shape[0]):
            x, y = row[n, 0] * _F(width) - _HALF, row[n, 1] * _F(height) - _HALF
            left, top = int(np.floor(x)), int(np.floor(y))
            right_share, below_share = x - _F(left), y - _F(top)
            if 0 <= left < width - 1 and 0 <= top < height - 1:
                above = (_F(1) - right_share) * _F(mask[top, left]) + right_share * _F(mask[top, left + 1])
                below = (_F(1) - right_share) * _F(mask[top + 1, left]) + right_share * _F(mask[top + 1, left + 1])
                out[item, n] = (_F(1) - below_share) * above + below_share * below
                continue
            total = _F(0)
            for j in range(2):
                for i in range(2):
                    if 0 <= left + i < width and 0 <= top + j < height:
                        share = right_share if i else _F(1) - right_share
                        total += share * (below_share if j else _F(1) - below_share) * _F(mask[top + j, left + i])
            out[item, n] = total
