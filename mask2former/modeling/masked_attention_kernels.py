"""Masked attention (paper, section 3.2.1) on the CPU: what no query of a few may look at is neither read nor computed.

Keys and values go in blocks, through a softmax that is corrected as larger logits appear (Milakov and Gimelshein 2018).
Pixels are in raster order and most masks are compact, so that a trained model skips most blocks.

B images, Q queries, S keys, A heads, D channels of a head.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .ops.numba_tools import OPTIONS, bits, compiled, exponential, number
from .ops.threads import in_threads
from .ops.vector_loops import multiply_add

# Queries and keys of a block.
TILE, BLOCK = 4, 256
# Of a channel's keys: rows that lie a power of two apart would share few lines of the cache.
STRIDE = BLOCK + 16

_F = np.float32
_LOW = _F(-1e30)  # the logit of what a query may not look at


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention`, in float32.

    Args:
        queries: (B, A, Q, D) float32.
        keys, values: (B, A, S, D) float32 or bfloat16.
        allowed: (B, 1, Q, S) bool; no row all False.

    Returns:
        (B, A, Q, D) float32.
    """
    batch, heads, count, channels = queries.shape
    chunks = min(-(-count // TILE), -(-torch.get_num_threads() // (batch * heads)))
    out = torch.zeros(batch, count, heads, channels)
    scaled = queries.transpose(1, 2) * channels**-0.5
    arguments = (bits(x.transpose(1, 2).contiguous()) for x in (keys, values))
    in_threads(
        _attend,
        batch * heads * chunks,
        allowed.numel() * heads,
        (scaled.contiguous().numpy(), *arguments, allowed.contiguous().view(torch.uint8).numpy(), chunks, out.numpy()),
    )
    return out.transpose(1, 2)


@compiled
def _attend(first, last, queries, keys, values, allowed, chunks, out):
    """Items are (image, head, chunk of queries)."""
    _, count, heads, channels = out.shape
    chunk = ((count + chunks - 1) // chunks + TILE - 1) // TILE * TILE
    by_channel, rows = np.zeros((channels, STRIDE), np.float32), np.empty((BLOCK, channels), np.float32)
    scores, lanes = np.empty((TILE, BLOCK), np.float32), np.empty(32, np.float32)
    top, total = np.empty(count, np.float32), np.empty(count, np.float32)
    step = heads * channels
    for item in range(first, last):
        image, head = item // chunks // heads, item // chunks % heads
        start = item % chunks * chunk
        stop = min(start + chunk, count)
        top[:], total[:] = _LOW, _F(0)
        for begin in range(0, keys.shape[1], BLOCK):
            length = min(BLOCK, keys.shape[1] - begin)
            loaded = False
            for query in range(start, stop, TILE):
                height = min(TILE, stop - query)
                if not _any(allowed[image, 0], query, height, begin, length):
                    continue
                if not loaded:
                    _load(keys[image], values[image], head, begin, length, by_channel, rows)
                    loaded = True
                scores[:] = _F(0)
                asked = queries.ctypes.data + 4 * channels * ((image * count + query) * heads + head)
                into = out.ctypes.data + 4 * channels * ((image * count + query) * heads + head)
                multiply_add(
                    scores.ctypes.data,
                    asked,
                    by_channel.ctypes.data,
                    height,
                    channels,
                    BLOCK,
                    BLOCK,
                    step,
                    1,
                    STRIDE,
                )
                for i in range(height):
                    line, look = scores[i], allowed[image, 0, query + i, begin : begin + length]
                    for k in range(length):
                        line[k] = line[k] if look[k] else _LOW
                    for k in range(length, BLOCK):
                        line[k] = _LOW
                    _rescale(line, lanes, query + i, top, total, out[image, query + i, head])
                multiply_add(
                    into, scores.ctypes.data, rows.ctypes.data, height, length, channels, step, BLOCK, 1, channels
                )
        for query in range(start, stop):
            target = out[image, query, head]
            for c in range(channels):
                target[c] /= total[query]


@njit(**OPTIONS)
def _any(allowed, query, height, begin, length):
    found = np.uint8(0)
    for i in range(query, query + height):
        look = allowed[i, begin : begin + length]
        for k in range(length):
            found |= look[k]
    return found


@njit(**OPTIONS)
def _load(keys, values, head, begin, length, by_channel, rows):
    """A block of a head's keys and values, the keys channel by channel."""
    for k in range(length):
        key, value, row = keys[begin + k, head], values[begin + k, head], rows[k]
        for c in range(row.shape[0]):
            by_channel[c, k] = number(key[c])
        for c in range(row.shape[0]):
            row[c] = number(value[c])


@njit(**OPTIONS)
def _rescale(line, lanes, query, top, total, sums):
    """Turn a block's logits into weights, in place; a new largest logit scales down what was summed before."""
    # Loop by loop: LLVM vectorises none that does more.
    lanes[:] = top[query]
    for start in range(0, BLOCK, 32):
        part = line[start : start + 32]
        for i in range(32):
            lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
    largest = lanes[0]
    for i in range(1, 32):
        largest = lanes[i] if lanes[i] > largest else largest
    if largest > top[query]:
        share = exponential(top[query] - largest)
        for c in range(sums.shape[0]):
            sums[c] *= share
        total[query] *= share
        top[query] = largest
    for k in range(BLOCK):
        line[k] = exponential(line[k] - largest)
    added = _F(0)
    for k in range(BLOCK):
        added += line[k]
    total[query] += added
