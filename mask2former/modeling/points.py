"""Masks at points: what matching and mask losses compare (paper, section 3.3).

M masks, P points, C channels, H W size of a mask. Points are (x, y) in [0, 1]; (0, 0) is the outer corner of the
first pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from .ops.deform_attn import choose_backend


def sample_masks(masks: Tensor, points: Tensor, segments: Tensor | None = None) -> Tensor:
    """Bilinear samples of masks that stay in their own dtype: no float copy of large boolean masks is made.

    Args:
        masks: (G, H, W), bool, uint8 or float32; 0 outside. Gets no gradient.
        points: (M, P, 2), or (1, P, 2) shared by all rows.
        segments: (M) int64, the mask of each row; None: every mask has one row.

    Returns:
        (M, P) float32.
    """
    if segments is None:
        segments = torch.arange(len(masks), device=masks.device)
    if choose_backend(masks.device.type, torch.float32) == "numba" and not torch.compiler.is_compiling():
        from . import point_kernels  # here: Numba takes its time to import

        return point_kernels.sample_masks(masks, points, segments)
    pixels, weights = corners(points, masks.shape[-2:])
    first_pixel = segments[:, None] * masks[0].numel() if len(masks) else segments[:, None]
    result = torch.zeros(len(segments), points.shape[1], device=masks.device)
    for pixel, weight in zip(pixels.unbind(-1), weights.unbind(-1), strict=True):
        result += weight * masks.flatten()[first_pixel + pixel]
    return result


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of whole feature vectors: faster than channel by channel where there are many channels.

    Args:
        features: (H, W, C), contiguous, float32; 0 outside.
        points: (P, 2).

    Returns:
        (P, C) float32.
    """
    pixels, weights = corners(points, features.shape[:2])
    return F.embedding_bag(pixels, features.flatten(0, 1), per_sample_weights=weights, mode="sum")


def corners(points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: (..., 2) to (..., 4) flat indices and (..., 4) float32 bilinear weights.

    A pixel outside the (H, W) map has weight 0 (and index 0).
    """
    height, width = size
    x, y = (points[..., 0].float() * width - 0.5), (points[..., 1].float() * height - 0.5)
    left, top = x.floor(), y.floor()
    column = torch.stack([left, left + 1, left, left + 1], -1)
    row = torch.stack([top, top, top + 1, top + 1], -1)
    weight = (1 - (column - x[..., None]).abs()) * (1 - (row - y[..., None]).abs())
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return ((row * width + column) * inside).long(), weight * inside


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points for the mask losses, most of them where the prediction is undecided.

    The same points as PointRend's function draws, but in no order: sorting them takes as long as choosing them.

    Args:
        mask_logits: (M, H, W).
        num_points: P.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: share of P taken as the candidates with logits nearest to 0; the rest is uniform.

    Returns:
        (M, P, 2).
    """
    count, device = len(mask_logits), mask_logits.device
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=device)
    certainty = point_sample(mask_logits[:, None], candidates, align_corners=False)[:, 0].abs_()  # (M, candidates)
    chosen = certainty.topk(num_uncertain, largest=False, sorted=False).indices
    points = torch.rand(count, num_points - num_uncertain, 2, device=device)
    return torch.cat([candidates.take_along_dim(chosen[..., None], 1), points], 1)
