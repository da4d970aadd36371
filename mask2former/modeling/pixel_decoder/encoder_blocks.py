"""The deformable encoder on the CPU without gradients: all steps but sampling on some pixels, then on the next.

Sampling needs the values of all pixels; what comes between two samplings looks at each pixel alone. So the end of a
layer and the beginning of the next are done while a block of pixels is in the cache, into memory that all layers share.

B images, S pixels of all levels in a row, C channels, R rows of a block, A heads, D = C / A.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import ms_deform_attn_projected
from ..packed_linear import compute_dtype, is_mere, packed_linear

if TYPE_CHECKING:
    from .msdeformattn import DeformableEncoderLayer, Shapes

# R: activations of a block stay in the cache, and the order of the weights suits it.
ROWS = 2048


def serves(layer: "DeformableEncoderLayer") -> bool:
    """Whether the layer's parts are as built (the network's may be others), in float32, and neither drop nor report."""
    attention = layer.self_attn
    return (
        all(is_mere(part, nn.LayerNorm) and part.weight.dtype == torch.float32 for part in (layer.norm1, layer.norm2))
        and all(
            is_mere(part, nn.Linear)
            for part in (attention.sampling_offsets, attention.attention_weights, attention.output_proj)
        )
        and all(is_mere(part, type(part)) for part in (layer, attention))
        and not (layer.training and layer.dropout)
    )


def encode(
    layers: "Sequence[DeformableEncoderLayer]", pixels: Tensor, position: Tensor, centers: Tensor, shapes: "Shapes"
) -> Tensor:
    """All layers, of the same number of heads; matrix products in the type of autocast, sums and norms in float32.

    Args:
        pixels: (B, S, C), overwritten.
        position: (S, C).
        centers: (S, 2).
        shapes: (h, w) of each level.

    Returns:
        (B, S, C) float32.
    """
    dtype = compute_dtype(pixels)
    pixels = pixels.float()
    batch, total, _ = pixels.shape
    with torch.autocast("cpu", enabled=False):
        # Both are sampled as the products give them; the values are kept head by head.
        attention, heads = layers[0].self_attn, layers[0].self_attn.heads
        value = pixels.new_empty(batch, heads, total, pixels.shape[2] // heads, dtype=dtype)
        columns = attention.sampling_offsets.out_features + attention.attention_weights.out_features
        projected = pixels.new_empty(batch, total, columns, dtype=dtype)
        begin = [_beginning(layer, dtype) for layer in layers]
        for image, rows in _blocks(batch, total):
            begin[0](pixels[image, rows], position[rows], value[image, :, rows], projected[image, rows])
        for number, layer in enumerate(layers):
            sampled = ms_deform_attn_projected(value.transpose(1, 2), shapes, centers, projected)
            end = _end(layer, dtype)
            for image, rows in _blocks(batch, total):
                block = end(pixels[image, rows], sampled[image, rows])
                pixels[image, rows] = block
                if number + 1 < len(layers):
                    begin[number + 1](block, position[rows], value[image, :, rows], projected[image, rows])
    return pixels


def _blocks(batch: int, total: int) -> Iterator[tuple[int, slice]]:
    for image in range(batch):
        for start in range(0, total, ROWS):
            yield image, slice(start, start + ROWS)


def _beginning(layer: "DeformableEncoderLayer", dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """What comes before sampling: pixels and position (R, C) to values (A, R, D), offsets and logits (R, A*L*P*3)."""
    attention = layer.self_attn
    to_value = packed_linear(attention.value_proj, dtype, ROWS)
    # Two projections of the same queries, as one matrix product.
    parts = (attention.sampling_offsets, attention.attention_weights)
    weight, bias = (torch.cat([getattr(part, name) for part in parts]).to(dtype) for name in ("weight", "bias"))

    def begin(pixels: Tensor, position: Tensor, value: Tensor, projected: Tensor) -> None:
        value.copy_(to_value(pixels.to(dtype)).unflatten(1, (len(value), -1)).transpose(0, 1))
        torch.addmm(bias, (pixels + position).to(dtype), weight.T, out=projected)

    return begin


def _end(layer: "DeformableEncoderLayer", dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """What follows on sampling: pixels and what they sampled, both (R, C), to the layer's result (R, C)."""
    project = layer.self_attn.output_proj
    weight, bias = project.weight.to(dtype), project.bias.to(dtype)
    widen = packed_linear(layer.linear1, dtype, ROWS, "relu")
    narrow = packed_linear(layer.linear2, dtype, ROWS)

    def end(pixels: Tensor, sampled: Tensor) -> Tensor:
        pixels = layer.norm1(pixels + F.linear(sampled.to(dtype), weight, bias))
        return layer.norm2(pixels + narrow(widen(pixels.to(dtype))))

    return end
