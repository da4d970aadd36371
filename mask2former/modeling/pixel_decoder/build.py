"""Choice of the pixel decoder by config."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the pixel decoder that MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME names.

    Args:
        input_shape: backbone features by name.

    Raises:
        ValueError: what is registered under that name has no `forward_features`.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    decoder = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(decoder, "forward_features", None)):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, but a pixel decoder needs a method "
            "forward_features(features); use MSDeformAttnPixelDecoder or another pixel decoder"
        )
    return decoder
