"""Results on CUDA, in Triton: as `result_kernels`, pixels by tiles of many programs.

Sums are kept by tile and added afterwards, or are of integers: the same input gives the same bits.

N maps (queries), h w their size, H W size of the result, T tiles of a result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .taps import taps

Size = tuple[int, int]
# Of a tile; a program of `_claims` keeps three numbers for each of its pixels.
ROWS, COLUMNS = 4, 256


class Resize:
    """The taps of (h, w) maps resized to `padded`, cut to `image`, resized to `output`; sizes are (height, width)."""

    def __init__(self, maps: Tensor, padded: Size, image: Size, output: Size) -> None:
        self.output = output
        self.maps = maps.detach().contiguous()  # (N, h, w)
        (self.rows, self.row_weights), (self.columns, self.column_weights) = (
            taps(*sizes, maps.device) for sizes in zip(maps.shape[-2:], padded, image, output, strict=True)
        )
        # Of a result at the image's size the second resize moves nothing: two taps of each axis are 0.
        self.used = 2 if image == output else 4

    def arguments(self) -> tuple[object, ...]:
        """The kernels' common arguments."""
        tensors = (self.maps, self.rows, self.row_weights, self.columns, self.column_weights)
        return (*tensors, *self.maps.shape[1:], *self.output, self.used, ROWS, COLUMNS)

    def tiles(self, height: int) -> tuple[int, int]:
        """Of `height` rows: downwards, and to the right."""
        return triton.cdiv(height, ROWS), triton.cdiv(self.output[1], COLUMNS)


def resized(maps: Resize, start: int, stop: int, *, sigmoid: bool) -> Tensor:
    """Rows start to stop of the resized maps, or of their sigmoids: (N, stop - start, W) float32."""
    count = len(maps.maps)
    out = torch.empty(count, stop - start, maps.output[1], device=maps.maps.device)
    down, right = maps.tiles(stop - start)
    if count:
        _resized[down * right, count](out, start, stop, right, sigmoid, *maps.arguments())
    return out


def instances(maps: Resize, queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels with positive logits of the maps that `queries` (M) int64 names, in its order.

    Returns:
        (M, H, W) bool masks, (M) float32 area, (M) float32 sum of probabilities inside, (M, 4) float32 boxes, 0 where
        a mask is empty.
    """
    device, count = maps.maps.device, len(queries)
    height, width = maps.output
    masks = torch.empty(count, height, width, dtype=torch.bool, device=device)
    down, right = maps.tiles(height)
    sums = torch.empty(2, count, down * right, device=device)
    extents = torch.empty(4, count, down * right, dtype=torch.int32, device=device)
    if not count:
        return masks, *sums.sum(2), torch.empty(0, 4, device=device)
    _instances[down * right, count](masks, sums, extents, queries, right, *maps.arguments())
    area, certainty = sums.double().sum(2).float()
    boxes = torch.cat([extents[:2].amin(2), extents[2:].amax(2)]).T.float()
    return masks, area, certainty, boxes * (area > 0)[:, None]


def claims(maps: Resize, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give each pixel to the map with the largest product of probability and score (N).

    Returns:
        (H, W) int32 owner, N where the best claim's probability is below one half; and three areas (N) int64: of
        each map's mask, of the pixels it claims most, and of the pixels that are both.
    """
    device, count = maps.maps.device, len(maps.maps)
    owner = torch.empty(maps.output, dtype=torch.int32, device=device)
    bins = triton.next_power_of_2(count + 1)
    areas = torch.zeros(3, bins, dtype=torch.int32, device=device)
    down, right = maps.tiles(maps.output[0])
    _claims[down * right,](owner, areas, scores.float().contiguous(), count, right, bins, *maps.arguments())
    own, won, final = areas[:, :count].long()
    return owner, own, won, final


def best(scores: Tensor, out: Tensor) -> None:
    """The largest of (K, P) scores for each of P pixels, into `out`, int64 and contiguous."""
    torch.argmax(scores, 0, out=out.view(-1))


@triton.jit
def _tile(start, right, rows: tl.constexpr, columns: tl.constexpr):
    """Rows and columns of this program's tile, the first row being `start`."""
    y = start + tl.program_id(0) // right * rows + tl.arange(0, rows)
    x = tl.program_id(0) % right * columns + tl.arange(0, columns)
    return y, x


@triton.jit
def _sample(
    map_at,
    y,
    x,
    row_taps,
    row_weights,
    column_taps,
    column_weights,
    w,
    height,
    width,
    used: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """A map at rows y (rows) and columns x (columns) of the result: (rows, columns) float32."""
    total = tl.zeros((rows, columns), tl.float32)
    for i in tl.static_range(used):
        row = tl.load(row_taps + 4 * y + i, y < height, 0)
        row_weight = tl.load(row_weights + 4 * y + i, y < height, 0.0)
        line = tl.zeros((rows, columns), tl.float32)
        for j in tl.static_range(used):
            column = tl.load(column_taps + 4 * x + j, x < width, 0)
            weight = tl.load(column_weights + 4 * x + j, x < width, 0.0)
            line += tl.load(map_at + row[:, None] * w + column[None, :]).to(tl.float32) * weight[None, :]
        total += line * row_weight[:, None]
    return total


@triton.jit
def _resized(
    out,
    start,
    stop,
    right,
    sigmoid: tl.constexpr,
    maps,
    row_taps,
    row_weights,
    column_taps,
    column_weights,
    h,
    w,
    height,
    width,
    used: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    y, x = _tile(start, right, rows, columns)
    n = tl.program_id(1).to(tl.int64)
    value = _sample(
        maps + n * h * w,
        y,
        x,
        row_taps,
        row_weights,
        column_taps,
        column_weights,
        w,
        height,
        width,
        used,
        rows,
        columns,
    )
    if sigmoid:
        value = tl.sigmoid(value)
    place = out + (n * (stop - start) + (y - start)[:, None]) * width + x[None, :]
    tl.store(place, value, (y < stop)[:, None] & (x < width)[None, :])


@triton.jit
def _instances(
    masks,
    sums,
    extents,
    queries,
    right,
    maps,
    row_taps,
    row_weights,
    column_taps,
    column_weights,
    h,
    w,
    height,
    width,
    used: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    y, x = _tile(0, right, rows, columns)
    m = tl.program_id(1).to(tl.int64)
    n = tl.load(queries + m)
    value = _sample(
        maps + n * h * w,
        y,
        x,
        row_taps,
        row_weights,
        column_taps,
        column_weights,
        w,
        height,
        width,
        used,
        rows,
        columns,
    )
    alive = (y < height)[:, None] & (x < width)[None, :]
    inside = (value > 0) & alive
    tl.store(masks + (m * height + y[:, None]) * width + x[None, :], inside, alive)
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    at, step = m * tiles + tile, tl.num_programs(1).to(tl.int64) * tiles
    tl.store(sums + at, tl.sum(inside.to(tl.float32)))
    tl.store(sums + step + at, tl.sum(tl.where(inside, tl.sigmoid(value), 0.0)))
    tl.store(extents + at, tl.min(tl.where(inside, x[None, :], width)))
    tl.store(extents + step + at, tl.min(tl.where(inside, y[:, None], height)))
    tl.store(extents + 2 * step + at, tl.max(tl.where(inside, x[None, :] + 1, 0)))
    tl.store(extents + 3 * step + at, tl.max(tl.where(inside, y[:, None] + 1, 0)))


@triton.jit
def _claims(
    owner,
    areas,
    scores,
    count,
    right,
    bins: tl.constexpr,
    maps,
    row_taps,
    row_weights,
    column_taps,
    column_weights,
    h,
    w,
    height,
    width,
    used: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    y, x = _tile(0, right, rows, columns)
    alive = (y < height)[:, None] & (x < width)[None, :]
    best = tl.full((rows, columns), -1.0, tl.float32)
    winner = tl.zeros((rows, columns), tl.int32)
    inside = tl.zeros((rows, columns), tl.int32)
    for n in range(count):
        logits = _sample(
            maps, y, x, row_taps, row_weights, column_taps, column_weights, w, height, width, used, rows, columns
        )
        maps += h * w
        prob = tl.sigmoid(logits)
        mine = ((prob >= 0.5) & alive).to(tl.int32)
        tl.atomic_add(areas + n, tl.sum(mine))
        claim = prob * tl.load(scores + n)
        wins = claim > best
        best = tl.where(wins, claim, best)
        winner = tl.where(wins, n, winner)
        inside = tl.where(wins, mine, inside)
    bin_at = areas + tl.arange(0, bins)
    winner = tl.where(alive, winner, count)  # pixels beyond the border: nobody's
    tl.atomic_add(bin_at + bins, tl.histogram(tl.reshape(winner, (rows * columns,)), bins))
    winner = tl.where(inside > 0, winner, count)
    tl.atomic_add(bin_at + 2 * bins, tl.histogram(tl.reshape(winner, (rows * columns,)), bins))
    tl.store(owner + y[:, None] * width + x[None, :], winner, alive)
