"""Choice of the pixel decoder by config."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from ..settings import check_pixel_decoder_width, is_pixel_decoder, registered


def build_pixel_decoder(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build the pixel decoder that MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME names.

    Args:
        input_shape: backbone features by name.

    Raises:
        ValueError: nothing is registered under that name, or what is has no `forward_features`; a width that norms or
            heads cannot divide.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    build = registered(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", name, is_pixel_decoder)
    check_pixel_decoder_width(cfg)
    decoder = build(cfg, input_shape)
    if not is_pixel_decoder(decoder):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, but a pixel decoder needs a method "
            "forward_features(features); use MSDeformAttnPixelDecoder or another pixel decoder"
        )
    return decoder
