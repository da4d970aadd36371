"""Multi-scale deformable attention (Deformable DETR, equation 3): one function, several back ends, the same numbers.

B images, S pixels of all levels, A heads, D channels of a head, Q queries, L levels, P points.

`reference` is plain PyTorch: any device and type, can be exported. `numba` serves CPUs, `triton` CUDA devices; both
are behind operators registered with torch, so that autograd, autocast, `torch.compile` and fake tensors know them.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .reference import ms_deform_attn_reference, sampling_points

logger = logging.getLogger(__name__)

ENVIRONMENT = "MASK2FORMER_DEFORM_ATTN"
BACKENDS = ("auto", "reference", "numba", "triton")
# What serves which device, and the types it takes.
_DEVICE = {"numba": "cpu", "triton": "cuda"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Sum `value`, sampled bilinearly at each query's points on every level, with the query's weights.

    Args:
        value: (B, S, A, D), levels one after another, each in raster order.
        spatial_shapes: (h, w) of each level.
        sampling_locations: (B, Q, A, L, P, 2), x and y; (0, 0) and (1, 1) are the outer corners of a level, and
            everything outside a level is zero.
        attention_weights: (B, Q, A, L, P).
        backend: one of `BACKENDS`; None takes the environment variable MASK2FORMER_DEFORM_ATTN, or else "auto".

    Returns:
        (B, Q, A*D), in the type of `value`.

    Raises:
        ValueError: shapes do not fit together, or the back end does not serve this device or type.
    """
    _check(value, spatial_shapes, sampling_locations.shape[3])
    if sampling_locations.shape[:-1] != attention_weights.shape or sampling_locations.shape[2] != value.shape[2]:
        raise ValueError(
            f"sampling_locations (B, Q, A, L, P, 2) {tuple(sampling_locations.shape)} and attention_weights "
            f"(B, Q, A, L, P) {tuple(attention_weights.shape)} do not fit value (B, S, A, D) {tuple(value.shape)}"
        )
    if choose_backend(value.device.type, value.dtype, backend) == "reference":
        return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    return _sample(value, _flat(spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_projected(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets_and_logits: Tensor,
    backend: str | None = None,
) -> Tensor:
    """`ms_deform_attn` on what a query's linear layers give: offsets in pixels, and weights before the softmax.

    Args:
        value: (B, S, A, D).
        spatial_shapes: (h, w) of each level.
        reference_points: (Q, 2), x and y in [0, 1], constants.
        offsets_and_logits: (B, Q, A*L*P*3): offsets (A, L, P, 2), then logits (A, L, P).
        backend: as for `ms_deform_attn`.

    Returns:
        (B, Q, A*D), in the type of `value`.
    """
    heads = value.shape[2]
    _check(value, spatial_shapes, len(spatial_shapes))
    if offsets_and_logits.shape[2] % (3 * heads * len(spatial_shapes)):
        raise ValueError(
            f"offsets_and_logits (B, Q, A*L*P*3) has {offsets_and_logits.shape[2]} columns, not a multiple of "
            f"3 * {heads} heads * {len(spatial_shapes)} levels"
        )
    chosen = choose_backend(value.device.type, value.dtype, backend)
    if chosen != "reference":
        return _sample_projected(value, _flat(spatial_shapes), reference_points, offsets_and_logits)
    locations, weights = sampling_points(spatial_shapes, reference_points, offsets_and_logits, heads)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)


def choose_backend(device: str, dtype: torch.dtype, backend: str | None = None) -> str:
    """Name of the back end for tensors of this device and type; see `ms_deform_attn`."""
    name = backend or os.environ.get(ENVIRONMENT, "auto")
    if name not in BACKENDS:
        raise ValueError(f"deformable attention has no back end {name!r}; choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        # An exported program must not need our operators.
        if torch.compiler.is_exporting() or torch.jit.is_tracing() or dtype not in _DTYPES:
            return "reference"
        fast = next((package for package, serves in _DEVICE.items() if serves == device), None)
        return fast if fast and _is_installed(fast) else "reference"
    if name in _DEVICE and (device != _DEVICE[name] or dtype not in _DTYPES):
        raise ValueError(
            f"the deformable attention back end {name!r} serves float32, bfloat16 and float16 on {_DEVICE[name]}, "
            f"not {dtype} on {device}; choose 'auto' or 'reference'"
        )
    return name


def has_cpu_kernels(*dtypes: torch.dtype) -> bool:
    """Whether the CPU's kernels, of whatever purpose, serve these types; the user may rule them out."""
    return set(dtypes) <= {torch.float32, torch.bfloat16} and choose_backend("cpu", torch.float32) == "numba"


# What torch.compiler.assume_constant_result does, which imports the whole compiler: seconds at every start.
choose_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether it can be imported; says so once if not."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        logger.warning(
            "%s is not installed: attention and results run in plain PyTorch, several times slower (pip install %s)",
            package,
            package,
        )
    return found


def _kernels(device: torch.device) -> ModuleType:
    """Imported at the first call: compilers take their time."""
    if device.type == "cuda":
        from . import triton_kernels

        return triton_kernels
    from . import numba_kernels

    return numba_kernels


def _check(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], levels: int) -> None:
    pixels = sum(h * w for h, w in spatial_shapes)
    if value.dim() != 4 or value.shape[1] != pixels or len(spatial_shapes) != levels:
        raise ValueError(
            f"value (B, S, A, D) has shape {tuple(value.shape)} and the points {levels} levels, but the levels "
            f"{list(spatial_shapes)} are {len(spatial_shapes)} and have {pixels} pixels"
        )


def _flat(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Operators take lists of numbers, not of pairs."""
    return [size for shape in spatial_shapes for size in shape]


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


_LIBRARY = torch.library.Library("mask2former", "DEF")


def _operator(name: str, *devices: str) -> Callable[[Callable], Any]:
    """Make an operator torch.ops.mask2former.`name` of a function.

    `torch.library.custom_op` is shorter, but imports the whole compiler at the first call: seconds at every start.
    """

    def register(function: Callable) -> Any:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
        for device in devices:
            _LIBRARY.impl(name, function, device.upper())
        return getattr(torch.ops.mask2former, name).default

    return register


@_operator("ms_deform_attn", "cpu", "cuda")
def _sample(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    out = _kernels(value.device).forward(value, _pairs(sizes), locations.flatten(2), weights.flatten(2), None)
    return out.to(value.dtype)


@_operator("ms_deform_attn_backward", "cpu", "cuda")
def _sample_backward(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_value, grad_inputs = _kernels(value.device).backward(
        grad, value, _pairs(sizes), locations.flatten(2), weights.flatten(2), None
    )
    columns = weights.shape[2:].numel()
    grad_locations, grad_weights = grad_inputs.split([2 * columns, columns], -1)
    return (
        grad_value.to(value.dtype),
        grad_locations.reshape(locations.shape).to(locations.dtype, copy=True),
        grad_weights.reshape(weights.shape).to(weights.dtype, copy=True),
    )


@_operator("ms_deform_attn_projected", "cpu", "cuda")
def _sample_projected(value: Tensor, sizes: Sequence[int], reference: Tensor, projected: Tensor) -> Tensor:
    return _kernels(value.device).forward(value, _pairs(sizes), projected, None, reference).to(value.dtype)


@_operator("ms_deform_attn_projected_backward", "cpu", "cuda")
def _sample_projected_backward(
    grad: Tensor, value: Tensor, sizes: Sequence[int], reference: Tensor, projected: Tensor
) -> tuple[Tensor, Tensor]:
    kernels = _kernels(value.device)
    grad_value, grad_projected = kernels.backward(grad, value, _pairs(sizes), projected, None, reference)
    return grad_value.to(value.dtype), grad_projected.to(projected.dtype)


@torch.library.register_fake(_sample)
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake(_sample_projected)
def _(value: Tensor, sizes: Sequence[int], reference: Tensor, projected: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], projected.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake(_sample_backward)
def _(grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


@torch.library.register_fake(_sample_projected_backward)
def _(grad: Tensor, value: Tensor, sizes: Sequence[int], reference: Tensor, projected: Tensor) -> tuple[Tensor, ...]:
    return value.new_empty(value.shape), projected.new_empty(projected.shape)


def _keep_inputs(ctx, inputs, output) -> None:
    value, ctx.sizes, *rest = inputs
    ctx.save_for_backward(value, *rest)


def _sample_gradients(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _sample_backward(grad, value, ctx.sizes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


def _projected_gradients(ctx, grad):
    value, reference, projected = ctx.saved_tensors
    grad_value, grad_projected = _sample_projected_backward(grad, value, ctx.sizes, reference, projected)
    return grad_value, None, None, grad_projected


torch.library.register_autograd(_sample, _sample_gradients, setup_context=_keep_inputs)
torch.library.register_autograd(_sample_projected, _projected_gradients, setup_context=_keep_inputs)
