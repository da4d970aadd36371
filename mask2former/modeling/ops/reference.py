"""Multi-scale deformable attention in plain PyTorch: runs on every device, traces and exports.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, L levels, P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples; arguments and result as `mask2former.modeling.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    if batch * queries == 0:  # grid_sample refuses empty batches; the sum keeps the graph connected
        return value.new_zeros(batch, queries, heads * channels) + 0 * value.sum()
    # Half precision would move the sampling points by whole pixels.
    work = torch.float64 if value.dtype == torch.float64 else torch.float32
    levels = value.to(work).split([h * w for h, w in spatial_shapes], 1)
    grids = (sampling_locations.to(work) * 2 - 1).transpose(1, 2)  # (B, A, Q, L, P, 2), in [-1, 1]
    weights = attention_weights.to(work).transpose(1, 2)  # (B, A, Q, L, P)
    total = torch.zeros((), dtype=work, device=value.device)
    for level, (height, width) in enumerate(spatial_shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].reshape(batch * heads, queries, points, 2)
        samples = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].reshape(batch * heads, 1, queries, points)
        total = total + (samples * weight).sum(-1)  # (B * A, D, Q)
    return total.reshape(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def sampling_points(
    spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor, offsets_and_logits: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Locations and weights from the raw projections of the queries, as `ms_deform_attn_projected` takes them.

    Args:
        reference_points: (Q, 2), x and y in [0, 1].
        offsets_and_logits: (B, Q, A*L*P*3): offsets in pixels of their level (A, L, P, 2), then logits (A, L, P).

    Returns:
        (B, Q, A, L, P, 2) sampling locations and (B, Q, A, L, P) attention weights, float32 at least.
    """
    batch, queries, columns = offsets_and_logits.shape
    levels = len(spatial_shapes)
    points = columns // (3 * heads * levels)
    if offsets_and_logits.dtype != torch.float64:
        offsets_and_logits = offsets_and_logits.float()
    offsets, logits = offsets_and_logits.split([2 * columns // 3, columns // 3], -1)
    offsets = offsets.reshape(batch, queries, heads, levels, points, 2)
    sizes = offsets.new_tensor([[w, h] for h, w in spatial_shapes])[:, None]  # (L, 1, 2)
    locations = reference_points[:, None, None, None] + offsets / sizes
    weights = logits.reshape(batch, queries, heads, levels * points).softmax(-1)
    return locations, weights.reshape(batch, queries, heads, levels, points)
