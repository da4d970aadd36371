"""Batch normalisation with fixed statistics, folded into the convolution before it.

A pass over every feature map is saved. Parameters, buffers and their names stay as they are: the product of weights
and scales is made anew in each call, which costs thousandths of the convolution and can never be out of date.
"""

import functools

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


def fold_norms(module: nn.Module) -> None:
    """Let every detectron2 convolution in `module` apply its own norm as part of its weights, in place.

    A frozen norm is folded always (gradients reach the weights through the product), another batch norm in
    evaluation; any other norm is applied as before, as is any without gradients where folding does not pay.
    """
    for conv in module.modules():
        if not isinstance(conv, Conv2d) or type(conv).forward is not Conv2d.forward or conv.padding_mode != "zeros":
            continue
        if isinstance(conv.norm, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)):
            conv.forward = functools.partial(_convolve, conv)  # type: ignore[method-assign]  # this instance only


def _convolve(conv: Conv2d, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C', H', W')."""
    norm = conv.norm
    fixed = isinstance(norm, FrozenBatchNorm2d) or not (norm.training or norm.running_mean is None)
    if not fixed or conv.bias is not None or not (torch.is_grad_enabled() or _pays(conv, x)):
        return type(conv).forward(conv, x)
    scale = (norm.running_var + norm.eps).rsqrt()  # (C')
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    weight = conv.weight * scale[:, None, None, None]
    x = F.conv2d(x, weight.to(x.dtype), shift.to(x.dtype), conv.stride, conv.padding, conv.dilation, conv.groups)
    return x if conv.activation is None else conv.activation(x)


def _pays(conv: Conv2d, x: Tensor) -> bool:
    """Whether a pass over the weights takes less than one over the result (B, C', H', W').

    A GPU is always faster with one kernel more for the norm than with seven to fold it.
    """
    pixels = len(x) * x.shape[2:].numel() // (conv.stride[0] * conv.stride[1])
    return not x.is_cuda and pixels > conv.weight[0].numel()
