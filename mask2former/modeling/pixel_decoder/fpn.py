"""The pixel decoders of MaskFormer: a feature pyramid, and one whose coarsest level passes a transformer encoder first.

B images, C channels, H W size of a level.
"""

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..position_encoding import sine_position_encoding

MULTI_SCALE_LEVELS = 3


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """From the coarsest feature up: double the size, add the next finer feature, smooth."""

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            norm: normalisation of the convolutions, as `detectron2.layers.get_norm` takes it.
        """
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.mask_dim = mask_dim
        for number, name in enumerate(self.in_features, start=1):
            channels = input_shape[name].channels
            coarsest = number == len(self.in_features)
            if not coarsest:
                self.add_module(f"adapter_{number}", _conv(channels, conv_dim, norm, size=1))
            smooth = _conv(
                self._coarsest_channels(channels, conv_dim) if coarsest else conv_dim, conv_dim, norm, size=3
            )
            self.add_module(f"layer_{number}", smooth)
        self.mask_features = Conv2d(conv_dim, mask_dim, 3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: spec for name, spec in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """
        Args:
            features: (B, C_i, H_i, W_i) by name.

        Returns:
            mask features (B, mask_dim, H, W) at the finest stride; what the transformer encoder gave, None without
            one; the three coarsest levels (B, conv_dim, H_i, W_i), coarsest first.
        """
        coarsest, encoded = self._encode(features[self.in_features[-1]])
        levels = [self.get_submodule(f"layer_{len(self.in_features)}")(coarsest)]
        for number in range(len(self.in_features) - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{number}")(features[self.in_features[number - 1]])
            lateral = lateral + F.interpolate(levels[-1], lateral.shape[-2:], mode="nearest")
            levels.append(self.get_submodule(f"layer_{number}")(lateral))
        return self.mask_features(levels[-1]), encoded, levels[:MULTI_SCALE_LEVELS]

    def _coarsest_channels(self, channels: int, conv_dim: int) -> int:
        """Channels of what `_encode` gives the first convolution."""
        return channels

    def _encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the pyramid starts from, and the second result of `forward_features`."""
        return coarsest, None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """The pyramid of `BasePixelDecoder` on a coarsest level whose pixels have attended to each other."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_pre_norm: bool,
        conv_dim: int,
        mask_dim: int,
        norm: str,
    ) -> None:
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.input_proj = Conv2d(input_shape[self.in_features[-1]].channels, conv_dim, 1)
        weight_init.c2_xavier_fill(self.input_proj)
        # Two modules around the layers, for the published parameter names.
        self.transformer = nn.Module()
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(
            EncoderLayer(
                conv_dim, transformer_nheads, transformer_dim_feedforward, transformer_dropout, transformer_pre_norm
            )
            for _ in range(transformer_enc_layers)
        )
        norm_after: Any = nn.LayerNorm(conv_dim) if transformer_pre_norm else None
        self.transformer.encoder.norm = norm_after

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "transformer_dropout": mask_former.DROPOUT,
            "transformer_nheads": mask_former.NHEADS,
            "transformer_dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_pre_norm": mask_former.PRE_NORM,
        }

    def _coarsest_channels(self, channels: int, conv_dim: int) -> int:
        return conv_dim

    def _encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.input_proj(coarsest)
        _, channels, height, width = projected.shape
        position = sine_position_encoding(height, width, channels, projected.device, projected.dtype)
        pixels = projected.flatten(2).transpose(1, 2)  # (B, H * W, C)
        encoder = self.transformer.encoder
        for layer in encoder.layers:
            pixels = layer(pixels, position)
        if encoder.norm is not None:
            pixels = encoder.norm(pixels)
        encoded = pixels.transpose(1, 2).reshape(projected.shape)
        return encoded, encoded


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, normalised before (`pre_norm`) or after each residual sum."""

    def __init__(self, channels: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = dropout
        self.pre_norm = pre_norm
        for weight in (self.self_attn.out_proj.weight, self.linear1.weight, self.linear2.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, pixels: Tensor, position: Tensor) -> Tensor:
        """
        Args:
            pixels: (B, S, C).
            position: (S, C), added to queries and keys but not to the values.

        Returns:
            (B, S, C).
        """
        if self.pre_norm:
            pixels = pixels + self._attend(self.norm1(pixels), position)
            return pixels + self._feed_forward(self.norm2(pixels))
        pixels = self.norm1(pixels + self._attend(pixels, position))
        return self.norm2(pixels + self._feed_forward(pixels))

    def _attend(self, pixels: Tensor, position: Tensor) -> Tensor:
        queries = pixels + position
        return self._drop(self.self_attn(queries, queries, pixels, need_weights=False)[0])

    def _feed_forward(self, pixels: Tensor) -> Tensor:
        return self._drop(self.linear2(self._drop(F.relu(self.linear1(pixels)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _conv(in_channels: int, out_channels: int, norm: str, size: int) -> Conv2d:
    """Convolution and norm, and a ReLU unless it is the 1 x 1 of a lateral path."""
    conv = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu if size > 1 else None,
    )
    weight_init.c2_xavier_fill(conv)
    return conv
