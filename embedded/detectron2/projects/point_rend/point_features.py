"""Reading feature maps at points (PointRend, Kirillov et al. 2020, section 3.1).

N maps, C channels, H W size of the maps, P points. Points are (x, y), where (0, 0) is the top left corner of the map
and (1, 1) its bottom right corner.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def point_sample(input: Tensor, point_coords: Tensor, **kwargs: Any) -> Tensor:
    """Read maps at points, by default bilinearly.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2), or (N, Hg, Wg, 2) for points that lie on a grid.
        kwargs: passed on to `torch.nn.functional.grid_sample`; `align_corners` is False unless given.

    Returns:
        (N, C, P), or (N, C, Hg, Wg) for a grid.
    """
    kwargs.setdefault("align_corners", False)
    grid = point_coords * 2 - 1  # grid_sample counts from -1 to 1
    if grid.ndim == 4:
        return F.grid_sample(input, grid, **kwargs)
    return F.grid_sample(input, grid[:, :, None], **kwargs)[..., 0]


def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Callable[[Tensor], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Choose points to train on: the most uncertain of many random ones, and some more at random.

    Args:
        coarse_logits: (N, C, H, W).
        uncertainty_func: (N, C, S) logits to (N, 1, S), larger where the prediction is less certain.
        num_points: P.
        oversample_ratio: how many times P points to draw before choosing among them, at least 1.
        importance_sample_ratio: which part of the P points is chosen by uncertainty, from 0 to 1.

    Returns:
        (N, P, 2), without gradient: first the uncertain points, then the random ones.
    """
    assert oversample_ratio >= 1, f"oversample_ratio is {oversample_ratio}, expected at least 1"
    assert 0 <= importance_sample_ratio <= 1, f"importance_sample_ratio is {importance_sample_ratio}, not in [0, 1]"
    num_maps, device = len(coarse_logits), coarse_logits.device
    num_uncertain = int(importance_sample_ratio * num_points)

    # The order of the draws is part of the contract: equal seeds give equal points.
    candidates = torch.rand(num_maps, int(num_points * oversample_ratio), 2, device=device)
    uncertainty = uncertainty_func(point_sample(coarse_logits, candidates, align_corners=False))[:, 0]  # (N, S)
    chosen = uncertainty.topk(num_uncertain, dim=1).indices
    points = candidates.take_along_dim(chosen[:, :, None], dim=1)
    if num_uncertain == num_points:
        return points
    anywhere = torch.rand(num_maps, num_points - num_uncertain, 2, device=device)
    return torch.cat([points, anywhere], dim=1)
