"""Registry of transformer decoders."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """Decoders by name: `Decoder(cfg, in_channels, mask_classification)`."""


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build the decoder that MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME names.

    Args:
        in_channels: width of the features it attends to.
        mask_classification: False: no class logits, one mask per class (the per-pixel baseline).

    Raises:
        KeyError: no decoder of that name is registered.
    """
    decoder = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
    return decoder(cfg, in_channels, mask_classification)
