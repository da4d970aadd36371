"""The parts of the model; importing this package registers them with detectron2."""

from .backbone.swin import D2SwinTransformer
from .head import MaskFormerHead
from .per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoder.fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from .pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "TransformerEncoderPixelDecoder",
]
