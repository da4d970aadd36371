"""What a model costs: parameters, multiply-adds and activations of its network, from backbone to mask logits.

Counted operation by operator while the network runs on the meta device, where tensors have shapes and no values: the
largest model takes a second and no memory. Counted as usual for this task (and by fvcore): one multiply-add of a
convolution or matrix product is one operation; softmax, activation functions and sums are free.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .modeling.ops import deform_attn  # noqa: F401  registers the operators counted below

_PER_SAMPLE = 5  # four neighbours, then the attention weight


def _per_output(operations: int) -> Any:
    return lambda *shapes, out_shape, **_: 2 * operations * prod(_first(out_shape))


def _first(shape: Sequence[Any]) -> Sequence[int]:
    """Norms return their statistics, too."""
    return shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape


# Operators that torch's counter leaves out. It counts an addition and a multiplication as two, hence the factors 2.
_aten, _ours = torch.ops.aten, torch.ops.mask2former
_FORMULAS = {
    _aten.grid_sampler_2d: _per_output(_PER_SAMPLE),
    _ours.ms_deform_attn: lambda value, sizes, points, weights, **_: 2 * _PER_SAMPLE * prod(weights) * value[3],
    _ours.ms_deform_attn_projected: lambda value, sizes, reference, projected, **_: (
        2 * _PER_SAMPLE * prod(projected) // 3 * value[3]
    ),
    _aten.native_batch_norm: _per_output(2),
    _aten.native_layer_norm: _per_output(5),
    _aten.native_group_norm: _per_output(5),
    _aten.upsample_bilinear2d: _per_output(4),
}
_SAMPLING = (_aten.grid_sampler_2d, _ours.ms_deform_attn, _ours.ms_deform_attn_projected)
_PRODUCTS = (_aten.convolution, _aten.addmm, _aten.mm, _aten.bmm, _aten.baddbmm)


@dataclass
class Cost:
    """Of one image of `size` (height, width)."""

    size: tuple[int, int]
    flops: float = 0.0  # multiply-adds
    activations: float = 0.0  # elements that convolutions and matrix products write
    sampling: float = 0.0  # the part of `flops` that is deformable attention's sampling
    flops_of: dict[str, float] = field(default_factory=dict)  # by module, such as "backbone.res4"


class _Network(nn.Module):
    """A model without what comes before and after the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head

    def forward(self, image: torch.Tensor) -> Any:
        return self.sem_seg_head(self.backbone(image))


class _OutputSizes(TorchDispatchMode):
    """Adds up the elements that convolutions and matrix products write."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _PRODUCTS:
            self.elements += result.numel()
        return result


def network_cost(model: nn.Module, size: tuple[int, int], depth: int = 3) -> Cost:
    """Run the network once on an image of this size and count.

    Args:
        model: a MaskFormer on the meta device (MODEL.DEVICE "meta"). It is left in evaluation mode, without gradients.
        size: (height, width), padded to a multiple of the model's `size_divisibility` first, as in use.
        depth: how many levels of modules to tell apart.

    Raises:
        ValueError: the model is on another device.
    """
    devices = {str(parameter.device) for parameter in model.parameters()}
    if devices != {"meta"}:
        raise ValueError(f"the model is on {sorted(devices)}; build it with MODEL.DEVICE 'meta', where running is free")
    divisibility: Any = model.size_divisibility
    step = max(divisibility, 1)
    padded = (-(-size[0] // step) * step, -(-size[1] // step) * step)
    # torch's counter follows modules by hooks that gradients would disturb.
    network = _Network(model).eval().requires_grad_(False)
    counter = FlopCounterMode(display=False, depth=depth, custom_mapping=_FORMULAS)
    with torch.no_grad(), _OutputSizes() as outputs, counter:
        network(torch.zeros(1, 3, *padded, device="meta"))
    counts = {name: _halved(operators) for name, operators in counter.get_flop_counts().items()}
    total = counts.pop("Global")
    prefix = f"{type(network).__name__}."
    return Cost(
        size=padded,
        flops=sum(total.values()),
        activations=outputs.elements,
        sampling=sum(total[operator] for operator in _SAMPLING),
        flops_of={n.removeprefix(prefix): sum(c.values()) for n, c in counts.items() if n.startswith(prefix)},
    )


def _halved(operators: dict[Any, int]) -> Counter:
    return Counter({operator: count / 2 for operator, count in operators.items()})


def published_flops(cfg: CfgNode, cost: Cost) -> float:
    """The multiply-adds of the same network as the published tables count them.

    Two things differ. Every layer of the published decoder multiplies its queries with the mask features at full size;
    here all but the last do so at the size of the level they attend to, with the same result. And the tables leave
    deformable attention's sampling out, as their counter cannot look into a CUDA operator.
    """
    flops = cost.flops - cost.sampling
    former = cfg.MODEL.MASK_FORMER
    if former.TRANSFORMER_DECODER_NAME != "MultiScaleMaskedTransformerDecoder":
        return flops
    height, width = cost.size
    per_pixel = former.NUM_OBJECT_QUERIES * cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
    strides = [(32, 16, 8)[layer % 3] for layer in range(former.DEC_LAYERS - 1)]
    here = sum(-(-height // stride) * -(-width // stride) for stride in strides)
    published = len(strides) * -(-height // 4) * -(-width // 4)
    return flops + per_pixel * (published - here)


def parameters_of(model: nn.Module, depth: int = 2) -> dict[str, int]:
    """Number of parameters by module, down to `depth` levels; "" is the whole model."""
    counts: Counter = Counter()
    for name, parameter in model.named_parameters():
        parts = name.split(".")[:-1]
        for level in range(min(depth, len(parts)) + 1):
            counts[".".join(parts[:level])] += parameter.numel()
    return dict(counts)
