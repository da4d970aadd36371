"""Swin Transformer (Liu et al. 2021) as a detectron2 backbone.

B images, C channels, H W size of a stage, N = w*w pixels of a window, A heads, T windows of an image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..packed_linear import is_mere, may_run_in_blocks
from . import swin_blocks
from .windows import from_windows, shift_mask, to_windows


class SwinTransformer(Backbone):
    """Four stages of windowed attention at strides 4 to 32; the features are "res2" to "res5"."""

    absolute_pos_embed: nn.Parameter | None

    def __init__(
        self,
        *,
        in_channels: int,
        pretrain_img_size: int,
        patch_size: int,
        embed_dim: int,
        depths: list[int],
        num_heads: list[int],
        window_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        ape: bool,
        patch_norm: bool,
        out_features: list[str],
        use_checkpoint: bool,
        frozen_stages: int = 0,
    ) -> None:
        """
        Args:
            pretrain_img_size: side of the images that the absolute position embedding (`ape`) was trained on.
            drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
            use_checkpoint: compute the blocks again in the backward pass, for less memory.
            frozen_stages: 1 freezes the patch embedding, n + 1 also the first n stages; 0 nothing.

        Raises:
            ValueError: a feature is asked for that there is not.
        """
        super().__init__()
        channels = [embed_dim * 2**stage for stage in range(len(depths))]
        names = [f"res{stage + 2}" for stage in range(len(depths))]
        unknown = set(out_features) - set(names)
        if unknown or not out_features:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}; choose from {names}")
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(names, channels, strict=True))
        self._out_feature_strides = {name: patch_size * 2**stage for stage, name in enumerate(names)}
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, patch_norm)
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        else:
            self.absolute_pos_embed = None
        self.drop_rate = drop_rate
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            Stage(
                [
                    SwinBlock(
                        channels[stage],
                        num_heads[stage],
                        window_size,
                        # Every second block shifts its windows by half.
                        shift=window_size // 2 * (block % 2),
                        mlp_ratio=mlp_ratio,
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        drop=drop_rate,
                        attn_drop=attn_drop_rate,
                        drop_path=drop_paths[stage][block].item(),
                    )
                    for block in range(depth)
                ],
                downsample=PatchMerging(channels[stage]) if stage + 1 < len(depths) else None,
                use_checkpoint=use_checkpoint,
            )
            for stage, depth in enumerate(depths)
        )
        for stage, name in enumerate(names):
            if name in self._out_features:
                self.add_module(f"norm{stage}", nn.LayerNorm(channels[stage]))
        self.apply(_init_linear)
        self._freeze()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W), any size.

        Returns:
            (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) by name.
        """
        x = self.patch_embed(images)  # (B, H, W, C)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + position.permute(0, 2, 3, 1)
        x = F.dropout(x, self.drop_rate, self.training)
        features = {}
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            name = f"res{stage + 2}"
            if name in self._out_features:
                # Only the strides change: the features stay channels-last in memory.
                features[name] = self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2)
            if layer.downsample is not None and stage + 1 < len(self.layers):
                x = layer.downsample(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def train(self, mode: bool = True) -> "SwinTransformer":
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        """Frozen parts learn nothing and drop nothing."""
        if self.frozen_stages < 1:
            return
        frozen: list[nn.Module] = [self.patch_embed, *self.layers[: self.frozen_stages - 1]]
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """`SwinTransformer`, built from MODEL.SWIN."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__(**self.from_config(cfg, input_shape))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWIN
        # The keys of MODEL.SWIN and the arguments bear the same names.
        arguments = {name.lower(): value for name, value in swin.items()}
        return arguments | {"in_channels": input_shape.channels, "frozen_stages": cfg.MODEL.BACKBONE.FREEZE_AT}


class PatchEmbed(nn.Module):
    """Patches to vectors; an image that does not divide is padded at the right and below."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)."""
        below, right = (-size % self.patch_size for size in images.shape[-2:])
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        x = self.proj(images).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class Stage(nn.Module):
    """Blocks of one resolution, and the step to the next, which the backbone takes after reading the features."""

    def __init__(self, blocks: list["SwinBlock"], downsample: "PatchMerging | None", use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class SwinBlock(nn.Module):
    """Windowed attention and a two-layer network, each normalised before and added to what it was given."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        *,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.drop, self.drop_path = drop, drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(channels, int(channels * mlp_ratio))
        self.mlp.fc2 = nn.Linear(int(channels * mlp_ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if may_run_in_blocks(x) and self._nothing_else_happens():
            return swin_blocks.in_groups(self, x)
        x = x + self._drop_path(self._attend(self.norm1(x)))
        hidden = F.dropout(F.gelu(self.mlp.fc1(self.norm2(x))), self.drop, self.training)
        return x + self._drop_path(F.dropout(self.mlp.fc2(hidden), self.drop, self.training))

    def _nothing_else_happens(self) -> bool:
        """Whether the block's parts, linear layers apart, are as built, and neither drop nor report anything."""
        parts = (
            (self.attn, WindowAttention),
            (self.mlp, nn.Module),
            (self.norm1, nn.LayerNorm),
            (self.norm2, nn.LayerNorm),
        )
        return not self.training and all(is_mere(part, kind) for part, kind in parts)

    def _attend(self, x: Tensor) -> Tensor:
        """Attention inside windows of an image padded to whole windows, rolled by the shift."""
        height, width = x.shape[1:3]
        below, right = -height % self.window, -width % self.window
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(x.shape[1], x.shape[2], self.window, self.shift, x.device)
        x = from_windows(self.attn(to_windows(x, self.window), mask), x.shape[1], x.shape[2], self.window)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _drop_path(self, x: Tensor) -> Tensor:
        """Stochastic depth: leave the branch out for some images of a batch, and scale it up for the others."""
        if not (self.training and self.drop_path):
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


class WindowAttention(nn.Module):
    """Multi-head attention of the pixels of a window, with a learned bias for each relative position."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, qk_scale
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Row of the table for each pair of pixels: (dy + w - 1) * (2 w - 1) + dx + w - 1.
        y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
        down, right = y[:, None] - y[None], x[:, None] - x[None]
        index = (down + window - 1) * (2 * window - 1) + right + window - 1
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(channels, channels * 3, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """
        Args:
            windows: (B, T, N, C).
            mask: (T, N, N), 0 where a pixel may look at another and -100 where not; None for everywhere.

        Returns:
            (B, T, N, C).
        """
        batch, number, pixels, channels = windows.shape
        qkv = self.qkv(windows).reshape(batch * number, pixels, 3, self.heads, channels // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B * T, A, N, C / A)
        bias = self.position_bias()
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        # Four dimensions: with five, PyTorch leaves its fused kernel.
        out = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=bias.to(queries.dtype).expand(batch * number, self.heads, pixels, pixels),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        out = out.transpose(1, 2).reshape(batch, number, pixels, channels)
        return F.dropout(self.proj(out), self.proj_drop, self.training)

    def position_bias(self) -> Tensor:
        """(1, A, N, N), what a pixel's place relative to another's adds to their logits."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]


class PatchMerging(nn.Module):
    """Four neighbours become one pixel with twice the channels; an odd size is padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        below, right = x.shape[1] % 2, x.shape[2] % 2
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        # The published order of the four: top left, bottom left, top right, bottom right.
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4 C)
        if may_run_in_blocks(x):
            return swin_blocks.in_rows(self.norm, self.reduction, x)
        return self.reduction(self.norm(x))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
