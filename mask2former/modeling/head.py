"""The segmentation head: pixel decoder, then transformer decoder.

B images, Q queries, K classes, H W size of the mask features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from . import convolution
from .packed_linear import is_mere, may_run_in_blocks
from .pixel_decoder.build import build_pixel_decoder
from .pixel_decoder.msdeformattn import MULTI_SCALE_LEVELS, MSDeformAttnPixelDecoder
from .transformer_decoder import build_transformer_decoder
from .transformer_decoder.multi_scale import MultiScaleMaskedTransformerDecoder


def rename_old_keys(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give the head's entries of an older checkpoint their present names, in place; present names stay.

    MaskFormer kept the pixel decoder's weights directly under the head, and called the query features
    "static_query". Goes by the names alone: checkpoints that lost their version numbers load as well.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith(("pixel_decoder.", "predictor.")):
            name = f"pixel_decoder.{name}"
        elif name.startswith("predictor."):
            name = name.replace("static_query", "query_feat")
        if prefix + name != key:
            state_dict[prefix + name] = state_dict.pop(key)


class PixelDecoderHead(nn.Module):
    """What all heads share: a pixel decoder, and a predictor on top of it."""

    _version = 2

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        num_classes: int,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        loss_weight: float,
        ignore_value: int,
    ) -> None:
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        rename_old_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(PixelDecoderHead):
    """Features of the backbone in, classes and masks of the queries out."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of the backbone's features, by name.
            num_classes: K, without "no object".
            loss_weight: part of the published signature; the criterion holds the weights.
            ignore_value: label of pixels without a class, for whoever builds targets.
            transformer_in_feature: what the predictor attends to, see MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE.
        """
        super().__init__(input_shape, num_classes, pixel_decoder, transformer_predictor, loss_weight, ignore_value)
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            **transformer_config(cfg, input_shape, mask_classification=True),
        }

    def forward(self, features: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
        """Predict classes and masks: see the predictor for the result and for `mask`."""
        further: dict[str, Any] = {}
        if self._projects_queries(features):
            maps = self.pixel_decoder.pyramid(features)
            source, mask_features = maps[:MULTI_SCALE_LEVELS], maps[-1]
            further["mask_projection"] = self.pixel_decoder.mask_features
        else:
            source, mask_features = decode_pixels(self.pixel_decoder, self.transformer_in_feature, features)
        device = mask_features.device.type
        if self.training or device == "meta" or not torch.is_autocast_enabled(device):
            return self.predictor(source, mask_features, mask, **further)
        # Whether a query may look somewhere is a yes or no: rounding here costs more accuracy than time. A GPU takes
        # float16, as fast as bfloat16 and eight times finer; elsewhere only keys and values are rounded.
        if device != "cuda" and isinstance(self.predictor, MultiScaleMaskedTransformerDecoder):
            further["keys_dtype"] = torch.get_autocast_dtype(device)
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            source = [level.float() for level in source] if isinstance(source, list) else source.float()
            return self.predictor(source, mask_features.float(), mask, **further)

    def _projects_queries(self, features: Mapping[str, Tensor]) -> bool:
        """Whether the last convolution to the mask features may be applied to the queries instead, which is quicker."""
        decoder = self.pixel_decoder
        return (
            is_mere(decoder, MSDeformAttnPixelDecoder)
            and is_mere(self.predictor, MultiScaleMaskedTransformerDecoder)
            and self.transformer_in_feature == "multi_scale_pixel_decoder"
            and convolution.is_projection(decoder.mask_features)
            and may_run_in_blocks(next(iter(features.values())))
        )


def transformer_config(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], mask_classification: bool) -> dict[str, Any]:
    """What heads with a transformer decoder read besides; `mask_classification`: whether queries have classes."""
    channels = predictor_channels(cfg, input_shape)
    return {
        "transformer_predictor": build_transformer_decoder(cfg, channels, mask_classification=mask_classification),
        "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
    }


def predictor_channels(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> int:
    """Width of what the transformer decoder attends to."""
    source = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    decoded = {
        "multi_scale_pixel_decoder": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        "transformer_encoder": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        "pixel_embedding": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
    }
    if source in decoded:
        return decoded[source]
    if source not in input_shape:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {source!r}; choose one of {sorted(decoded)} or a feature of "
            f"the backbone: {sorted(input_shape)}."
        )
    return input_shape[source].channels


def decode_pixels(
    pixel_decoder: nn.Module, source: str, features: Mapping[str, Tensor]
) -> tuple[Tensor | list[Tensor], Tensor]:
    """Run the pixel decoder.

    Returns:
        What the transformer decoder attends to, by the name `source`; (B, C, H, W) mask features.
    """
    mask_features, encoder_features, levels = pixel_decoder.forward_features(features)
    if source == "multi_scale_pixel_decoder":
        return levels, mask_features
    if source == "pixel_embedding":
        return mask_features, mask_features
    if source == "transformer_encoder":
        if encoder_features is None:
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is transformer_encoder, but the pixel decoder has none; "
                "choose TransformerEncoderPixelDecoder, or a feature of the backbone."
            )
        return encoder_features, mask_features
    return features[source], mask_features
