"""The registry of backbones and the builder that reads it."""

from typing import Any

from fvcore.common.registry import Registry

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones by the name in MODEL.BACKBONE.NAME: a class or function `(cfg, input_shape: ShapeSpec) -> Backbone`.
"""


def build_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone MODEL.BACKBONE.NAME.

    Args:
        input_shape: of the image; by default as many channels as MODEL.PIXEL_MEAN has values.
    """
    shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, shape)
    assert isinstance(backbone, Backbone), f"{cfg.MODEL.BACKBONE.NAME} made a {type(backbone)}, not a Backbone"
    return backbone
