"""Swin's blocks in the published order of operations, for `plain`: every step on all windows, attention written out.

B images, H W size of a stage, C channels, T windows of an image, N pixels of a window, A heads.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.backbone.swin import PatchMerging, SwinBlock, from_windows, shift_mask, to_windows


def make_plain(backbone: nn.Module) -> None:
    """Let every block of a Swin, and every step between stages, run plainly, in place; other backbones stay."""
    for module in backbone.modules():
        if isinstance(module, SwinBlock):
            module.forward = functools.partial(plain_block, module)
        elif isinstance(module, PatchMerging):
            module.forward = functools.partial(plain_merging, module)


def plain_block(block: SwinBlock, x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C)."""
    height, width = x.shape[1:3]
    window, shift = block.window, block.shift
    padded = F.pad(block.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
    mask = None
    if shift:
        padded = torch.roll(padded, (-shift, -shift), (1, 2))
        mask = shift_mask(*padded.shape[1:3], window, shift, x.device)
    windows = plain_attention(block, to_windows(padded, window).contiguous(), mask)
    moved = from_windows(windows, *padded.shape[1:3], window)
    if shift:
        moved = torch.roll(moved, (shift, shift), (1, 2))
    x = x + block._drop_path(moved[:, :height, :width].contiguous())
    hidden = F.dropout(F.gelu(block.mlp.fc1(block.norm2(x))), block.drop, block.training)
    return x + block._drop_path(F.dropout(block.mlp.fc2(hidden), block.drop, block.training))


def plain_attention(block: SwinBlock, windows: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, N, C), (T, N, N) -> (B, T, N, C)."""
    attn = block.attn
    batch, number, pixels, channels = windows.shape
    qkv = attn.qkv(windows).reshape(batch * number, pixels, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv
    scale = attn.scale or (channels // attn.heads) ** -0.5
    logits = (queries * scale) @ keys.transpose(-2, -1) + attn.position_bias()  # (B * T, A, N, N)
    if mask is not None:
        logits = (logits.unflatten(0, (batch, number)) + mask[:, None]).flatten(0, 1)
    weights = F.dropout(logits.softmax(-1), attn.attn_drop, block.training)
    out = (weights @ values).transpose(1, 2).reshape(batch, number, pixels, channels)
    return F.dropout(attn.proj(out), attn.proj_drop, block.training)


def plain_merging(merging: PatchMerging, x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return merging.reduction(merging.norm(torch.cat(four, -1)))
