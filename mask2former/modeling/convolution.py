"""3 x 3 convolutions on the CPU by NNPACK, which PyTorch ships but does not choose by itself.

NNPACK transforms tiles of 6 x 6 results (Winograd) and so multiplies 5 times less; on 256 channels at a quarter of the
image it takes less than half of oneDNN's time. Its rounding error is 1e-5 of the largest result instead of 1e-6.
It wants channels before pixels (NCHW), as a matrix product can deliver and take them without a copy.

B images, C channels, H W size of a map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .ops.deform_attn import has_cpu_kernels
from .packed_linear import compute_dtype, is_mere, is_ordinary

# A smaller convolution to be differentiated is left to oneDNN: NNPACK would gain a few milliseconds or lose them.
CHANNELS, PIXELS = 128, 32 * 32


def serves(lateral: nn.Module, smooth: nn.Module, features: Tensor) -> bool:
    """Whether `smoothed_sum` may stand for these convolutions, normalised by groups, of these features."""
    if not (is_mere(lateral, Conv2d) and is_mere(smooth, Conv2d)):
        return False
    dtype, differentiated = compute_dtype(features), torch.is_grad_enabled()
    return (
        is_ordinary(features)
        and features.dtype in (torch.float32, dtype)
        and has_nnpack()
        and all(is_mere(conv.norm, nn.GroupNorm) and conv.norm.affine for conv in (lateral, smooth))
        and _is_simple(lateral, 1)
        and _is_simple(smooth, 3)
        and lateral.activation is None
        and smooth.activation is F.relu
        and (dtype == torch.float32 and _pays(smooth, features) if differentiated else has_cpu_kernels(dtype))
    )


def has_nnpack() -> bool:
    """Whether this build and processor have it; asking also makes NNPACK ready, without which it refuses to run."""
    return hasattr(torch, "_nnpack_spatial_convolution") and torch.backends.nnpack.is_available()


def smoothed_sum(lateral: Conv2d, smooth: Conv2d, features: Tensor, coarse: Tensor) -> Tensor:
    """One step up a feature pyramid: smooth(lateral(features) + coarse, resized); see `serves`.

    Args:
        features: (B, C', H, W).
        coarse: (B, C, h, w).

    Returns:
        (B, C, H, W) float32, channels before pixels. Under autocast only the 1 x 1 product is in its type: NNPACK in
        float32 takes less time than oneDNN in bfloat16.
    """
    dtype = compute_dtype(features)
    lateral_norm: Any = lateral.norm
    smooth_norm: Any = smooth.norm
    with torch.autocast("cpu", enabled=False):
        if torch.is_grad_enabled():
            x = lateral(features)
            coarse = F.interpolate(coarse.contiguous(), x.shape[-2:], mode="bilinear", align_corners=False)
            x = _Winograd.apply(x + coarse, smooth.weight, smooth.bias)
            return smooth_norm(x).relu_()
        from . import pyramid_kernels as kernels  # here: Numba takes its time to import

        x = torch.empty(len(features), lateral.out_channels, *features.shape[-2:])
        for fine, rough, out in zip(features.to(dtype), coarse.float(), x, strict=True):
            # A float32 product is written where its sum will be.
            product = out if dtype == out.dtype else torch.empty_like(out, dtype=dtype)
            torch.mm(lateral.weight.flatten(1).to(dtype), fine.flatten(1), out=product.flatten(1))
            kernels.normalized_sum(product, lateral.bias, lateral_norm, rough, out)
        x = winograd(x, smooth.weight, None)
        for image in x:
            kernels.normalize_relu(image, smooth.bias, smooth_norm)
        return x


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution (B, C, H, W) -> (B, C', H, W) that keeps the size; without gradients.

    Image by image: for several NNPACK chooses the Fourier transform, which takes four times longer.
    """
    x, weight = x.contiguous(), weight.contiguous()
    images = [torch._nnpack_spatial_convolution(image, weight, bias, 1) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


class _Winograd(torch.autograd.Function):
    """`winograd` with gradients: that of the input is again a convolution, that of the weight is oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return winograd(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_input, *by_parameters = ctx.needs_input_grad
        grad_x = winograd(grad, weight.flip(2, 3).transpose(0, 1), None) if by_input else None
        one = (1, 1)
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, weight.shape[:1], one, one, one, False, (0, 0), 1, (False, *by_parameters)
        )
        return grad_x, grad_weight, grad_bias


def is_projection(conv: nn.Module) -> bool:
    """Whether this is a matrix product for each pixel and nothing else."""
    return is_mere(conv, Conv2d) and conv.norm is None and conv.activation is None and _is_simple(conv, 1)


def _pays(conv: Conv2d, x: Tensor) -> bool:
    return min(conv.in_channels, conv.out_channels) >= CHANNELS and x.shape[-2:].numel() >= PIXELS


def _is_simple(conv: Conv2d, size: int) -> bool:
    """Whether it keeps the size, in float32, without dilation or groups."""
    return (
        conv.weight.dtype == torch.float32
        and conv.kernel_size == (size, size)
        and conv.padding == (size // 2, size // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )
