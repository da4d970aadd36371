"""PyTorch layers and functions with detectron2's extra keywords."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = nn.Linear
ConvTranspose2d = nn.ConvTranspose2d
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """A convolution that carries its own normalisation and activation.

    `norm` becomes the child module "norm", so parameters are named `weight` and `norm.weight`.
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'): convolve, then normalise, then activate."""
        y = super().forward(x)
        for then in (self.norm, self.activation):
            if then is not None:
                y = then(y)
        return y


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that does not copy a list of one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """`F.cross_entropy`, except that no target at all costs 0 (with a gradient) instead of NaN."""
    if reduction == "mean" and target.numel() == 0:
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """One index tensor for each dimension of `x` (a scalar counts as having one)."""
    return torch.atleast_1d(x).nonzero(as_tuple=True)


def shapes_to_tensor(x: Sequence[int], device: torch.device | None = None) -> Tensor:
    """A shape as a tensor, keeping sizes that are tensors while a model is traced."""
    if any(isinstance(size, Tensor) for size in x):
        return torch.stack([torch.as_tensor(size, device=device) for size in x])
    return torch.as_tensor(x, device=device)
