"""Less memory in training: parts of the model are computed again in the backward pass, and only their inputs are kept.

Numbers stay as they are, to the bit: the second computation is that of the first, with the same random numbers, the
same autocast, and batch norms that do not count their batch twice.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from .backbone.swin import Stage
from .pixel_decoder.fpn import EncoderLayer
from .pixel_decoder.msdeformattn import DeformableEncoderLayer

# One block is in memory at a time: a stage of many blocks would need them all.
RECOMPUTED = (CNNBlockBase, DeformableEncoderLayer, EncoderLayer)


def checkpoint_activations(*parts: nn.Module) -> None:
    """Let every block of a ResNet or Swin, and every encoder layer of a pixel decoder, keep its inputs alone; in place.

    Parameters and their names stay. A part without such blocks stays as it is.
    """
    for part in parts:
        for block in part.modules():
            if isinstance(block, Stage):
                block.use_checkpoint = True
            elif isinstance(block, RECOMPUTED):
                block.forward = functools.partial(_forward, block)  # type: ignore[method-assign]


def _forward(block: nn.Module, *inputs: Any) -> Any:
    forward: Callable[..., Any] = functools.partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=functools.partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first computation, and around the second."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise by their batch, but leave their running statistics alone."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
