"""Sine position encodings, and the cache for tensors that depend on shapes only.

C channels, h w size of a feature level.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def cached_per_shape(maxsize: int = 8) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Keep the last `maxsize` results of a function of hashable arguments that returns constant tensors.

    Unlike `functools.lru_cache` it steps aside while tensors are fake (tracing, compiling, exporting), and builds
    its tensors outside inference mode, so that what a prediction left behind can be used in a training step.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        cache: OrderedDict[Hashable, Result] = OrderedDict()

        @functools.wraps(function)
        def wrapper(*args: Hashable) -> Result:
            if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(torch.empty(0)) is not Tensor:
                return function(*args)
            try:
                cache.move_to_end(args)
            except KeyError:
                with torch.inference_mode(False), torch.no_grad():
                    cache[args] = function(*args)
                if len(cache) > maxsize:
                    cache.popitem(last=False)
            return cache[args]

        return wrapper

    return decorate


@cached_per_shape()
def sine_position_encoding(
    height: int, width: int, channels: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """DETR's two-dimensional encoding: half of the channels encode y, half x, over one period of 2 pi.

    The result is shared between calls: do not change it in place.

    Args:
        height: h.
        width: w.
        channels: C, a multiple of 4.

    Returns:
        (h*w, C), rows in raster order; in each half sine and cosine alternate, wavelengths growing to 10000 periods.
    """
    if channels % 4:
        raise ValueError(f"position encodings need a number of channels divisible by 4, got {channels}")
    along_y = _waves(height, channels // 2, device)[:, None].expand(height, width, channels // 2)
    along_x = _waves(width, channels // 2, device)[None].expand(height, width, channels // 2)
    return torch.cat([along_y, along_x], -1).reshape(height * width, channels).to(dtype)


def _waves(length: int, channels: int, device: torch.device | None) -> Tensor:
    """Sines and cosines of positions 1..length scaled to (0, 2 pi]; (length, channels) float32."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    position = position / (length + 1e-6) * (2 * math.pi)
    wavelength = 10000 ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
    angle = position[:, None] / wavelength  # (length, channels / 2)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
