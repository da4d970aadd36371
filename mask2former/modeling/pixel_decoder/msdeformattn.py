"""The pixel decoder of the paper (section 3.1): multi-scale deformable attention over three levels, then one FPN step.

B images, C channels, S pixels of all levels in a row, A heads, L levels, P points, H W size of a level.
"""

import math
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .. import convolution
from ..ops import ms_deform_attn_projected
from ..packed_linear import feed_forward, linear, linear_of_sum, may_run_in_blocks
from ..position_encoding import cached_per_shape, sine_position_encoding
from . import encoder_blocks

# Fixed by the published weights; no config key reaches them.
POINTS = 4
FEEDFORWARD = 1024
MULTI_SCALE_LEVELS = 3

Shapes = tuple[tuple[int, int], ...]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features in; mask features at the common stride and three levels for the queries out."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: list[str],
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            transformer_in_features: names of the features that attend to each other.
            norm: normalisation of the FPN convolutions, as `detectron2.layers.get_norm` takes it.
            common_stride: stride of the mask features.

        Raises:
            ValueError: a feature is missing, or no FPN step leads from the finest level to `common_stride`.
        """
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        missing = set(transformer_in_features) - set(by_stride)
        if missing:
            raise ValueError(
                f"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES names {sorted(missing)}, but SEM_SEG_HEAD.IN_FEATURES "
                f"is {by_stride}; name features of that list only"
            )
        # Coarsest first, the order of the published weights.
        self.transformer_in_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shape[name].channels, conv_dim, 1), nn.GroupNorm(32, conv_dim))
            for name in self.transformer_in_features
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = DeformableTransformer(
            conv_dim, transformer_nheads, transformer_enc_layers, len(self.transformer_in_features), transformer_dropout
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, 1)
        weight_init.c2_xavier_fill(self.mask_features)

        finest = input_shape[self.transformer_in_features[-1]].stride
        steps = round(math.log2(finest / common_stride))
        if not 0 <= steps < len(by_stride):
            raise ValueError(
                f"no path from stride {finest} to COMMON_STRIDE {common_stride} over the features {by_stride}; "
                "add finer features to MODEL.SEM_SEG_HEAD.IN_FEATURES or change COMMON_STRIDE"
            )
        self.fpn_features = by_stride[:steps]
        for index, name in enumerate(self.fpn_features, start=1):
            lateral = Conv2d(input_shape[name].channels, conv_dim, 1, bias=norm == "", norm=get_norm(norm, conv_dim))
            output = Conv2d(
                conv_dim, conv_dim, 3, padding=1, bias=norm == "", norm=get_norm(norm, conv_dim), activation=F.relu
            )
            for prefix, conv in (("adapter", lateral), ("layer", output)):
                weight_init.c2_xavier_fill(conv)
                self.add_module(f"{prefix}_{index}", conv)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "input_shape": {name: spec for name, spec in input_shape.items() if name in head.IN_FEATURES},
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "transformer_dropout": mask_former.DROPOUT,
            "transformer_nheads": mask_former.NHEADS,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """
        Args:
            features: (B, C_i, H_i, W_i) by name.

        Returns:
            mask features (B, mask_dim, H, W) at the common stride; the coarsest encoded level; three levels
            (B, conv_dim, H_i, W_i) for the transformer decoder, coarsest first.
        """
        maps = self.pyramid(features)
        return self.mask_features(maps[-1]), maps[0], maps[:MULTI_SCALE_LEVELS]

    def pyramid(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The encoded levels, and finer maps up to what `mask_features` is applied to; (B, conv_dim, H_i, W_i)."""
        inputs = [
            project(features[name]) for name, project in zip(self.transformer_in_features, self.input_proj, strict=True)
        ]
        levels = self.transformer(inputs)
        for index in range(len(self.fpn_features), 0, -1):
            # Whatever stands there: `convolution` looks before it takes them for convolutions.
            lateral, smooth = (getattr(self, f"{prefix}_{index}") for prefix in ("adapter", "layer"))
            finer = features[self.fpn_features[index - 1]]
            if convolution.serves(lateral, smooth, finer):
                levels.append(convolution.smoothed_sum(lateral, smooth, finer, levels[-1]))
                continue
            adapted = lateral(finer)
            coarse = F.interpolate(levels[-1], adapted.shape[-2:], mode="bilinear", align_corners=False)
            levels.append(smooth(adapted + coarse))
        return levels


class DeformableTransformer(nn.Module):
    """All pixels of all levels in a row attend to a few points of each level."""

    def __init__(self, channels: int, heads: int, layers: int, levels: int, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(channels, heads, levels, dropout) for _ in range(layers)
        )
        self.level_embed = nn.Parameter(torch.empty(levels, channels))
        nn.init.normal_(self.level_embed)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """
        Args:
            inputs: (B, C, H_i, W_i) of each level.

        Returns:
            the same shapes, encoded.
        """
        shapes: Shapes = tuple((x.shape[-2], x.shape[-1]) for x in inputs)
        device, channels = inputs[0].device, inputs[0].shape[1]
        pixels = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], 1)  # (B, S, C)
        position = torch.cat(
            [
                sine_position_encoding(h, w, channels, device) + embedding
                for (h, w), embedding in zip(shapes, self.level_embed, strict=True)
            ]
        ).to(pixels.dtype)  # (S, C)
        centers = pixel_centers(shapes, device)
        layers: Any = self.encoder.layers
        alike = len({layer.self_attn.heads for layer in layers}) == 1
        if alike and may_run_in_blocks(pixels) and all(map(encoder_blocks.serves, layers)):
            pixels = encoder_blocks.encode(layers, pixels, position, centers, shapes)
        else:
            for layer in layers:
                pixels = layer(pixels, position, centers, shapes)
        split = pixels.split([h * w for h, w in shapes], 1)
        return [x.transpose(1, 2).reshape(-1, channels, h, w) for x, (h, w) in zip(split, shapes, strict=True)]


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a residual sum and a LayerNorm."""

    def __init__(self, channels: int, heads: int, levels: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(channels, heads, levels, POINTS)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = dropout
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, pixels: Tensor, position: Tensor, centers: Tensor, shapes: Shapes) -> Tensor:
        """
        Args:
            pixels: (B, S, C).
            position: (S, C), added to the queries but not to the values.
            centers: (S, 2), where each pixel is.

        Returns:
            (B, S, C).
        """
        pixels = self.norm1(pixels + self._drop(self.self_attn(pixels, position, centers, shapes)))
        if self.training and self.dropout:
            hidden = self._drop(linear(self.linear1, pixels, relu=True))
            return self.norm2(pixels + self._drop(linear(self.linear2, hidden)))
        return self.norm2(pixels + feed_forward(self.linear1, self.linear2, pixels))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, equation 3) with its four projections."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"SEM_SEG_HEAD.CONVS_DIM {channels} must be divisible by MASK_FORMER.NHEADS {heads}; change one of them"
            )
        self.heads = heads
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Head by head another direction; point by point one pixel further (in the maximum norm).
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # (A, 2)
        distance = torch.arange(1.0, points + 1)
        steps = torch.einsum("ac,p->apc", direction, distance)[:, None].expand(heads, levels, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.reshape(-1))

    def forward(self, pixels: Tensor, position: Tensor, centers: Tensor, shapes: Shapes) -> Tensor:
        """
        Args:
            pixels: (B, S, C), what is sampled; with their position, the queries.
            position: (S, C).
            centers: (S, 2), the point in [0, 1] x [0, 1] around which each query looks.
            shapes: (h, w) of each level.

        Returns:
            (B, S, C).
        """
        batch, total, channels = pixels.shape
        value = linear(self.value_proj, pixels).reshape(batch, total, self.heads, channels // self.heads)
        # Two projections of the same queries, as one matrix product.
        weight = torch.cat([self.sampling_offsets.weight, self.attention_weights.weight])
        bias = torch.cat([self.sampling_offsets.bias, self.attention_weights.bias])
        projected = linear_of_sum(pixels, position, weight, bias)
        return linear(self.output_proj, ms_deform_attn_projected(value, shapes, centers, projected))


@cached_per_shape()
def pixel_centers(shapes: Shapes, device: torch.device) -> Tensor:
    """Centres of all pixels of all levels, x and y in [0, 1]; (S, 2) float32."""
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2))
    return torch.cat(centers)
