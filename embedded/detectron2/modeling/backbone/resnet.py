"""Residual networks (He et al., 2016), 18 to 152 layers.

Stages are called res2 to res5 and have strides 4, 8, 16, 32; the stem before them ends at stride 4.
"""

from typing import Any

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase

# Depth -> number of blocks in res2, res3, res4, res5.
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv(in_channels: int, out_channels: int, kernel: int, norm: Any, dilation: int = 1, **kwargs: Any) -> Conv2d:
    """A convolution as all of a ResNet has it: no bias, size kept up to the stride, normalised, MSRA initialised."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    c2_msra_fill(conv)
    return conv


class BasicStem(CNNBlockBase):
    """7x7 convolution and 3x3 max-pool, each of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H/4, W/4)."""
        return F.max_pool2d(self.conv1(x).relu_(), kernel_size=3, stride=2, padding=1)


class _ResidualBlock(CNNBlockBase):
    """What the two kinds of block share: the shortcut, a convolution only where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Any) -> None:
        super().__init__(in_channels, out_channels, stride)
        changes = in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride) if changes else None

    def residual(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), before the addition."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride)."""
        identity = x if self.shortcut is None else self.shortcut(x)
        return self.residual(x).add_(identity).relu_()


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions, the block of ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu_())


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, the 3x3 one on few channels; the block of ResNet-50 and deeper.

    Args:
        stride_in_1x1: where the stride is: in the first convolution (MSRA weights) or in the 3x3 one (torchvision).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Any = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, norm, stride=first)
        self.conv2 = _conv(width, width, 3, norm, dilation, stride=second, groups=num_groups)
        self.conv3 = _conv(width, out_channels, 1, norm)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x).relu_()).relu_())


def make_stage(
    block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
) -> list[CNNBlockBase]:
    """Make the blocks of a stage.

    Args:
        kwargs: arguments of `block_class`. One called `x_per_block` is a list with the `x` of each block.

    Raises:
        ValueError: a list has not one value for each block, or an argument is given both ways.
    """
    suffix = "_per_block"
    shared = {key: value for key, value in kwargs.items() if not key.endswith(suffix)}
    single = {key.removesuffix(suffix): value for key, value in kwargs.items() if key.endswith(suffix)}
    for key, values in single.items():
        if len(values) != num_blocks or key in shared:
            raise ValueError(
                f"{key}{suffix} has {len(values)} values for {num_blocks} blocks; give one for each, and no {key}"
            )
    blocks = []
    for index in range(num_blocks):
        own = {key: values[index] for key, values in single.items()}
        blocks.append(block_class(in_channels if index == 0 else out_channels, out_channels, **shared, **own))
    return blocks


class ResNet(Backbone):
    """A stem and stages of blocks; optionally a classifier on top.

    Args:
        stages: one list of blocks for each of res2, res3, ...
        num_classes: makes the output "linear" (B, num_classes), for classification.
        out_features: which of "stem", "res2", ..., "linear" to return; by default the last. Stages after the last
            one named are not kept.
        freeze_at: how many of stem, res2, ... to freeze, from the first.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        names = [f"res{number}" for number in range(2, 2 + len(stages))]
        top = ["linear"] if num_classes is not None else []
        if not out_features:
            out_features = top or names[-1:]
        unknown = set(out_features) - {"stem", *names, *top}
        assert not unknown, f"out_features {sorted(unknown)} are not among {['stem', *names, *top]}"

        self.stem = stem
        self.num_classes = num_classes
        self._out_features = list(out_features)
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        wanted = [index + 1 for index, name in enumerate(names) if name in out_features]
        self.stage_names = tuple(names if "linear" in out_features else names[: max(wanted, default=0)])

        stride = stem.stride
        for name, blocks in zip(self.stage_names, stages):
            self.add_module(name, nn.Sequential(*blocks))
            for block in blocks:
                stride *= block.stride
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = blocks[-1].out_channels
        self.stages = [
            getattr(self, name) for name in self.stage_names
        ]  # a plain list: the names above are the modules

        if num_classes is not None:
            self.linear = nn.Linear(stages[-1][-1].out_channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> the requested maps, (B, channels, H/stride, W/stride) each."""
        assert x.dim() == 4, f"a ResNet takes (B, C, H, W), not {tuple(x.shape)}"
        x = self.stem(x)
        outputs = {"stem": x}
        for name in self.stage_names:
            x = outputs[name] = getattr(self, name)(x)
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(x.mean((2, 3)))
        return {name: outputs[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first `freeze_at` of stem, res2, res3, ...; frozen batch norms keep their statistics."""
        parts: list[CNNBlockBase] = [self.stem]
        for name in self.stage_names[: max(freeze_at - 1, 0)]:
            parts += getattr(self, name)
        for block in parts if freeze_at >= 1 else []:
            block.freeze()
        return self

    make_stage = staticmethod(make_stage)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet that MODEL.RESNETS and MODEL.BACKBONE.FREEZE_AT describe.

    Raises:
        ValueError: a setting no ResNet can have, or deformable convolutions.
    """
    options = cfg.MODEL.RESNETS
    stage_args = resnet_stage_args(options)
    if options.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is {options.RES5_DILATION}; it can be 1 or 2")
    if options.RES5_DILATION == 2:
        dilate_stage(stage_args[3], 2)
    stem = BasicStem(input_shape.channels, options.STEM_OUT_CHANNELS, options.NORM)
    stages = [make_stage(**args) for args in stage_args]
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def resnet_stage_args(options: Any) -> list[dict[str, Any]]:
    """The arguments of `make_stage` for res2 to res5, without dilation.

    Args:
        options: the config node MODEL.RESNETS.

    Raises:
        ValueError: unknown depth, a basic block with options only a bottleneck has, or deformable convolutions.
    """
    depth = options.DEPTH
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {depth}; it can be one of {sorted(BLOCKS_PER_STAGE)}")
    if any(options.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "deformable convolutions are not built here; set MODEL.RESNETS.DEFORM_ON_PER_STAGE to all False"
        )
    basic = depth < 50
    if basic and (options.RES2_OUT_CHANNELS != 64 or options.NUM_GROUPS != 1 or options.RES5_DILATION != 1):
        raise ValueError(
            f"ResNet-{depth} needs MODEL.RESNETS.RES2_OUT_CHANNELS 64, NUM_GROUPS 1 and RES5_DILATION 1, not "
            f"{options.RES2_OUT_CHANNELS}, {options.NUM_GROUPS} and {options.RES5_DILATION}"
        )

    stages = []
    in_channels = options.STEM_OUT_CHANNELS
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        first_stride = 1 if index == 0 else 2  # res2 starts at the stem's stride
        stage = {
            "block_class": BasicBlock if basic else BottleneckBlock,
            "num_blocks": num_blocks,
            "in_channels": in_channels,
            "out_channels": options.RES2_OUT_CHANNELS * 2**index,
            "norm": options.NORM,
            "stride_per_block": [first_stride] + [1] * (num_blocks - 1),
        }
        if not basic:
            stage["bottleneck_channels"] = options.NUM_GROUPS * options.WIDTH_PER_GROUP * 2**index
            stage["num_groups"] = options.NUM_GROUPS
            stage["stride_in_1x1"] = options.STRIDE_IN_1X1
        in_channels = stage["out_channels"]
        stages.append(stage)
    return stages


def dilate_stage(stage: dict[str, Any], dilation: int, multi_grid: list[int] | None = None) -> None:
    """Change a stage's arguments so that it samples wider; a dilation above 1 also takes the place of its stride.

    Args:
        stage: from `resnet_stage_args`, changed in place.
        multi_grid: a factor on the dilation of each block.
    """
    if dilation > 1:
        stage["stride_per_block"] = [1] * stage["num_blocks"]
    stage["dilation_per_block"] = [dilation * factor for factor in multi_grid or [1] * stage["num_blocks"]]
