"""A Swin block on the CPU without gradients: all its steps on a few windows, then on the next few.

A block's steps on a whole image write and read tensors of tens of megabytes, most of them just to move pixels into
windows, roll them and back. Here the pixels of some windows are gathered by their numbers, go through attention
and network while they are in the cache, and are put back. Windows that the shift cuts or that reach over the edge come
last, so that the others need neither mask nor padding.

B images, H W size of a stage, C channels, T windows of an image, N pixels of a window, A heads, G windows of a group.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.deform_attn import has_cpu_kernels
from ..packed_linear import compute_dtype, packed_linear
from ..position_encoding import cached_per_shape
from .windows import parting_mask, shift_regions, to_windows

if TYPE_CHECKING:
    from .swin import SwinBlock

# Pixels that go through a block together.
ROWS = 4096


class Group(NamedTuple):
    """Windows that go together."""

    windows: int
    pixels: Tensor  # numbers of their pixels, of all images in a row
    places: Tensor | None  # where in the windows these pixels are; None: everywhere
    mask: Tensor | None  # (G, 1, N, N), as in `WindowAttention`


def in_groups(block: "SwinBlock", x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C), as the block's `forward` in evaluation mode."""
    attn, window = block.attn, block.window
    pixels, channels = window * window, x.shape[-1]
    dtype = compute_dtype(x)
    with torch.autocast("cpu", enabled=False):
        qkv, proj = (packed_linear(layer, dtype, ROWS) for layer in (attn.qkv, attn.proj))
        fc1 = packed_linear(block.mlp.get_submodule("fc1"), dtype, ROWS, "gelu")
        fc2 = packed_linear(block.mlp.get_submodule("fc2"), dtype, ROWS)
        bias = attn.position_bias().contiguous()
        before = x.reshape(-1, channels)
        after = torch.empty_like(before)
        for group in groups(*x.shape[:3], window, block.shift, max(1, ROWS // pixels), x.device):
            rows = before.index_select(0, group.pixels)
            normed = block.norm1(rows).to(dtype)
            if group.places is not None:
                normed = normed.new_zeros(group.windows * pixels, channels).index_copy_(0, group.places, normed)
            mask = bias if group.mask is None else bias + group.mask
            seen = _attend(qkv(normed).view(group.windows, pixels, 3, attn.heads, -1), mask, attn.scale)
            if group.places is not None:
                seen = seen.index_select(0, group.places)
            rows += proj(seen)
            rows += fc2(fc1(block.norm2(rows).to(dtype)))
            after.index_copy_(0, group.pixels, rows)
    return after.view_as(x)


def in_rows(norm: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    """A norm and a linear layer, some pixels at a time: (B, H, W, C) -> (B, H, W, C')."""
    dtype = compute_dtype(x)
    with torch.autocast("cpu", enabled=False):
        apply = packed_linear(linear, dtype, ROWS)
        done = [apply(norm(rows).to(dtype)) for rows in x.flatten(0, 2).split(ROWS)]
    return torch.cat(done).unflatten(0, x.shape[:3])


def _attend(qkv: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """(G, N, 3, A, C / A), (1 or G, A, N, N) -> (G * N, C)."""
    if has_cpu_kernels(qkv.dtype):
        from .window_kernels import window_attention  # here: Numba takes its time to import

        return window_attention(qkv, bias.float(), scale or qkv.shape[-1] ** -0.5)
    # At least in float32: PyTorch's kernel for bfloat16 takes longer on matrices this small.
    wide = torch.promote_types(qkv.dtype, torch.float32)
    queries, keys, values = qkv.to(wide).permute(2, 0, 3, 1, 4)
    bias = bias.to(wide).expand(*queries.shape[:3], -1)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return out.transpose(1, 2).reshape(-1, queries.shape[1] * queries.shape[3]).to(qkv.dtype)


@cached_per_shape(maxsize=32)
def groups(
    batch: int, height: int, width: int, window: int, shift: int, size: int, device: torch.device
) -> tuple[Group, ...]:
    """Groups of up to `size` windows that hold every pixel once; first those that need no mask and no padding."""
    numbers = torch.arange(batch * height * width, device=device).view(batch, height, width, 1)
    numbers = F.pad(numbers, (0, 0, 0, -width % window, 0, -height % window), value=-1).roll((-shift, -shift), (1, 2))
    rows, columns = numbers.shape[1:3]
    numbers = to_windows(numbers, window).view(-1, window * window)  # (B * T, N)
    inner = (numbers >= 0).all(1)
    found, cut = [], torch.zeros_like(numbers)
    if shift:
        cut = shift_regions(rows, columns, window, shift, device).repeat(batch, 1)
        inner &= (cut == cut[:, :1]).all(1)
    for part in numbers[inner].split(size) if inner.any() else ():
        found.append(Group(len(part), part.flatten(), None, None))
    for part, regions in (
        zip(numbers[~inner].split(size), cut[~inner].split(size), strict=True) if not inner.all() else ()
    ):
        places = (part.flatten() >= 0).nonzero()[:, 0]
        mask = parting_mask(regions)[:, None] if shift else None
        found.append(Group(len(part), part.flatten()[places], places, mask))
    return tuple(found)
