"""Multi-scale deformable attention (Deformable DETR): one function, several back ends, the same numbers.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, L levels, P points.
"""

from collections.abc import Sequence

from torch import Tensor

from .reference import ms_deform_attn_reference, sampling_points


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Sum `value`, sampled bilinearly at each query's points on every level, with the query's weights.

    Args:
        value: (B, S, A, D), levels one after another, each in raster order.
        spatial_shapes: (h, w) of each level.
        sampling_locations: (B, Q, A, L, P, 2), x and y, (0, 0) and (1, 1) being the outer corners of a level.
        attention_weights: (B, Q, A, L, P).

    Returns:
        (B, Q, A*D), in the type of `value`.
    """
    return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_projected(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets_and_logits: Tensor,
    backend: str | None = None,
) -> Tensor:
    """`ms_deform_attn` from the raw projections of the queries."""
    locations, weights = sampling_points(spatial_shapes, reference_points, offsets_and_logits, value.shape[2])
    return ms_deform_attn(value, spatial_shapes, locations, weights, backend)
