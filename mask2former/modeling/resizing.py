"""Bilinear resizing of feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops.deform_attn import has_cpu_kernels
from .packed_linear import may_run_in_blocks


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) to (B, C, h, w), without aligned corners.

    On the CPU without gradients maps that keep their channels first shrink by a kernel: PyTorch would turn them around.
    """
    shrinks = size[0] <= x.shape[2] and size[1] <= x.shape[3] and x.is_contiguous() and x.dtype == torch.float32
    if not (shrinks and may_run_in_blocks(x) and has_cpu_kernels(x.dtype)):
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    from .pyramid_kernels import shrink  # here: Numba takes its time to import

    out = x.new_empty(*x.shape[:2], *size)
    shrink(x.flatten(0, 1), out.flatten(0, 1))
    return out
