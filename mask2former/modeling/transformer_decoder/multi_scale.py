"""Masked-attention decoder over several feature levels (paper, section 3.2).

B images, Q queries, C channels, K classes, L = 3 levels, h w size of a level, H W size of the mask features.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..layers import MLP, Attention, projection
from ..position_encoding import sine_position_encoding
from ..resizing import resized
from .build import TRANSFORMER_DECODER_REGISTRY
from .prediction import Prediction

NUM_LEVELS = 3


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Each layer looks at one level, inside the masks predicted so far; then queries exchange; then a feed-forward."""

    _version = 2

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        """
        Args:
            in_channels: width of the features attended to.
            num_classes: K, without "no object".
            dec_layers: layers; predictions are one more.
            mask_dim: width of the mask features.
            enforce_input_project: project the features even if they have hidden_dim channels.
        """
        super().__init__()
        if not mask_classification:
            raise ValueError(
                "MultiScaleMaskedTransformerDecoder always predicts classes. For the per-pixel baseline set "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME to StandardTransformerDecoder."
            )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            projection(in_channels, hidden_dim) if project else nn.Identity() for _ in range(NUM_LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.DEC_LAYERS < 1:
            raise ValueError(f"MODEL.MASK_FORMER.DEC_LAYERS is {mask_former.DEC_LAYERS}; it must be at least 1.")
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            # DEC_LAYERS counts predictions, and the queries make one before the first layer.
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
        }

    def forward(
        self,
        x: list[Tensor],
        mask_features: Tensor,
        mask: Tensor | None = None,
        *,
        mask_projection: nn.Module | None = None,
        keys_dtype: torch.dtype | None = None,
    ) -> Prediction:
        """Predict Q classes and masks.

        Args:
            x: L levels of (B, in_channels, h, w), the coarsest first.
            mask_features: (B, mask_dim, H, W).
            mask: part of the published signature; padding is not masked, so it must be None.
            mask_projection: a 1 x 1 convolution that the mask features have yet to go through. The queries go through
                it instead, of which there are fewer: e . (W x + b) = (e W) . x + e . b.
            keys_dtype: type in which keys and values of all but the coarsest level are projected; by default theirs.

        Returns:
            What the last layer predicts, "pred_logits" (B, Q, K+1) and "pred_masks" (B, Q, H, W), and as "aux_outputs"
            what was predicted before it, the first one first.
        """
        if len(x) != NUM_LEVELS or mask is not None:
            raise ValueError(f"Expected {NUM_LEVELS} feature levels and no padding mask, got {len(x)} and {mask!r}.")
        sizes = [(level.shape[-2], level.shape[-1]) for level in x]
        memory = [self._flatten(level, i) for i, level in enumerate(x)]
        if keys_dtype is not None:
            # The coarsest has few pixels: rounding it would gain no time, and move masks the most.
            memory[1:] = [(keys.to(keys_dtype), values.to(keys_dtype)) for keys, values in memory[1:]]
        # Resizing and the product with a query are both linear: resize the features once, not every query's mask.
        small_mask_features = [resized(mask_features.detach(), size).flatten(2) for size in sizes]
        batch = mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        position = self.query_embed.weight.expand(batch, -1, -1)
        predictions = [self._predict(queries, mask_features, mask_projection)]
        for i in range(len(self.transformer_cross_attention_layers)):
            level = i % NUM_LEVELS
            allowed = attention_mask(predictions[-1].logits(small_mask_features[level]))
            queries = self.transformer_cross_attention_layers[i](queries, *memory[level], position, allowed)
            queries = self.transformer_self_attention_layers[i](queries, position)
            queries = self.transformer_ffn_layers[i](queries)
            predictions.append(self._predict(queries, mask_features, mask_projection))
        *earlier, last = predictions
        last["aux_outputs"] = earlier
        if not self.training:  # results need the last layer's masks; the criterion makes those that it compares
            last.make_masks()
        return last

    def _flatten(self, features: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(B, in_channels, h, w) to keys (with positions) and values, both (B, h*w, C)."""
        projected = self.input_proj[level](features)
        channels, height, width = projected.shape[1:]
        values = projected.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return values + sine_position_encoding(height, width, channels, values.device, values.dtype), values

    def _predict(self, queries: Tensor, mask_features: Tensor, projection: nn.Module | None) -> Prediction:
        """What the queries (B, Q, C) stand for."""
        state = self.decoder_norm(queries)
        embed = self.mask_embed(state)
        prediction = Prediction(pred_logits=self.class_embed(state), mask_embed=embed, mask_features=mask_features)
        if projection is not None:
            prediction["mask_embed"] = embed @ projection.weight.flatten(1)
            if projection.bias is not None:
                prediction["mask_bias"] = (embed @ projection.bias)[..., None]
        return prediction


@torch.no_grad()
def attention_mask(mask_logits: Tensor) -> Tensor:
    """Let each query look only inside its own predicted mask.

    A query whose mask is empty looks everywhere: a softmax over nothing is undefined.

    Args:
        mask_logits: (B, Q, S), of the pixels of the level attended to.

    Returns:
        (B, 1, Q, S) bool, True where the query may look; one mask for all heads.
    """
    inside = mask_logits >= 0  # the logit of probability one half
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


class _Residual(nn.Module):
    """A block added to its input: normalised after the sum, or (pre_norm) before the block."""

    def __init__(self, channels: int, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pre_norm = pre_norm

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre_norm else x

    def after(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update if self.pre_norm else self.norm(x + update)


class SelfAttentionLayer(_Residual):
    """Queries look at each other."""

    def __init__(self, channels: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.self_attn = Attention(channels, num_heads)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """(B, Q, C) queries and their positions to (B, Q, C)."""
        content = self.before(queries)
        placed = content + position
        return self.after(queries, self.self_attn(placed, placed, content))


class CrossAttentionLayer(_Residual):
    """Queries look at the pixels they are allowed to."""

    def __init__(self, channels: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.multihead_attn = Attention(channels, num_heads)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, position: Tensor, allowed: Tensor) -> Tensor:
        """(B, Q, C) queries over (B, S, C) keys and values, where the (B, 1, Q, S) mask says True, to (B, Q, C)."""
        return self.after(queries, self.multihead_attn(self.before(queries) + position, keys, values, allowed))


class FeedForwardLayer(_Residual):
    """Two linear layers on each query."""

    def __init__(self, channels: int, hidden_channels: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, C) to (B, Q, C)."""
        return self.after(queries, self.linear2(self.linear1(self.before(queries)).relu()))
