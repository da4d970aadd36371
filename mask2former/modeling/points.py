"""Masks at points: what matching and mask losses compare (paper, section 3.3).

M masks, P points, H W size of a mask. Points are (x, y) in [0, 1], (0, 0) the outer corner of the first pixel.
"""

import torch
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
    height, width = masks.shape[-2:]
    xy = points.float() * points.new_tensor([width, height], dtype=torch.float32) - 0.5  # (M, P, 2) in pixels
    corner = xy.floor()
    fraction = xy - corner
    corner = corner.long()
    flat = masks.flatten(1)
    result = torch.zeros(len(masks), points.shape[1], device=masks.device)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[..., 0] + dx, corner[..., 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        weight = (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (fraction[..., 1] if dy else 1 - fraction[..., 1])
        index = (y * width + x).where(inside, 0)  # (M, P) or (1, P)
        pixels = flat[:, index[0]] if len(index) == 1 else flat.gather(1, index)
        result += pixels * (weight * inside)
    return result


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
