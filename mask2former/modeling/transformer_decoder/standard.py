"""The decoder of MaskFormer: DETR's transformer over one feature map, then masks by an inner product.

B images, Q queries, C channels, K classes, h w size of the feature map, H W size of the mask features, S = h*w.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..layers import MLP, Attention, add_position, projection
from ..position_encoding import sine_position_encoding
from .build import TRANSFORMER_DECODER_REGISTRY
from .prediction import Prediction


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Queries attend to the whole feature map; every layer predicts classes and masks."""

    _version = 2

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_queries: int,
        num_classes: int,
        mask_dim: int,
        hidden_dim: int,
        enforce_input_project: bool,
        enc_layers: int,
        dec_layers: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        deep_supervision: bool,
    ) -> None:
        """
        Args:
            in_channels: width of the feature map.
            mask_classification: False: masks only, one query per class.
            num_classes: K, without "no object".
            mask_dim: width of the mask features.
            enforce_input_project: project the feature map even if it has hidden_dim channels.
            deep_supervision: also return what the layers before the last predict.
        """
        super().__init__()
        self.deep_supervision = deep_supervision
        self.transformer = Transformer(
            hidden_dim, nheads, dim_feedforward, dropout, pre_norm, num_encoder=enc_layers, num_decoder=dec_layers
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = projection(in_channels, hidden_dim) if project else nn.Identity()
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1) if mask_classification else None
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
            "enc_layers": mask_former.ENC_LAYERS,
            "dec_layers": mask_former.DEC_LAYERS,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "dropout": mask_former.DROPOUT,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
        }

    def forward(self, x: Tensor, mask_features: Tensor, mask: Tensor | None = None) -> Prediction:
        """Predict Q classes and masks.

        Args:
            x: (B, in_channels, h, w).
            mask_features: (B, mask_dim, H, W).
            mask: part of the published signature; padding is not masked, so it must be None.

        Returns:
            "pred_logits" (B, Q, K+1; absent without mask_classification) and "pred_masks" (B, Q, H, W); with deep
            supervision also "aux_outputs": the same of every layer before the last, the first one first.
        """
        if mask is not None:
            raise ValueError("A padding mask is not supported; pass None.")
        states = self.transformer(self.input_proj(x), self.query_embed.weight)
        *earlier, last = [self._predict(state, mask_features) for state in states]
        if self.deep_supervision:
            last["aux_outputs"] = earlier
        if not self.training:
            last.make_masks()
        return last

    def _predict(self, state: Tensor, mask_features: Tensor) -> Prediction:
        """What the queries (B, Q, C) stand for."""
        prediction = Prediction(mask_embed=self.mask_embed(state), mask_features=mask_features)
        if self.class_embed is not None:
            prediction["pred_logits"] = self.class_embed(state)
        return prediction


class Transformer(nn.Module):
    """DETR's transformer: optional encoder layers on the pixels, decoder layers on the queries."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        hidden_channels: int,
        dropout: float,
        pre_norm: bool,
        *,
        num_encoder: int,
        num_decoder: int,
    ) -> None:
        super().__init__()
        layer = (channels, num_heads, hidden_channels, dropout, pre_norm)
        self.encoder = _Stack([EncoderLayer(*layer) for _ in range(num_encoder)])
        if pre_norm and num_encoder:  # what no layer has normalised yet
            self.encoder.norm = nn.LayerNorm(channels)
        self.decoder = _Stack([DecoderLayer(*layer) for _ in range(num_decoder)])
        self.decoder.norm = nn.LayerNorm(channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor, query_position: Tensor) -> list[Tensor]:
        """Run all layers.

        Args:
            features: (B, C, h, w).
            query_position: (Q, C).

        Returns:
            The normalised queries (B, Q, C) after each decoder layer.
        """
        batch, channels, height, width = features.shape
        position = sine_position_encoding(height, width, channels, features.device, features.dtype)
        memory = features.flatten(2).transpose(1, 2)  # (B, S, C)
        for layer in self.encoder.layers:
            memory = layer(memory, position)
        if hasattr(self.encoder, "norm"):
            memory = self.encoder.norm(memory)
        query_position = query_position.expand(batch, -1, -1)
        queries = torch.zeros_like(query_position)
        states = []
        for layer in self.decoder.layers:
            queries = layer(queries, query_position, memory, position)
            states.append(self.decoder.norm(queries))
        return states


class _Stack(nn.Module):
    """A name for `layers` (and a `norm`) in the state dict."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class EncoderLayer(nn.Module):
    """Pixels attend to each other; then a feed-forward."""

    num_norms = 2
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm

    def __init__(self, channels: int, num_heads: int, hidden_channels: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(channels, num_heads, dropout)
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        for i in range(self.num_norms):
            self.add_module(f"norm{i + 1}", nn.LayerNorm(channels))
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor | None) -> Tensor:
        """(B, S, C) and its positions to (B, S, C)."""
        x = self.residual(x, self.norm1, lambda y: self.attend(y, position))
        return self.residual(x, self.norm2, self.feed_forward)

    def attend(self, x: Tensor, position: Tensor | None) -> Tensor:
        placed = add_position(x, position)
        return self.self_attn(placed, placed, x)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.linear1(x).relu()))

    def residual(self, x: Tensor, norm: nn.Module, block: Any) -> Tensor:
        """x plus what the block makes of it, normalised before the block or after the sum."""
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))


class DecoderLayer(EncoderLayer):
    """Queries attend to each other, then to the pixels; then a feed-forward."""

    num_norms = 3
    norm3: nn.LayerNorm

    def __init__(self, channels: int, num_heads: int, hidden_channels: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(channels, num_heads, hidden_channels, dropout, pre_norm)
        self.multihead_attn = Attention(channels, num_heads, dropout)

    def forward(  # type: ignore[override]  # also takes what to attend to
        self, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor
    ) -> Tensor:
        """(B, Q, C) queries over the (B, S, C) memory to (B, Q, C)."""
        keys = memory + position
        x = self.residual(x, self.norm1, lambda y: self.attend(y, query_position))
        x = self.residual(x, self.norm2, lambda y: self.multihead_attn(y + query_position, keys, memory))
        return self.residual(x, self.norm3, self.feed_forward)
