"""Deformable convolution: the names only. No configuration of Mask2Former uses it, and it needs a compiled operator."""

from typing import Any

from torch import nn

from detectron2._unsupported import refuse


class DeformConv(nn.Module):
    """Present so that imports succeed; building one raises."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse(f"layers.{type(self).__name__}")


class ModulatedDeformConv(DeformConv):
    """Present so that imports succeed; building one raises."""
