"""Linear layers by oneDNN on the CPU, for what goes through the same layer block by block.

PyTorch gives float32 products to MKL, which oneDNN beats by a sixth on some processors, and computes an activation in a
pass of its own. oneDNN wants the weights in an order of its own: they are put into it once for all blocks, and anew
in each call of the model, which costs hundredths of the product and can never be out of date.

R rows, C channels.
"""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Module = TypeVar("Module", bound=nn.Module)

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


def may_run_in_blocks(x: Tensor) -> bool:
    """Whether this is ordinary inference on the CPU: nobody differentiates, traces, counts or compiles."""
    return not (
        torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
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
