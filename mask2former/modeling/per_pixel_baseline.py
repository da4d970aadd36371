"""Per-pixel classification on the same pixel decoders: the baselines of the MaskFormer paper (section 4).

B images, K classes, C channels, h w size of the mask features, H W size of the input.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .head import PixelDecoderHead, decode_pixels, transformer_config

STRIDE = 4  # of the mask features


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(PixelDecoderHead):
    """Mask features and one convolution; used with detectron2's SemanticSegmentor."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of the backbone's features, by name.
            num_classes: K.
            loss_weight: of the cross entropy.
            ignore_value: label of pixels without a class.
        """
        predictor = Conv2d(pixel_decoder.mask_features.out_channels, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(predictor.weight, mode="fan_out", nonlinearity="relu")
        assert predictor.bias is not None
        nn.init.zeros_(predictor.bias)
        super().__init__(input_shape, num_classes, pixel_decoder, predictor, loss_weight, ignore_value)

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Scores, or in training losses.

        Args:
            targets: (B, H, W) class of each pixel.

        Returns:
            In training None and the losses; otherwise (B, K, H, W) logits and no losses.
        """
        layers = self.layers(features)
        if self.training:
            if targets is None:
                raise ValueError("Training needs sem_seg, the class of each pixel: use a mapper that gives it.")
            return None, self.losses(layers, targets)
        return F.interpolate(layers[-1], scale_factor=STRIDE, mode="bilinear", align_corners=False), {}

    def layers(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """(B, K, h, w) logits of every layer that has a loss, the final ones last."""
        mask_features, _, _ = self.pixel_decoder.forward_features(features)
        return [self.predictor(mask_features)]

    def losses(self, layers: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Weighted cross entropy of each layer at the size of the targets, in float32."""
        losses = {}
        for i, logits in enumerate(layers):
            logits = F.interpolate(logits.float(), scale_factor=STRIDE, mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, targets, reduction="mean", ignore_index=self.ignore_value)
            name = "loss_sem_seg" if i == len(layers) - 1 else f"loss_sem_seg_{i}"
            losses[name] = loss * self.loss_weight
        return losses


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """One query per class, through the same transformer decoder as MaskFormer; its masks are the logits."""

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
        deep_supervision: bool,
    ) -> None:
        """
        Args:
            transformer_predictor: built with mask_classification False and K queries.
            transformer_in_feature: what it attends to, see MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE.
            deep_supervision: a loss after every layer; the rest as in `PerPixelBaselineHead`.
        """
        PixelDecoderHead.__init__(
            self, input_shape, num_classes, pixel_decoder, transformer_predictor, loss_weight, ignore_value
        )
        self.transformer_in_feature = transformer_in_feature
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        num_queries, num_classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if num_queries != num_classes:
            raise ValueError(
                f"PerPixelBaselinePlusHead has one query per class, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
                f"{num_queries} and MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}; set them equal."
            )
        return {
            **super().from_config(cfg, input_shape),
            **transformer_config(cfg, input_shape, mask_classification=False),
            "deep_supervision": cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
        }

    def layers(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """(B, K, h, w) logits of every layer that has a loss, the final ones last."""
        source, mask_features = decode_pixels(self.pixel_decoder, self.transformer_in_feature, features)
        outputs = self.predictor(source, mask_features)
        earlier = outputs.get("aux_outputs", []) if self.training and self.deep_supervision else []
        return [*(layer["pred_masks"] for layer in earlier), outputs["pred_masks"]]
