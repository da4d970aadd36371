"""Results on the CPU: masks are resized, squashed and compared row by row, and never written down in between.

Resizing is separable and linear, so the two resizes between mask logits and a result (to the padded input, then from
the image to the output) become one: every output row and column is a sum of four source rows or columns (`taps`).
Columns come first: their result is small, and what is left to do for each pixel runs along rows, as vectors.

N maps (queries or classes), h w their size, H W size of the result.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .modeling.ops.numba_tools import OPTIONS, compiled, exponential
from .modeling.ops.threads import in_threads
from .taps import TAPS, taps

Size = tuple[int, int]
# Pixels of a block of rows that goes through all maps, one after another: they stay in the processor's cache.
BLOCK_PIXELS = 1 << 16

_F = np.float32


class Resize:
    """The taps of (h, w) maps resized to `padded`, cut to `image`, resized to `output`; sizes are (height, width)."""

    def __init__(self, maps: Tensor, padded: Size, image: Size, output: Size) -> None:
        self.output = output
        self.maps = maps.detach().float().contiguous().numpy()  # (N, h, w)
        (self.rows, self.row_weights), (self.columns, self.column_weights) = (
            [tensor.numpy() for tensor in taps(*sizes, maps.device)]
            for sizes in zip(maps.shape[-2:], padded, image, output, strict=True)
        )

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        return self.maps, self.rows, self.row_weights, self.columns, self.column_weights


def resized(maps: Resize, start: int, stop: int, *, sigmoid: bool) -> Tensor:
    """Rows start to stop of the resized maps, or of their sigmoids: (N, stop - start, W) float32."""
    count = len(maps.maps)
    out = torch.empty(count, stop - start, maps.output[1])
    in_threads(_resized, count, out.numel(), (*maps.arguments, start, sigmoid, out.numpy()))
    return out


def instances(maps: Resize, queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels with positive logits of the maps that `queries` (M) int64 names, in its order.

    Returns:
        (M, H, W) bool masks, (M) float32 area, (M) float32 sum of probabilities inside, (M, 4) float32 boxes, 0 where
        a mask is empty.
    """
    numbers, row = queries.unique(return_inverse=True)  # a map may be named several times, for several classes
    count, places = len(numbers), row.tolist()
    slots = [places.index(n) for n in range(count)]
    masks = torch.empty(len(queries), *maps.output, dtype=torch.bool)
    sums, boxes = np.zeros((2, count)), np.zeros((count, 4), np.float32)
    arguments = (*maps.arguments, numbers.numpy(), np.array(slots, np.int64), masks.numpy(), sums, boxes)
    in_threads(_instances, count, masks.numel(), arguments)
    for slot, n in enumerate(places):
        if slots[n] != slot:
            masks[slot] = masks[slots[n]]
    area, certainty = torch.from_numpy(sums).float()
    return masks, area[row], certainty[row], torch.from_numpy(boxes)[row]


def claims(maps: Resize, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give each pixel to the map with the largest product of probability and score (N).

    Returns:
        (H, W) int32 owner, N where the best claim's probability is below one half; and three areas (N) int64: of
        each map's mask, of the pixels it claims most, and of the pixels that are both.
    """
    height, width = maps.output
    step = max(1, BLOCK_PIXELS // width)
    items, count = -(-height // step), len(maps.maps)
    owner = torch.empty(height, width, dtype=torch.int32)
    areas = np.zeros((items, 3, count), np.int64)
    arguments = (*maps.arguments, scores.detach().float().contiguous().numpy(), step, owner.numpy(), areas)
    in_threads(_claims, items, owner.numel() * count, arguments)
    own, won, final = torch.from_numpy(areas.sum(0))
    return owner, own, won, final


def best(scores: Tensor, out: Tensor) -> None:
    """The first largest of (K, P) float32 scores for each of P pixels, into `out`, int64 and contiguous."""
    in_threads(_best, 1, 0, (scores.numpy(), out.view(-1).numpy()))


@njit(**OPTIONS)
def _sigmoid(x):
    return _F(1) / (_F(1) + exponential(-x))


@njit(**OPTIONS)
def _columns(source, first, last, columns, weights, out):
    """Resize rows first to last of a map (h, w) to (last - first + 1, W)."""
    for y in range(first, last + 1):
        row, target = source[y], out[y - first]
        for x in range(columns.shape[0]):
            total = row[columns[x, 0]] * weights[x, 0] + row[columns[x, 1]] * weights[x, 1]
            target[x] = total + (row[columns[x, 2]] * weights[x, 2] + row[columns[x, 3]] * weights[x, 3])


@njit(**OPTIONS)
def _row(wide, first, index, weight, out):
    """Mix four rows of what `_columns` made, whose first is source row `first`, to one output row (W)."""
    a, b, c, d = wide[index[0] - first], wide[index[1] - first], wide[index[2] - first], wide[index[3] - first]
    for x in range(out.shape[0]):
        out[x] = (a[x] * weight[0] + b[x] * weight[1]) + (c[x] * weight[2] + d[x] * weight[3])


@njit(**OPTIONS)
def _extent(rows, start, stop):
    """First and last source row that output rows start to stop read."""
    return rows[start:stop].min(), rows[start:stop].max()


@compiled
def _resized(first, last, maps, rows, row_weights, columns, column_weights, start, sigmoid, out):
    """Items are maps."""
    stop = start + out.shape[1]
    top, bottom = _extent(rows, start, stop)
    wide = np.empty((bottom - top + 1, out.shape[2]), np.float32)
    for n in range(first, last):
        _columns(maps[n], top, bottom, columns, column_weights, wide)
        for y in range(start, stop):
            target = out[n, y - start]
            _row(wide, top, rows[y], row_weights[y], target)
            if sigmoid:
                for x in range(target.shape[0]):
                    target[x] = _sigmoid(target[x])


@compiled
def _instances(first, last, maps, rows, row_weights, columns, column_weights, numbers, slots, masks, sums, boxes):
    """Items are numbers of maps. Without a positive logit around it no pixel is inside, and most masks are small."""
    buffer = np.empty(maps.shape[1] * masks.shape[2], np.float32)
    line, hit = np.empty(masks.shape[2], np.float32), np.empty(masks.shape[2], np.uint8)
    for n in range(first, last):
        source, mask = maps[numbers[n]], masks[slots[n]]
        mask[:] = False
        start, stop, left, right = _reach(source, rows, columns)
        if start == stop or left == right:
            continue
        top, bottom = _extent(rows, start, stop)
        width = right - left
        wide = buffer[: (bottom - top + 1) * width].reshape(bottom - top + 1, width)
        _columns(source, top, bottom, columns[left:right], column_weights[left:right], wide)
        logits, seen = line[:width], hit[:width]
        seen[:] = 0
        upper, lower = stop, start
        for y in range(start, stop):
            _row(wide, top, rows[y], row_weights[y], logits)
            target = mask[y, left:right]
            area, certainty = np.int32(0), _F(0)
            for x in range(width):
                inside = logits[x] > _F(0)
                target[x] = inside
                seen[x] |= np.uint8(inside)
                area += np.int32(inside)
            if area:
                for x in range(width):
                    certainty += _sigmoid(logits[x]) if logits[x] > _F(0) else _F(0)
                upper, lower = min(upper, y), y + 1
                sums[0, n] += area
                sums[1, n] += certainty
        if upper < lower:
            before, after = 0, width
            while not seen[before]:
                before += 1
            while not seen[after - 1]:
                after -= 1
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = left + before, upper, left + after, lower


@njit(**OPTIONS)
def _reach(logits, rows, columns):
    """The output rows, then the output columns, that read a row or column with a positive logit, as ranges."""
    height, width = logits.shape
    above = np.zeros(width, np.uint8)
    first, last = height, -1
    for y in range(height):
        row, found = logits[y], np.uint8(0)
        for x in range(width):
            above[x] |= np.uint8(row[x] > _F(0))
        for x in range(width):
            found |= np.uint8(row[x] > _F(0))
        if found:
            first, last = min(first, y), y
    if last < 0:
        return 0, 0, 0, 0
    left, right = 0, width - 1
    while not above[left]:
        left += 1
    while not above[right]:
        right -= 1
    start, stop = _readers(rows, first, last)
    before, after = _readers(columns, left, right)
    return start, stop, before, after


@njit(**OPTIONS)
def _readers(taps, first, last):
    """The outputs, as a range, of which a tap lies in first ... last; taps grow from one output to the next."""
    start, stop = 0, taps.shape[0]
    while start < stop and taps[start, TAPS - 1] < first:
        start += 1
    while stop > start and taps[stop - 1, 0] > last:
        stop -= 1
    return start, stop


@compiled
def _claims(first, last, maps, rows, row_weights, columns, column_weights, scores, step, owner, areas):
    """Items are blocks of `step` rows."""
    height, width = owner.shape
    count = maps.shape[0]
    probs, best = np.empty(width, np.float32), np.empty((step, width), np.float32)
    inside = np.empty((step, width), np.int32)
    for item in range(first, last):
        start, stop = item * step, min(height, (item + 1) * step)
        top, bottom = _extent(rows, start, stop)
        wide = np.empty((bottom - top + 1, width), np.float32)
        best[:] = _F(-1)
        for n in range(count):
            _columns(maps[n], top, bottom, columns, column_weights, wide)
            score = scores[n]
            area = 0
            for y in range(start, stop):
                _row(wide, top, rows[y], row_weights[y], probs)
                area += _challenge(probs, score, np.int32(n), best[y - start], owner[y], inside[y - start])
            areas[item, 0, n] = area
        for y in range(start, stop):
            for x in range(width):
                winner = owner[y, x]
                areas[item, 1, winner] += 1
                if inside[y - start, x]:
                    areas[item, 2, winner] += 1
                else:
                    owner[y, x] = count


@njit(**OPTIONS)
def _challenge(logits, score, n, best, owner, inside):
    """Map n claims a row of pixels; it wins where it claims more than the best so far. Returns its mask's area."""
    area = np.int32(0)
    for x in range(logits.shape[0]):
        prob = _sigmoid(logits[x])
        mine = np.int32(prob >= _F(0.5))
        area += mine
        claim = prob * score
        wins = claim > best[x]
        best[x] = claim if wins else best[x]
        owner[x] = n if wins else owner[x]
        inside[x] = mine if wins else inside[x]
    return area


@compiled
def _best(first, last, scores, out):
    """One item: a pixel's best score and its class are kept for a stretch of pixels at a time."""
    length = 1024
    top, winner = np.empty(length, np.float32), np.empty(length, np.int32)
    for start in range(0, scores.shape[1], length):
        stop = min(start + length, scores.shape[1])
        top[: stop - start] = scores[0, start:stop]
        winner[:] = 0
        for k in range(1, scores.shape[0]):
            row = scores[k, start:stop]
            for p in range(stop - start):
                wins = row[p] > top[p]
                top[p] = row[p] if wins else top[p]
                winner[p] = np.int32(k) if wins else winner[p]
        for p in range(stop - start):
            out[start + p] = winner[p]
