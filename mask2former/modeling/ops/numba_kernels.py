"""Multi-scale deformable attention on the CPU: one pass over the queries, nothing stored between the steps.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, N = L*P points of a query and head.

The queries of one head go in blocks of `BLOCK`: points and weights of a block are computed as flat arrays, which LLVM
vectorises over the points; then each query gathers its rows, vectorised over the channels (`vector_loops`). Work is
split between threads so that no two write to the same place, forward over (image, head, block), backward over
(image, head): the order of all sums is the same whatever the number of threads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .numba_tools import OPTIONS, bfloat16_bits, bits, compiled, exponential, number
from .threads import in_threads
from .vector_loops import gather_bfloat16_rows, gather_rows, scatter_rows

BLOCK = 32

Shapes = Sequence[tuple[int, int]]

_F = np.float32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)


def forward(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None) -> Tensor:
    """The two forms of the operator.

    Args:
        value: (B, S, A, D).
        shapes: (h, w) of each level.
        points: (B, Q, A*N*2), locations in [0, 1]; or (B, Q, A*N*3), offsets in pixels, then logits.
        weights: (B, Q, A*N), attention weights; or None.
        reference: None; or (Q, 2), the points that the offsets start from.

    Returns:
        (B, Q, A*D) float32, or bfloat16 like the values.
    """
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    narrow = value.dtype == torch.bfloat16
    out = torch.empty(batch, queries, heads * channels, dtype=torch.bfloat16 if narrow else torch.float32)
    arguments = (_rows(value), *_arguments(shapes, points, weights, reference))
    in_threads(_forward, batch * heads * -(-queries // BLOCK), points.numel(), (*arguments, bits(out)))
    return out


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward`, float32.

    Returns:
        (B, S, A, D) of the values, and (B, Q, A*N*3) of points and weights, or offsets and logits, side by side.
    """
    grad_value = torch.zeros(value.shape)
    columns = points.shape[2] + (0 if weights is None else weights.shape[2])
    grad_inputs = torch.empty(*points.shape[:2], columns)
    arguments = (_array(value), *_arguments(shapes, points, weights, reference))
    outputs = (_array(grad), grad_value.numpy(), grad_inputs.numpy())
    in_threads(_backward, value.shape[0] * value.shape[2], points.numel(), (*arguments, *outputs))
    return grad_value, grad_inputs


def _arguments(shapes: Shapes, points: Tensor, weights: Tensor | None, reference: Tensor | None) -> tuple:
    """The kernels' common arguments: levels, points, weights and their first column, reference, fused."""
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    levels = np.column_stack([sizes, np.cumsum(sizes.prod(1)) - sizes.prod(1)]).astype(np.int32)
    at = _points(points)
    if weights is None:
        assert reference is not None
        return levels, at, at, at.shape[2] // 3 * 2, _array(reference), True
    return levels, at, _points(weights), 0, np.zeros((1, 2), np.float32), False


def _rows(value: Tensor) -> np.ndarray:
    """(B, A, S, D), by their bits if they are bfloat16, else float32."""
    by_head = value.detach().transpose(1, 2).contiguous()
    return bits(by_head) if value.dtype == torch.bfloat16 else _array(by_head)


def _points(x: Tensor) -> np.ndarray:
    """Of points and weights as `_rows` of values."""
    return bits(x.detach().contiguous()) if x.dtype == torch.bfloat16 else _array(x)


def _array(x: Tensor) -> np.ndarray:
    """float32 without gaps; the array keeps the tensor's memory alive."""
    return x.detach().to(torch.float32).contiguous().numpy()


@compiled
def _forward(first, last, value, levels, points, weights, column, reference, fused, out):
    """Items are (image, head, block of queries); one head after another, its part of the values stays in the cache."""
    _, heads, pixels, channels = value.shape
    queries = points.shape[1]
    count = (weights.shape[2] - column) // heads
    size = count * BLOCK
    grid = _tile(levels, count)
    blocks = (queries + BLOCK - 1) // BLOCK
    place, attention = np.empty((2, size), np.float32), np.empty(size, np.float32)
    index, weight = np.empty((4, size), np.int32), np.empty((4, size), np.float32)
    gathered = np.empty(channels, np.float32)
    for item in range(first, last):
        image, head, start = item // blocks // heads, item // blocks % heads, item % blocks * BLOCK
        length = min(BLOCK, queries - start)
        _place(grid, points, weights, column, reference, fused, image, head, start, length, count, place, attention)
        if fused:
            _softmax(attention, length, count)
        _corners(grid, place, attention, length * count, index, weight)
        rows = value.ctypes.data + value.itemsize * channels * (image * heads + head) * pixels
        for i in range(length):
            at, by = index.ctypes.data + 4 * i * count, weight.ctypes.data + 4 * i * count
            target = out[image, start + i, head * channels : (head + 1) * channels]
            if value.itemsize == 2:
                gather_bfloat16_rows(gathered.ctypes.data, rows, at, by, size, count, channels, channels)
                for c in range(channels):
                    target[c] = bfloat16_bits(gathered[c])
            else:
                gather_rows(target.ctypes.data, rows, at, by, size, count, channels, channels)


@compiled
def _backward(first, last, value, levels, points, weights, column, reference, fused, grad, grad_value, grad_inputs):
    """Items are (image, head): each owns its slice of every gradient."""
    _, pixels, heads, channels = value.shape
    queries = points.shape[1]
    count = (weights.shape[2] - column) // heads
    size = count * BLOCK
    grid = _tile(levels, count)
    place, attention = np.empty((2, size), np.float32), np.empty(size, np.float32)
    index, weight = np.empty((4, size), np.int32), np.empty((4, size), np.float32)
    dots = np.empty((4, size), np.float32)
    for item in range(first, last):
        image, head = item // heads, item % heads
        rows = 4 * channels * (image * pixels * heads + head)
        for start in range(0, queries, BLOCK):
            length = min(BLOCK, queries - start)
            _place(grid, points, weights, column, reference, fused, image, head, start, length, count, place, attention)
            if fused:
                _softmax(attention, length, count)
            _corners(grid, place, attention, length * count, index, weight)
            dots[:] = _ZERO
            for i in range(length):
                scatter_rows(
                    grad.ctypes.data + 4 * channels * ((image * queries + start + i) * heads + head),
                    value.ctypes.data + rows,
                    grad_value.ctypes.data + rows,
                    index.ctypes.data + 4 * i * count,
                    weight.ctypes.data + 4 * i * count,
                    dots.ctypes.data + 4 * i * count,
                    size,
                    count,
                    channels,
                    heads * channels,
                )
            _slopes(grid, place, attention, length * count, dots)
            _store(levels, attention, dots, fused, image, head, heads, start, length, count, grad_inputs)


@njit(**OPTIONS)
def _tile(levels, count):
    """Height, width and first row of the level of every point of a block."""
    per_level = count // levels.shape[0]
    grid = np.empty((3, BLOCK * count), np.int32)
    for i in range(BLOCK):
        for p in range(count):
            for k in range(3):
                grid[k, i * count + p] = levels[p // per_level, k]
    return grid


@njit(**OPTIONS)
def _place(grid, points, weights, column, reference, fused, image, head, start, length, count, place, attention):
    """Points in pixels of their level, pixel centres on whole numbers; and the weights, or logits, as they are."""
    x, y, height, width = place[0], place[1], grid[0], grid[1]
    for i in range(length):
        at = points[image, start + i, head * 2 * count : (head + 1) * 2 * count]
        of = weights[image, start + i, column + head * count : column + (head + 1) * count]
        for p in range(count):
            x[i * count + p] = number(at[2 * p])
            y[i * count + p] = number(at[2 * p + 1])
            attention[i * count + p] = number(of[p])
    if fused:
        for i in range(length):
            right, down = reference[start + i]
            for p in range(i * count, (i + 1) * count):
                x[p] += right * _F(width[p]) - _HALF
                y[p] += down * _F(height[p]) - _HALF
    else:
        for p in range(length * count):
            x[p] = x[p] * _F(width[p]) - _HALF
            y[p] = y[p] * _F(height[p]) - _HALF


@njit(**OPTIONS)
def _softmax(x, length, count):
    """Softmax over each `count` neighbours, in place."""
    for i in range(length):
        row = x[i * count : (i + 1) * count]
        top = row[0]
        for p in range(1, count):
            top = max(top, row[p])
        for p in range(count):
            row[p] -= top
    for i in range(length * count):
        x[i] = exponential(x[i])
    for i in range(length):
        row = x[i * count : (i + 1) * count]
        total = _ZERO
        for p in range(count):
            total += row[p]
        total = _ONE / total
        for p in range(count):
            row[p] *= total


@njit(**OPTIONS)
def _axis(x, size):
    """Both neighbours of x on one axis, clamped into the level; whether they were inside; x minus the lower one."""
    inside = min(max(x, _F(-2)), _F(size) + _ONE)  # so that the conversion to an integer is defined
    floor = np.floor(inside)
    low = np.int32(floor)
    high = low + np.int32(1)
    has_low = _ONE if 0 <= low < size else _ZERO
    has_high = _ONE if 0 <= high < size else _ZERO
    last = size - np.int32(1)
    low, high = min(max(low, np.int32(0)), last), min(max(high, np.int32(0)), last)
    return low, high, has_low, has_high, inside - floor + _ZERO * x


@njit(**OPTIONS)
def _corners(grid, place, attention, total, index, weight):
    """Rows of `value` that surround each point, and what each contributes."""
    # Rows of matrices by number: unpacked (`a, b = matrix`) they lose their layout, and LLVM does not vectorise.
    height, width, start, xs, ys = grid[0], grid[1], grid[2], place[0], place[1]
    index_0, index_1, index_2, index_3 = index[0], index[1], index[2], index[3]
    weight_0, weight_1, weight_2, weight_3 = weight[0], weight[1], weight[2], weight[3]
    for p in range(total):
        left, right, has_left, has_right, x = _axis(xs[p], width[p])
        top, bottom, has_top, has_bottom, y = _axis(ys[p], height[p])
        upper, lower = (_ONE - y) * has_top * attention[p], y * has_bottom * attention[p]
        before, after = (_ONE - x) * has_left, x * has_right
        top, bottom = start[p] + top * width[p], start[p] + bottom * width[p]
        index_0[p] = top + left
        index_1[p] = top + right
        index_2[p] = bottom + left
        index_3[p] = bottom + right
        weight_0[p] = upper * before
        weight_1[p] = upper * after
        weight_2[p] = lower * before
        weight_3[p] = lower * after


@njit(**OPTIONS)
def _slopes(grid, place, attention, total, dots):
    """Turn the corners' products with the output gradient, in place, into d/dx, d/dy and d/dweight of each point."""
    height, width, xs, ys = grid[0], grid[1], place[0], place[1]
    dots_0, dots_1, dots_2, dots_3 = dots[0], dots[1], dots[2], dots[3]
    for p in range(total):
        _, _, has_left, has_right, x = _axis(xs[p], width[p])
        _, _, has_top, has_bottom, y = _axis(ys[p], height[p])
        top_left, top_right = dots_0[p] * has_top * has_left, dots_1[p] * has_top * has_right
        low_left, low_right = dots_2[p] * has_bottom * has_left, dots_3[p] * has_bottom * has_right
        upper, lower = top_left + (top_right - top_left) * x, low_left + (low_right - low_left) * x
        dots_0[p] = attention[p] * ((top_right - top_left) * (_ONE - y) + (low_right - low_left) * y)
        dots_1[p] = attention[p] * (lower - upper)
        dots_2[p] = upper + (lower - upper) * y


@njit(**OPTIONS)
def _store(levels, attention, slopes, fused, image, head, heads, start, length, count, grad_inputs):
    """Carry the points' gradients back through the pixel scale, or the softmax, to the inputs."""
    per_level = count // levels.shape[0]
    for i in range(length):
        row = grad_inputs[image, start + i]
        points = row[head * 2 * count : (head + 1) * 2 * count]
        weights = row[(2 * heads + head) * count : (2 * heads + head + 1) * count]
        mean = _ZERO
        if fused:
            for p in range(count):
                mean += attention[i * count + p] * slopes[2, i * count + p]
        for p in range(count):
            at = i * count + p
            level = p // per_level
            points[2 * p] = slopes[0, at] if fused else slopes[0, at] * levels[level, 1]
            points[2 * p + 1] = slopes[1, at] if fused else slopes[1, at] * levels[level, 0]
            weights[p] = attention[at] * (slopes[2, at] - mean) if fused else slopes[2, at]
