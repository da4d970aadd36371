"""Thin layers over PyTorch, with the keywords detectron2 code expects."""

from detectron2._unsupported import missing
from detectron2.layers.batch_norm import (
    BatchNorm2d,
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    get_norm,
)
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.deform_conv import DeformConv, ModulatedDeformConv
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import (
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "DeformConv",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ShapeSpec",
    "cat",
    "cross_entropy",
    "get_norm",
    "interpolate",
    "nonzero_tuple",
    "shapes_to_tensor",
]

__getattr__ = missing(__name__)
