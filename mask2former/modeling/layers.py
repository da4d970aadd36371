"""Attention and perceptrons, batch first.

B images, Q queries, S keys, A heads, C channels. Parameter names are those of `torch.nn.MultiheadAttention`
(`in_proj_weight`, `in_proj_bias`, `out_proj`), so that published weights fit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops.deform_attn import has_cpu_kernels
from .packed_linear import is_ordinary, may_run_in_blocks

# On fewer keys PyTorch's kernel is as fast.
KEYS = 2048


class Attention(nn.Module):
    """Multi-head attention of queries over keys."""

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be split over {num_heads} heads; choose a divisor as NHEADS.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: (B, S, C); its type, and that of `value`, are those of their projections.
            value: (B, S, C).
            allowed: bool, broadcastable to (B, A, Q, S); True where a query may look. No row may be all False.

        Returns:
            (B, Q, C).
        """
        q, k, v = (self._heads(x, i) for i, x in enumerate((query, key, value)))
        dropout = self.dropout if self.training else 0.0
        attended = _attend(q, k, v, allowed, dropout)  # (B, A, Q, C/A)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, part: int) -> Tensor:
        """Project (B, S, C) by the part-th third of the weights and split it into (B, A, S, C/A)."""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> Tensor:
    """Attention of heads; see `F.scaled_dot_product_attention`."""
    if allowed is not None and not dropout and _has_kernel(q, k, allowed):
        from .masked_attention_kernels import masked_attention  # here: Numba takes its time to import

        return masked_attention(q, k, v, allowed)
    k, v = k.to(q.dtype), v.to(q.dtype)
    if torch.is_grad_enabled() and is_ordinary(q) and q.dtype == torch.bfloat16:
        # The gradient of PyTorch's kernel for bfloat16 takes longer than float32's.
        with torch.autocast("cpu", enabled=False):
            wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=allowed, dropout_p=dropout)
        return wide.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)


def _has_kernel(q: Tensor, k: Tensor, allowed: Tensor) -> bool:
    """Whether this is worth our kernel, and of the types it takes."""
    return (
        k.shape[2] >= KEYS
        and allowed.shape == (len(q), 1, q.shape[2], k.shape[2])
        and may_run_in_blocks(q)
        and q.dtype == torch.float32
        and has_cpu_kernels(k.dtype)
    )


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_channels) to (..., out_channels)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution in its published initial state."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def add_position(x: Tensor, position: Tensor | None) -> Tensor:
    """x plus its position encoding, where there is one."""
    return x if position is None else x + position
