"""The ResNet of DeepLab: a stem of three small convolutions, and dilation in the last two stages."""

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, BasicStem, ResNet, make_stage
from detectron2.modeling.backbone.resnet import dilate_stage, resnet_stage_args


class DeepLabStem(CNNBlockBase):
    """Three 3x3 convolutions, the first of stride 2, then a 3x3 max-pool of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 128, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=4)
        half = out_channels // 2
        self.conv1 = self._conv(in_channels, half, norm, stride=2)
        self.conv2 = self._conv(half, half, norm)
        self.conv3 = self._conv(half, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H/4, W/4)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = conv(x)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

    @staticmethod
    def _conv(in_channels: int, out_channels: int, norm: str, stride: int = 1) -> nn.Module:
        norm_layer = get_norm(norm, out_channels)
        conv = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False, norm=norm_layer, activation=F.relu_)
        c2_msra_fill(conv)
        return conv


_STEMS = {"basic": BasicStem, "deeplab": DeepLabStem}


@BACKBONE_REGISTRY.register()
def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet that MODEL.RESNETS describes, with the keys that `add_deeplab_config` adds.

    Raises:
        ValueError: a stem, depth or dilation that there is not.
    """
    options = cfg.MODEL.RESNETS
    for key, allowed in (
        ("STEM_TYPE", tuple(_STEMS)),
        ("DEPTH", (50, 101, 152)),
        ("RES4_DILATION", (1, 2)),
        ("RES5_DILATION", (1, 2, 4)),
    ):
        if options[key] not in allowed:
            raise ValueError(f"MODEL.RESNETS.{key} is {options[key]!r}, expected one of {allowed}")
    stages = resnet_stage_args(options)
    dilate_stage(stages[2], options.RES4_DILATION)
    dilate_stage(stages[3], options.RES5_DILATION, options.RES5_MULTI_GRID)
    return ResNet(
        _STEMS[options.STEM_TYPE](input_shape.channels, options.STEM_OUT_CHANNELS, options.NORM),
        [make_stage(**stage) for stage in stages],
        out_features=options.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
