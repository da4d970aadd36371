"""Linear layers by oneDNN on the CPU, for what goes through the same layer block by block.

PyTorch gives float32 products to MKL, which oneDNN beats by a sixth on some processors, and computes an activation in a
pass of its own. oneDNN wants the weights in an order of its own: they are put into it once for all blocks, and anew
in each call of the model, which costs hundredths of the product and can never be out of date.

R rows, C channels.
"""

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Module = TypeVar("Module", bound=nn.Module)

# Products of fewer rows are left to PyTorch in training.
TRAINED_ROWS = 2048

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": torch.relu_, "gelu": F.gelu}


def packed_linear(layer: nn.Module, dtype: torch.dtype, rows: int, activation: str = "none") -> Callable[..., Tensor]:
    """The layer as a function (R, C) -> (R, C') of rows of `dtype`.

    A layer that is not a mere `nn.Linear` (a subclass, one with hooks) is called as it is.

    Args:
        rows: R of most calls; the order of the weights suits it.
        activation: what follows, a key of `ACTIVATIONS`.
    """
    function = ACTIVATIONS[activation]
    if not (isinstance(layer, nn.Linear) and is_mere(layer, nn.Linear)):
        return lambda x: function(layer(x))
    weight, bias = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    if not _has_onednn(dtype):
        return lambda x: function(F.linear(x, weight, bias))
    weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    # Of the two forms of GELU, the exact one, named as `F.gelu` names it.
    form = "none" if activation == "gelu" else ""
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)


def linear(layer: nn.Module, x: Tensor, relu: bool = False) -> Tensor:
    """The layer's result (..., C'), followed by ReLU or not; in training by oneDNN too, where that pays.

    Args:
        x: (..., C).
    """
    # In rows: of more dimensions a linear layer returns a view, and the gradient of what changes a view is slow.
    rows = x.flatten(0, -2)
    if _may_train(layer, rows):
        out = _Linear.apply(rows, layer.weight, layer.bias, relu)
    else:
        out = layer(rows)
        out = out.relu_() if relu else out
    return out.unflatten(0, x.shape[:-1])


def _may_train(layer: nn.Module, x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and is_ordinary(x)
        and is_mere(layer, nn.Linear)
        and compute_dtype(x) == x.dtype == layer.weight.dtype == torch.float32
        and len(x) >= TRAINED_ROWS
        and _has_onednn(torch.float32)
    )


class _Linear(torch.autograd.Function):
    """oneDNN's product of rows and of their gradients; the gradient of the weight is MKL's, which is faster there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out = _multiply(x, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, out = ctx.saved_tensors
        by_x, by_weight, by_bias, _ = ctx.needs_input_grad
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        grad_x = _multiply(grad, weight.T.contiguous(), None, "none") if by_x else None
        return grad_x, grad.T @ x if by_weight else None, grad.sum(0) if by_bias else None, None


def feed_forward(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """second(relu(first(x))); in training by oneDNN the wide result between is made again for the gradient, not kept.

    Args:
        x: (..., C).

    Returns:
        (..., C').
    """
    rows = x.flatten(0, -2)
    if not (_may_train(first, rows) and _may_train(second, rows)):
        return linear(second, linear(first, x, relu=True))
    out: Tensor = _FeedForward.apply(rows, first.weight, first.bias, second.weight, second.bias)
    return out.unflatten(0, x.shape[:-1])


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widen: Tensor, bias: Tensor, narrow: Tensor, narrow_bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, widen, bias, narrow)
        return _multiply(_multiply(x, widen, bias, "relu"), narrow, narrow_bias, "none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, widen, bias, narrow = ctx.saved_tensors
        by_x, by_widen, by_bias, by_narrow, by_narrow_bias = ctx.needs_input_grad
        hidden = _multiply(x, widen, bias, "relu")
        grad_narrow = grad.T @ hidden if by_narrow else None
        wide = torch.ops.aten.threshold_backward(_multiply(grad, narrow.T.contiguous(), None, "none"), hidden, 0)
        return (
            _multiply(wide, widen.T.contiguous(), None, "none") if by_x else None,
            wide.T @ x if by_widen else None,
            wide.sum(0) if by_bias else None,
            grad_narrow,
            grad.sum(0) if by_narrow_bias else None,
        )


def linear_of_sum(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of x + addend; in training on the CPU the sum is made again for the gradient, not kept.

    Args:
        x: (B, R, C).
        addend: (R, C).
        weight: (C', C).

    Returns:
        (B, R, C').
    """
    dtypes = {compute_dtype(x), x.dtype, addend.dtype, weight.dtype}
    if torch.is_grad_enabled() and is_ordinary(x) and dtypes == {torch.float32}:
        result: Tensor = _LinearOfSum.apply(x, addend, weight, bias)
        return result
    return F.linear(x + addend, weight, bias)


class _LinearOfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, addend, weight)
        return F.linear(x + addend, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, addend, weight = ctx.saved_tensors
        by_x, by_addend, by_weight, by_bias = ctx.needs_input_grad
        rows = grad.flatten(0, 1)
        grad_x = grad @ weight if by_x or by_addend else None
        grad_addend = grad_x.sum(0) if by_addend and grad_x is not None else None
        grad_weight = rows.T @ (x + addend).flatten(0, 1) if by_weight else None
        return grad_x if by_x else None, grad_addend, grad_weight, rows.sum(0) if by_bias else None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Rows (R, C) by weights (C', C)."""
    weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), len(x))
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def may_run_in_blocks(x: Tensor) -> bool:
    """Whether this is ordinary inference on the CPU: nobody differentiates, traces, counts or compiles."""
    return not torch.is_grad_enabled() and is_ordinary(x)


def is_ordinary(x: Tensor) -> bool:
    """Whether this runs on the CPU, and nobody traces, counts or compiles."""
    return not (
        x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode()
    )


def is_mere(module: object, kind: type[Module]) -> TypeGuard[Module]:
    """Whether a module is of just this class and nobody listens to it."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Of matrix products of `x`, inside and outside of autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _has_onednn(dtype: torch.dtype) -> bool:
    """Measured on x86 only."""
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
