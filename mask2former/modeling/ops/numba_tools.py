"""How kernels for the CPU are compiled, and the mathematics that several of them share."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

logger = logging.getLogger(__name__)

# No nnan, no ninf: a NaN must come out as NaN.
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_F = np.float32


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled at its first call, and kept on disk where some folder can be written to.

    Numba's cache watches the file of the function only: after a change in what it calls, touch that file.
    """
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        logger.warning(
            "no folder to keep compiled code in (NUMBA_CACHE_DIR names one): compiling takes seconds each run"
        )
        return njit(**OPTIONS)(function)


def bits(x: Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16, which NumPy does not know, as uint16 of the same bits."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@intrinsic
def number(typingctx: Any, x: Any) -> Any:
    """An element of `bits` as a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        if isinstance(x, types.Float):
            return args[0]
        whole = builder.zext(args[0], ir.IntType(32))  # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(whole, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(x), generate


@intrinsic
def _float_of_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typingctx: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit(**OPTIONS)
def bfloat16_bits(x):
    """A float32 rounded to bfloat16, as PyTorch rounds: NumPy has no such type, and takes its bits for a uint16."""
    bits = _bits_of_float(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded if x == x else np.uint32(0x7FC0))


@njit(**OPTIONS)
def exponential(x):
    """exp(x) in float32, with x limited to -87 ... 88; a NaN stays one.

    Cephes' expf: libm's would not vectorise.
    """
    exponent = min(max(x, _F(-87)), _F(88))
    whole = np.floor(exponent * _F(1.44269504) + _F(0.5))
    r = (exponent - whole * _F(0.693359375)) + whole * _F(2.12194440e-4)
    series = _F(1.9875691500e-4)
    series = series * r + _F(1.3981999507e-3)
    series = series * r + _F(8.3334519073e-3)
    series = series * r + _F(4.1665795894e-2)
    series = series * r + _F(1.6666665459e-1)
    series = series * r + _F(5.0000001201e-1)
    power = _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))  # 2 ** whole
    return (series * r * r + r + _F(1)) * power + _F(0) * x
