"""Multi-scale deformable attention on CUDA, in Triton: nothing stored between sampling and summing.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, L levels, P points, N = L*P.

One program serves `ROWS` queries of one image and head: a tile of rows by channels, summed in float32 whatever the
type of the values. Both forms of the operator are served, see `numba_kernels.forward`. The backward pass adds to the
values' gradient atomically, as grid_sample does on CUDA: its last bits may differ from run to run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..position_encoding import cached_per_shape

# Measured on an H200: other tiles and more warps take up to three times as long.
ROWS = 8
FORWARD_WARPS, BACKWARD_WARPS = 1, 2

Shapes = Sequence[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None) -> Tensor:
    """The two forms of the operator.

    Args:
        value: (B, S, A, D).
        shapes: (h, w) of each level.
        points: (B, Q, A*N*2), locations in [0, 1]; or (B, Q, A*N*3), offsets in pixels, then logits.
        weights: (B, Q, A*N), attention weights; or None.
        reference: None; or (Q, 2), the points that the offsets start from.

    Returns:
        (B, Q, A*D), in the type of `value`.
    """
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    out = torch.empty(batch, queries, heads * channels, dtype=value.dtype, device=value.device)
    if out.numel():
        with _device(value):
            arguments = _arguments(value, shapes, points, weights, reference)
            _forward[_grid(queries, batch * heads)](out, *arguments, num_warps=FORWARD_WARPS)
    return out


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward`, float32.

    Returns:
        (B, S, A, D) of the values, and (B, Q, A*N*3) of points and weights, or offsets and logits, side by side.
    """
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(
            "the gradient of deformable attention on CUDA adds atomically, in no fixed order: train without "
            "torch.use_deterministic_algorithms, or on the CPU"
        )
    batch, _, heads, _ = value.shape
    queries = points.shape[1]
    columns = points.shape[2] + (0 if weights is None else weights.shape[2])
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_inputs = torch.empty(batch, queries, columns, dtype=torch.float32, device=value.device)
    if grad_inputs.numel():
        arguments = _arguments(value, shapes, points, weights, reference)
        with _device(value):
            _backward[_grid(queries, batch * heads)](
                grad.contiguous(), grad_value, grad_inputs, *arguments, num_warps=BACKWARD_WARPS
            )
    return grad_value, grad_inputs


def _device(value: Tensor) -> torch.cuda.device:
    """Launches go to the current device; -1 (a CPU tensor, in Triton's interpreter) changes nothing."""
    return torch.cuda.device(value.device.index if value.is_cuda else -1)


def _grid(queries: int, images_and_heads: int) -> tuple[int, int]:
    return triton.cdiv(queries, ROWS), images_and_heads


def _arguments(
    value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None
) -> tuple[object, ...]:
    """The kernels' common arguments."""
    _, pixels, heads, channels = value.shape
    value, points = value.contiguous(), points.contiguous()
    fused = weights is None
    if fused:  # logits follow on offsets, in the same rows
        weights, column = points, points.shape[2] // 3 * 2
        count = points.shape[2] // (3 * heads)
    else:
        weights, column = weights.contiguous(), 0
        count = weights.shape[2] // heads
    reference = points if reference is None else reference.contiguous()
    return (
        value,
        _levels(tuple(shapes), value.device),
        points,
        weights,
        reference,
        pixels,
        points.shape[1],
        points.shape[2],
        weights.shape[2],
        column,
        heads,
        channels,
        len(shapes),
        count // len(shapes),
        ROWS,
        triton.next_power_of_2(channels),
        triton.next_power_of_2(count),
        fused,
    )


@cached_per_shape()
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """(L, 2); kept, because copying them to the device at each call would make the host wait."""
    return torch.tensor(shapes, dtype=torch.int32, device=device)


@triton.jit
def _softmax(logits, at, alive, count: tl.constexpr):
    """Of rows of `count` logits: the largest, and one over the sum of the exponentials of what each is below it."""
    top = tl.load(logits + at, alive, 0.0).to(tl.float32)
    for n in range(1, count):
        top = tl.maximum(top, tl.load(logits + at + n, alive, 0.0).to(tl.float32))
    total = tl.zeros_like(top)
    for n in range(count):
        total += tl.exp(tl.load(logits + at + n, alive, 0.0).to(tl.float32) - top)
    return top, 1 / total


@triton.jit
def _place(queries, heads: tl.constexpr, channels: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """What a program serves: queries, channels, image and head; the queries' rows in all images; which there are."""
    query = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, width)
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    return query, channel, image, head, image * queries + query, query < queries, channel < channels


@triton.jit
def _start(reference, weights, query, weight_at, alive, count: tl.constexpr, rows: tl.constexpr, fused: tl.constexpr):
    """The queries' reference points, and what `_softmax` says of their logits; zeros where nothing is fused."""
    right, down = tl.zeros((rows,), tl.float32), tl.zeros((rows,), tl.float32)
    top, scale = right, down
    if fused:
        right = tl.load(reference + 2 * query, alive, 0.0)
        down = tl.load(reference + 2 * query + 1, alive, 0.0)
        top, scale = _softmax(weights, weight_at, alive, count)
    return right, down, top, scale


@triton.jit
def _point(points, weights, point_at, weight_at, alive, w, h, right, down, top, scale, fused: tl.constexpr):
    """Where a point is, in pixels of its level with pixel centres on whole numbers, and its attention weight."""
    x = tl.load(points + point_at, alive, 0.0).to(tl.float32)
    y = tl.load(points + point_at + 1, alive, 0.0).to(tl.float32)
    factor = tl.load(weights + weight_at, alive, 0.0).to(tl.float32)
    if fused:
        x, y = x + (right * w - 0.5), y + (down * h - 0.5)
        factor = tl.exp(factor - top) * scale
    else:
        x, y = x * w - 0.5, y * h - 0.5
    factor += 0.0 * (x + y)  # a NaN must stay visible
    # Whatever lies further out weighs nothing; clamped, it converts to an integer.
    x, y = tl.minimum(tl.maximum(x, -2.0), w + 1.0), tl.minimum(tl.maximum(y, -2.0), h + 1.0)
    return x, y, factor


@triton.jit
def _forward(
    out,
    value,
    levels,
    points,
    weights,
    reference,
    pixels,
    queries,
    point_row,
    weight_row,
    weight_column,
    heads: tl.constexpr,
    channels: tl.constexpr,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    padded_count: tl.constexpr,
    fused: tl.constexpr,
):
    query, channel, image, head, row, alive, wide = _place(queries, heads, channels, rows, width)
    count: tl.constexpr = num_levels * num_points
    point_at = row * point_row + head * (2 * count)
    weight_at = row * weight_row + weight_column + head * count
    right, down, top, scale = _start(reference, weights, query, weight_at, alive, count, rows, fused)
    total = tl.zeros((rows, width), tl.float32)
    start = image * pixels
    for level in range(num_levels):
        h, w = tl.load(levels + 2 * level), tl.load(levels + 2 * level + 1)
        for point in range(num_points):
            n = level * num_points + point
            x, y, factor = _point(
                points, weights, point_at + 2 * n, weight_at + n, alive, w, h, right, down, top, scale, fused
            )
            left, upper = tl.floor(x), tl.floor(y)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, upper + corner // 2
                share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - line)) * factor
                inside = alive & (column >= 0) & (column < w) & (line >= 0) & (line < h)
                source = ((start + (line * w + column).to(tl.int64)) * heads + head) * channels
                there = inside[:, None] & wide[None, :]
                samples = tl.load(value + source[:, None] + channel[None, :], there, 0.0).to(tl.float32)
                total += share[:, None] * samples
        start += h * w
    place = (row * heads + head) * channels
    tl.store(out + place[:, None] + channel[None, :], total, alive[:, None] & wide[None, :])


@triton.jit
def _backward(
    grad,
    grad_value,
    grad_inputs,
    value,
    levels,
    points,
    weights,
    reference,
    pixels,
    queries,
    point_row,
    weight_row,
    weight_column,
    heads: tl.constexpr,
    channels: tl.constexpr,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    padded_count: tl.constexpr,
    fused: tl.constexpr,
):
    query, channel, image, head, row, alive, wide = _place(queries, heads, channels, rows, width)
    count: tl.constexpr = num_levels * num_points
    point_at = row * point_row + head * (2 * count)
    weight_at = row * weight_row + weight_column + head * count
    grad_at = row * (3 * heads * count) + head * (2 * count)
    grad_weight_at = row * (3 * heads * count) + (2 * heads + head) * count
    right, down, top, scale = _start(reference, weights, query, weight_at, alive, count, rows, fused)
    number = tl.arange(0, padded_count)
    slopes = tl.zeros((rows, padded_count), tl.float32)  # d/dweight of each point
    place = (row * heads + head) * channels
    slope = tl.load(grad + place[:, None] + channel[None, :], alive[:, None] & wide[None, :], 0.0).to(tl.float32)
    start = image * pixels
    for level in range(num_levels):
        h, w = tl.load(levels + 2 * level), tl.load(levels + 2 * level + 1)
        for point in range(num_points):
            n = level * num_points + point
            x, y, factor = _point(
                points, weights, point_at + 2 * n, weight_at + n, alive, w, h, right, down, top, scale, fused
            )
            left, upper = tl.floor(x), tl.floor(y)
            along_x, along_y = tl.zeros((rows,), tl.float32), tl.zeros((rows,), tl.float32)
            along_weight = tl.zeros((rows,), tl.float32)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, upper + corner // 2
                share_x, share_y = 1 - tl.abs(x - column), 1 - tl.abs(y - line)
                inside = alive & (column >= 0) & (column < w) & (line >= 0) & (line < h)
                source = ((start + (line * w + column).to(tl.int64)) * heads + head) * channels
                at = source[:, None] + channel[None, :]
                there = inside[:, None] & wide[None, :]
                samples = tl.load(value + at, there, 0.0).to(tl.float32)
                product = tl.sum(samples * slope, 1)
                along_weight += share_x * share_y * product
                along_x += (2 * (corner % 2) - 1) * share_y * product
                along_y += (2 * (corner // 2) - 1) * share_x * product
                tl.atomic_add(grad_value + at, (share_x * share_y * factor)[:, None] * slope, there)
            if not fused:
                along_x, along_y = along_x * w, along_y * h
            tl.store(grad_inputs + grad_at + 2 * n, along_x * factor, alive)
            tl.store(grad_inputs + grad_at + 2 * n + 1, along_y * factor, alive)
            slopes = tl.where(number[None, :] == n, along_weight[:, None], slopes)
        start += h * w
    there = alive[:, None] & (number < count)[None, :]
    if fused:
        logits = tl.load(weights + weight_at[:, None] + number[None, :], there, float("-inf")).to(tl.float32)
        attention = tl.exp(logits - top[:, None]) * scale[:, None]
        slopes = attention * (slopes - tl.sum(attention * slopes, 1)[:, None])
    tl.store(grad_inputs + grad_weight_at[:, None] + number[None, :], slopes, there)
