"""Multi-scale deformable attention on CUDA, in Triton: nothing stored between sampling and summing.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, L levels, P points, N = L*P.

One program serves `ROWS` queries of one image and head: a tile of rows by channels, summed in float32 whatever the
type of the values. The backward pass adds to the values' gradient atomically, as grid_sample does on CUDA: its
last bits may differ from run to run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..position_encoding import cached_per_shape

ROWS = 16

Shapes = Sequence[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: None) -> Tensor:
    """
    Args:
        value: (B, S, A, D).
        points: (B, Q, A*N*2), locations in [0, 1].
        weights: (B, Q, A*N).
        reference: unused; offsets and softmax are computed by PyTorch on this device.

    Returns:
        (B, Q, A*D), in the type of `value`.
    """
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    out = torch.empty(batch, queries, heads * channels, dtype=value.dtype, device=value.device)
    if out.numel():
        with _device(value):
            _forward[_grid(queries, batch * heads)](out, *_arguments(value, shapes, points, weights))
    return out


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward`, float32: (B, S, A, D), and (B, Q, A*N*3) of points and weights side by side."""
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(
            "the gradient of deformable attention on CUDA adds atomically, in no fixed order: train without "
            "torch.use_deterministic_algorithms, or on the CPU"
        )
    batch, _, heads, _ = value.shape
    queries = points.shape[1]
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_points = torch.empty(points.shape, dtype=torch.float32, device=value.device)
    grad_weights = torch.empty(weights.shape, dtype=torch.float32, device=value.device)
    if grad_weights.numel():
        outputs = (grad.contiguous(), grad_value, grad_points, grad_weights)
        with _device(value):
            _backward[_grid(queries, batch * heads)](*outputs, *_arguments(value, shapes, points, weights))
    return grad_value, torch.cat([grad_points, grad_weights], -1)


def _device(value: Tensor) -> torch.cuda.device:
    """Launches go to the current device; -1 (a CPU tensor, in Triton's interpreter) changes nothing."""
    return torch.cuda.device(value.device.index if value.is_cuda else -1)


def _grid(queries: int, images_and_heads: int) -> tuple[int, int]:
    return triton.cdiv(queries, ROWS), images_and_heads


def _arguments(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> tuple:
    _, pixels, heads, channels = value.shape
    count = weights.shape[2] // heads
    levels = _levels(tuple(shapes), value.device)
    width = triton.next_power_of_2(channels)
    tensors = (value.contiguous(), levels, points.contiguous(), weights.contiguous())
    return (*tensors, pixels, points.shape[1], heads, channels, len(shapes), count // len(shapes), ROWS, width)


@cached_per_shape()
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """(L, 2); kept, because copying them to the device at each call would make the host wait."""
    return torch.tensor(shapes, dtype=torch.int32, device=device)


@triton.jit
def _forward(
    out,
    value,
    levels,
    points,
    weights,
    pixels,
    queries,
    heads: tl.constexpr,
    channels: tl.constexpr,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
):
    query = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, width)
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row = (image * queries + query) * heads + head  # of points, weights and output
    alive, wide = query < queries, channel < channels
    total = tl.zeros((rows, width), tl.float32)
    start = image * pixels
    for level in range(num_levels):
        h, w = tl.load(levels + 2 * level), tl.load(levels + 2 * level + 1)
        for point in range(num_points):
            at = row * (num_levels * num_points) + level * num_points + point
            x = tl.load(points + 2 * at, alive, 0.0).to(tl.float32) * w - 0.5
            y = tl.load(points + 2 * at + 1, alive, 0.0).to(tl.float32) * h - 0.5
            factor = tl.load(weights + at, alive, 0.0).to(tl.float32)
            factor += 0.0 * (x + y)  # a NaN must stay visible
            # Whatever lies further out weighs nothing; clamped, it converts to an integer.
            x, y = tl.minimum(tl.maximum(x, -2.0), w + 1.0), tl.minimum(tl.maximum(y, -2.0), h + 1.0)
            left, top = tl.floor(x), tl.floor(y)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, top + corner // 2
                share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - line)) * factor
                inside = alive & (column >= 0) & (column < w) & (line >= 0) & (line < h)
                source = ((start + (line * w + column).to(tl.int64)) * heads + head) * channels
                samples = tl.load(value + source[:, None] + channel[None, :], inside[:, None] & wide[None, :], 0.0).to(
                    tl.float32
                )
                total += share[:, None] * samples
        start += h * w
    tl.store(out + row[:, None] * channels + channel[None, :], total, alive[:, None] & wide[None, :])


@triton.jit
def _backward(
    grad,
    grad_value,
    grad_points,
    grad_weights,
    value,
    levels,
    points,
    weights,
    pixels,
    queries,
    heads: tl.constexpr,
    channels: tl.constexpr,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
):
    query = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, width)
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row = (image * queries + query) * heads + head
    alive, wide = query < queries, channel < channels
    slope = tl.load(grad + row[:, None] * channels + channel[None, :], alive[:, None] & wide[None, :], 0.0).to(
        tl.float32
    )
    start = image * pixels
    for level in range(num_levels):
        h, w = tl.load(levels + 2 * level), tl.load(levels + 2 * level + 1)
        for point in range(num_points):
            at = row * (num_levels * num_points) + level * num_points + point
            x = tl.load(points + 2 * at, alive, 0.0).to(tl.float32) * w - 0.5
            y = tl.load(points + 2 * at + 1, alive, 0.0).to(tl.float32) * h - 0.5
            factor = tl.load(weights + at, alive, 0.0).to(tl.float32)
            factor += 0.0 * (x + y)
            x, y = tl.minimum(tl.maximum(x, -2.0), w + 1.0), tl.minimum(tl.maximum(y, -2.0), h + 1.0)
            left, top = tl.floor(x), tl.floor(y)
            along_x, along_y = tl.zeros((rows,), tl.float32), tl.zeros((rows,), tl.float32)
            along_weight = tl.zeros((rows,), tl.float32)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, top + corner // 2
                share_x, share_y = 1 - tl.abs(x - column), 1 - tl.abs(y - line)
                inside = alive & (column >= 0) & (column < w) & (line >= 0) & (line < h)
                source = ((start + (line * w + column).to(tl.int64)) * heads + head) * channels
                place = source[:, None] + channel[None, :]
                there = inside[:, None] & wide[None, :]
                samples = tl.load(value + place, there, 0.0).to(tl.float32)
                product = tl.sum(samples * slope, 1)
                along_weight += share_x * share_y * product
                along_x += (2 * (corner % 2) - 1) * share_y * product
                along_y += (2 * (corner // 2) - 1) * share_x * product
                tl.atomic_add(grad_value + place, (share_x * share_y * factor)[:, None] * slope, there)
            tl.store(grad_points + 2 * at, along_x * factor * w, alive)
            tl.store(grad_points + 2 * at + 1, along_y * factor * h, alive)
            tl.store(grad_weights + at, along_weight, alive)
        start += h * w
