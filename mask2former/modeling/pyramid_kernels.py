"""What surrounds the convolutions of a feature pyramid, on the CPU: norms, resizing, sums and ReLU in few passes.

C channels, H W size of a map, h w size of a coarser one.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from ..taps import neighbours
from .ops.numba_tools import OPTIONS, bits, compiled, number
from .ops.threads import in_threads

_F = np.float32
_ONE = _F(1)


def normalized_sum(product: Tensor, bias: Tensor | None, norm: nn.GroupNorm, coarse: Tensor, out: Tensor) -> None:
    """norm(product + bias) + coarse, resized bilinearly.

    Args:
        product: (C, H, W) float32 or bfloat16.
        bias: (C,).
        coarse: (C, h, w) float32.
        out: (C, H, W) float32; may be `product`.
    """
    arguments = (bits(product), *_parameters(norm, bias), coarse.contiguous().numpy(), *_axes(coarse, out), out.numpy())
    in_threads(_normalized_sum, norm.num_groups, out.numel(), arguments)


def normalize_relu(x: Tensor, bias: Tensor | None, norm: nn.GroupNorm) -> None:
    """relu(norm(x + bias)) of (C, H, W) float32, in place."""
    in_threads(_normalize_relu, norm.num_groups, x.numel(), (x.numpy(), *_parameters(norm, bias)))


def shrink(x: Tensor, out: Tensor) -> None:
    """Resize float32 maps (C, H, W) bilinearly to (C, h, w): fast where they get smaller."""
    in_threads(_shrink, len(x), out.numel(), (x.numpy(), *_axes(x, out), out.numpy()))


def _axes(source: Tensor, target: Tensor) -> list[np.ndarray]:
    """`neighbours` of rows, then of columns."""
    axes = zip(source.shape[1:], target.shape[1:], strict=True)
    return [tensor.numpy() for axis in axes for tensor in neighbours(*axis)]


def _parameters(norm: nn.GroupNorm, bias: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float]:
    """Bias before the norm, its weight and bias, groups, and what it adds to the variance."""
    bias = torch.zeros(norm.num_channels) if bias is None else bias
    return bias.numpy(), norm.weight.numpy(), norm.bias.numpy(), norm.num_groups, norm.eps


@compiled
def _normalized_sum(
    first, last, x, bias, weight, shift, groups, eps, coarse, top, bottom, down, left, right, across, out
):
    """Items are groups of channels."""
    channels, height, width = out.shape
    size = channels // groups
    wide = np.empty((coarse.shape[1], width), np.float32)
    for group in range(first, last):
        mean, deviation = _statistics(x, bias, group * size, size, eps)
        for c in range(group * size, (group + 1) * size):
            for y in range(wide.shape[0]):
                source, target = coarse[c, y], wide[y]
                for i in range(width):
                    target[i] = source[left[i]] * (_ONE - across[i]) + source[right[i]] * across[i]
            scale = _F(weight[c] / deviation)
            offset = _F(shift[c] + (bias[c] - mean) * weight[c] / deviation)
            for y in range(height):
                fine, above, below, target = x[c, y], wide[top[y]], wide[bottom[y]], out[c, y]
                lower = down[y]
                for i in range(width):
                    target[i] = (number(fine[i]) * scale + offset) + (above[i] * (_ONE - lower) + below[i] * lower)


@compiled
def _shrink(first, last, x, top, bottom, down, left, right, across, out):
    """Items are channels."""
    width = x.shape[2]
    mixed = np.empty(width, np.float32)
    for c in range(first, last):
        for y in range(out.shape[1]):
            above, below, target = x[c, top[y]], x[c, bottom[y]], out[c, y]
            lower = down[y]
            for i in range(width):
                mixed[i] = above[i] * (_ONE - lower) + below[i] * lower
            for i in range(out.shape[2]):
                target[i] = mixed[left[i]] * (_ONE - across[i]) + mixed[right[i]] * across[i]


@compiled
def _normalize_relu(first, last, x, bias, weight, shift, groups, eps):
    """Items are groups of channels."""
    size = x.shape[0] // groups
    for group in range(first, last):
        mean, deviation = _statistics(x, bias, group * size, size, eps)
        for c in range(group * size, (group + 1) * size):
            scale = _F(weight[c] / deviation)
            offset = _F(shift[c] + (bias[c] - mean) * weight[c] / deviation)
            for y in range(x.shape[1]):
                row = x[c, y]
                for i in range(row.shape[0]):
                    normed = row[i] * scale + offset
                    row[i] = _F(0) if normed < _F(0) else normed  # a NaN stays one


@njit(**OPTIONS)
def _statistics(x, bias, first, size, eps):
    """Mean and deviation of x + bias over `size` channels: of a row in float32, of rows together in float64.

    Chan, Golub and LeVeque (1979): each row is read from memory once.
    """
    count, mean, squares = 0, 0.0, 0.0
    width = x.shape[2]
    for c in range(first, first + size):
        for y in range(x.shape[1]):
            row, total = x[c, y], _F(0)
            for i in range(width):
                total += number(row[i])
            middle, spread = total / _F(width), _F(0)
            for i in range(width):
                spread += (number(row[i]) - middle) * (number(row[i]) - middle)
            step = middle + bias[c] - mean
            squares += spread + step * step * count / (count + width) * width
            count += width
            mean += step * width / count
    return mean, np.sqrt(squares / count + eps)
