"""Operations, activations and parameters of a model that takes `list[dict]`, counted by fvcore.

fvcore traces functions from tensors to tensors, so `_TensorsOnly` stands between: it takes the tensors of the inputs
and returns the tensors of the results.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import fvcore.nn
import torch
from fvcore.nn import activation_count, parameter_count, parameter_count_table
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from detectron2.evaluation import inference_context

__all__ = [
    "FlopCountAnalysis",
    "activation_count",
    "activation_count_operators",
    "find_unused_parameters",
    "flop_count_operators",
    "parameter_count",
    "parameter_count_table",
]

# Element-wise or free: not worth a warning that nobody counts them.
_IGNORED = """
    add add_ sub sub_ rsub mul mul_ div div_ neg abs exp log sqrt rsqrt pow floor ceil round_ reciprocal_ clamp
    sigmoid relu relu_ gelu softmax log_softmax leaky_relu tanh max min maximum minimum mean sum cumsum
    eq ne lt le gt ge logical_not logical_and logical_or bitwise_not bitwise_and __and__ __or__ where any all
    argmax argsort sort topk scatter_ scatter_add scatter_add_ index_put_ nonzero_numpy floor_divide remainder
    pad constant_pad_nd repeat repeat_interleave roll masked_fill masked_fill_ one_hot sin cos atan2 im2col
    meshgrid full_like zeros_like ones_like new_zeros new_ones fill_ copy_ clone to type_as
"""


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's counter of multiply-adds for a model that takes `list[dict]`.

    Args:
        model: any module; it is traced in the mode it is in.
        inputs: its input, such as `[{"image": tensor}]`.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        wrapper = _TensorsOnly(model, inputs)
        super().__init__(wrapper, wrapper.tensors)
        self.set_op_handle(**{f"aten::{name}": None for name in _IGNORED.split()})
        self.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)


def flop_count_operators(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Multiply-adds in units of 1e9 by operator, in evaluation mode."""
    with _evaluating(model):
        counts = FlopCountAnalysis(model, inputs).by_operator()
    return defaultdict(float, {name: count / 1e9 for name, count in counts.items()})


def activation_count_operators(model: nn.Module, inputs: Any, **kwargs: Any) -> dict[str, float]:
    """Elements of the outputs of convolutions and matrix products in units of 1e6 by operator, in evaluation mode."""
    with _evaluating(model):
        wrapper = _TensorsOnly(model, inputs)
        return activation_count(wrapper, wrapper.tensors, **kwargs)[0]


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the parameters that get no gradient from the losses of one training step.

    The model must be in training mode and return a dict of losses (or tensors). Its gradients are left as they were.
    """
    if not model.training:
        raise ValueError("find_unused_parameters needs a model in training mode: call model.train() first")
    kept = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    try:
        losses = [value for value in _tensors(model(inputs)) if value.requires_grad]
        torch.stack([loss.sum() for loss in losses]).sum().backward()
        return [name for name, parameter in model.named_parameters() if parameter.grad is None]
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = kept[name]


class _TensorsOnly(nn.Module):
    """A model as a function of the tensors in its inputs, which returns the tensors in its results."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.inputs = inputs
        self.tensors = tuple(_tensors(inputs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.model(_replace(self.inputs, iter(tensors)))))


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers and in detectron2's structures."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "get_fields"):  # Instances
        yield from _tensors(value.get_fields())
    elif isinstance(getattr(value, "tensor", None), Tensor):  # Boxes, BitMasks
        yield value.tensor


def _replace(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nested value with its tensors replaced, in the order of `_tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {name: _replace(item, tensors) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replace(item, tensors) for item in value)
    for _ in _tensors(value):  # a structure keeps the tensors it has
        next(tensors)
    return value


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    # Multiply-adds of query times key, and of the weights times value.
    query, key, value = (get_shape(item) for item in inputs[:3])
    return prod(query) * key[-2] + prod(query[:-1]) * key[-2] * value[-1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without fvcore's per-operator warnings, for a while."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with inference_context(model):
            yield
    finally:
        logger.setLevel(level)
