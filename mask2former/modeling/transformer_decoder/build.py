"""Registry of transformer decoders."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ..settings import check_query_width, registered

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """Decoders by name: `Decoder(cfg, in_channels, mask_classification)`."""


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build the decoder that MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME names.

    Args:
        in_channels: width of the features it attends to.
        mask_classification: False: no class logits, one mask per class (the per-pixel baseline).

    Raises:
        ValueError: no decoder of that name is registered, or HIDDEN_DIM cannot be divided as it needs to be.
    """
    key, name = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    decoder = registered(TRANSFORMER_DECODER_REGISTRY, key, name)
    check_query_width(cfg)
    return decoder(cfg, in_channels, mask_classification)
