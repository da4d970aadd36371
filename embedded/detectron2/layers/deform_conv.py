"""Deformable convolution: the names only. No configuration of Mask2Former uses it."""

from typing import Any

from torch import nn


class DeformConv(nn.Module):
    """Present so that imports succeed; it cannot be built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} needs a compiled operator, which this detectron2 does not have. "
            "Set MODEL.RESNETS.DEFORM_ON_PER_STAGE to [False, False, False, False], or install upstream detectron2."
        )


class ModulatedDeformConv(DeformConv):
    """Present so that imports succeed; it cannot be built."""
