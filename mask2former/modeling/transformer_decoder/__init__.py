"""Transformer decoders: queries in, class logits and mask logits out."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .multi_scale import MultiScaleMaskedTransformerDecoder
from .prediction import Prediction
from .standard import StandardTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "Prediction",
    "StandardTransformerDecoder",
    "build_transformer_decoder",
]
