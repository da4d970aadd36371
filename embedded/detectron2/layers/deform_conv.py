"""Deformable convolution: the names only. No configuration of Mask2Former uses it, and it needs a compiled operator."""

from torch import nn

from detectron2._unsupported import stub

DeformConv = stub("layers.DeformConv", nn.Module)
ModulatedDeformConv = stub("layers.ModulatedDeformConv", nn.Module)
