"""Transformer decoders: queries in, class logits and mask logits out."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .multi_scale import MultiScaleMaskedTransformerDecoder
from .standard import StandardTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "StandardTransformerDecoder",
    "build_transformer_decoder",
]
