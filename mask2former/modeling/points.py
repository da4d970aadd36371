"""Masks at points: what matching and mask losses compare (paper, section 3.3).

M masks, P points, C channels, H W size of a mask. Points are (x, y) in [0, 1]; (0, 0) is the outer corner of the
first pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness
from torch import Tensor


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of masks that stay in their own dtype: no float copy of large boolean masks is made.

    Args:
        masks: (M, H, W), bool, integer or float; 0 outside.
        points: (M, P, 2), or (1, P, 2) shared by all masks.

    Returns:
        (M, P) float32.
    """
    pixels, weights = corners(points, masks.shape[-2:])
    flat = masks.flatten(1)
    result = torch.zeros(len(masks), points.shape[1], device=masks.device)
    for pixel, weight in zip(pixels.unbind(-1), weights.unbind(-1), strict=True):
        result += weight * (flat[:, pixel[0]] if len(pixel) == 1 else flat.gather(1, pixel))
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

    Args:
        mask_logits: (M, H, W).
        num_points: P.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: share of P taken as the candidates with logits nearest to 0; the rest is uniform.

    Returns:
        (M, P, 2).
    """
    return get_uncertain_point_coords_with_randomness(
        mask_logits[:, None],
        lambda logits: -logits.abs(),
        num_points,
        oversample_ratio,
        importance_sample_ratio,
    )
