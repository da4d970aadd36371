"""Attention inside windows on the CPU: all of a window stays in the processor's own cache.

PyTorch's kernel reaches a quarter to a third of the matrix rate on matrices as small as a window's.

G windows of a group, N pixels of a window, A heads, D channels of a head, P = N rounded up to whole vectors.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from ..ops.numba_tools import OPTIONS, bits, compiled, exponential, number
from ..ops.threads import in_threads
from ..ops.vector_loops import multiply_add

# P is a multiple of it.
LANES = 32

_F = np.float32


def window_attention(qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale * queries @ keys + bias) @ values of each window and head, in float32.

    Args:
        qkv: (G, N, 3, A, D) float32 or bfloat16.
        bias: (1 or G, A, N, N) float32.

    Returns:
        (G * N, A * D), in the type of `qkv`.
    """
    windows, pixels, _, heads, channels = qkv.shape
    out = torch.zeros(windows, pixels, heads, channels)
    # By keys, then queries: a softmax down the columns runs along vectors.
    by_keys = F.pad(bias.transpose(2, 3), (0, -pixels % LANES)).flatten(2).numpy()  # (1 or G, A, N * P)
    in_threads(
        _attend, windows, qkv.numel(), (bits(qkv.contiguous().view(windows, -1)), by_keys, _F(scale), out.numpy())
    )
    return out.view(windows * pixels, -1).to(qkv.dtype)


@compiled
def _attend(first, last, numbers, bias, scale, out):
    """Items are windows; `numbers` are (G, N * 3 * A * D)."""
    _, pixels, heads, channels = out.shape
    row = 3 * heads * channels
    padded = bias.shape[2] // pixels
    queries, scores = np.zeros((channels, padded), np.float32), np.empty((pixels, padded), np.float32)
    wide, top, total = np.empty(pixels * row, np.float32), np.empty(padded, np.float32), np.empty(padded, np.float32)
    for window in range(first, last):
        source = numbers[window]
        for i in range(pixels * row):
            wide[i] = number(source[i])
        for head in range(heads):
            at = head * channels
            for i in range(pixels):
                for c in range(channels):
                    queries[c, i] = scale * wide[i * row + at + c]
            added = bias[window if bias.shape[0] > 1 else 0, head]
            flat = scores.reshape(scores.size)
            for i in range(scores.size):
                flat[i] = added[i]
            keys, values = wide.ctypes.data + 4 * (at + row // 3), wide.ctypes.data + 4 * (at + row // 3 * 2)
            multiply_add(
                scores.ctypes.data, keys, queries.ctypes.data, pixels, channels, padded, padded, row, 1, padded
            )
            _exponentials(scores, top, total)
            sums = out[window, 0, head].ctypes.data
            multiply_add(sums, scores.ctypes.data, values, pixels, pixels, channels, row // 3, 1, padded, row)
            for i in range(pixels):
                target, share = out[window, i, head], _F(1) / total[i]
                for c in range(channels):
                    target[c] *= share


@njit(**OPTIONS)
def _exponentials(x, top, total):
    """exp(x) in place of (N, P) logits less the largest of their column, and the columns' sums."""
    # Loop by loop, row by number: LLVM does not vectorise larger loops, nor rows that a loop walks over.
    top[:] = x[0]
    total[:] = _F(0)
    for y in range(x.shape[0]):
        row = x[y]
        for i in range(top.shape[0]):
            top[i] = row[i] if row[i] > top[i] else top[i]
    for y in range(x.shape[0]):
        row = x[y]
        for i in range(top.shape[0]):
            row[i] -= top[i]
    flat = x.reshape(x.size)
    for i in range(x.size):
        flat[i] = exponential(flat[i])
    for y in range(x.shape[0]):
        row = x[y]
        for i in range(top.shape[0]):
            total[i] += row[i]
