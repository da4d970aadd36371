"""ResNet: the published parameter names and shapes, and what its options do."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn


def config(**options):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = options.pop("FREEZE_AT", 0)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in options.items():
        setattr(cfg.MODEL.RESNETS, key, value)
    return cfg


def build(**options):
    with torch.device("meta") if options.pop("meta", False) else torch.device("cpu"):
        return build_backbone(config(**options))


def test_names_and_shapes_of_resnet50():
    state = {name: tuple(value.shape) for name, value in build(NORM="BN").state_dict().items()}
    expected = {
        "stem.conv1.weight": (64, 3, 7, 7),
        "stem.conv1.norm.running_var": (64,),
        "res2.0.conv1.weight": (64, 64, 1, 1),
        "res2.0.conv2.weight": (64, 64, 3, 3),
        "res2.0.conv3.weight": (256, 64, 1, 1),
        "res2.0.shortcut.weight": (256, 64, 1, 1),
        "res3.0.shortcut.weight": (512, 256, 1, 1),
        "res4.0.shortcut.weight": (1024, 512, 1, 1),
        "res5.0.shortcut.weight": (2048, 1024, 1, 1),
        "res5.2.conv1.weight": (512, 2048, 1, 1),
        "res5.2.conv1.norm.weight": (512,),
    }
    assert {name: state.get(name) for name in expected} == expected
    # 53 convolutions, each with 5 entries of its norm
    assert len(state) == 53 * 6
    assert len([name for name in state if "shortcut.weight" in name]) == 4
    assert len(build(NORM="FrozenBN").state_dict()) == 53 * 5


@pytest.mark.parametrize(("depth", "convolutions"), [(18, 20), (34, 36), (101, 104), (152, 155)])
def test_number_of_convolutions(depth, convolutions):
    options = {"RES2_OUT_CHANNELS": 64} if depth < 50 else {}
    model = build(DEPTH=depth, **options)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    top = 64 if depth < 50 else 256
    assert [spec.channels for spec in model.output_shape().values()] == [top, 2 * top, 4 * top, 8 * top]


def small(block=BottleneckBlock, norm="BN", freeze_at=0, out_features=("res2", "res3"), **kwargs):
    stem = BasicStem(3, 8, norm)
    if block is BottleneckBlock:
        kwargs["bottleneck_channels"] = 4
    stages = [
        ResNet.make_stage(block, 2, in_channels=a, out_channels=b, stride_per_block=[s, 1], norm=norm, **kwargs)
        for a, b, s in ((8, 16, 1), (16, 32, 2))
    ]
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)


def test_output_sizes_follow_the_strides():
    model = build_backbone(config(DEPTH=18, RES2_OUT_CHANNELS=64, OUT_FEATURES=["stem", "res3", "res5"])).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    shapes = model.output_shape()
    assert list(maps) == list(shapes) == ["stem", "res3", "res5"]
    assert [spec.stride for spec in shapes.values()] == [4, 8, 32]
    for name, spec in shapes.items():
        assert maps[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_a_bottleneck_is_what_the_paper_draws():
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="BN").eval()
    x = torch.randn(1, 8, 6, 6)
    conv = nn.functional.conv2d
    y = block.conv1.norm(conv(x, block.conv1.weight)).relu()
    y = block.conv2.norm(conv(y, block.conv2.weight, stride=2, padding=1)).relu()
    y = block.conv3.norm(conv(y, block.conv3.weight))
    shortcut = block.shortcut.norm(conv(x, block.shortcut.weight, stride=2))
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@pytest.mark.parametrize(("in_1x1", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_where_the_stride_is(in_1x1, strides):
    block = build(STRIDE_IN_1X1=in_1x1, meta=True).res3[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_dilation_takes_the_place_of_the_stride_in_res5():
    model = build(RES5_DILATION=2, meta=True)
    assert model.output_shape()["res5"].stride == 16
    assert [block.conv2.dilation for block in model.res5] == [(2, 2)] * 3
    assert model.res5[0].conv2.stride == (1, 1) and model.res4[0].conv2.dilation == (1, 1)


def test_stages_nobody_asks_for_are_not_built():
    model = build(OUT_FEATURES=["res3"], meta=True)
    assert hasattr(model, "res3") and not hasattr(model, "res4")


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, []), (1, ["stem"]), (2, ["stem", "res2"])])
def test_freezing_stops_gradients_and_statistics(freeze_at, frozen):
    model = small(freeze_at=freeze_at)
    for name in ("stem", "res2", "res3"):
        part = getattr(model, name)
        assert all(parameter.requires_grad is (name not in frozen) for parameter in part.parameters())
        kinds = {type(module) for module in part.modules() if "BatchNorm" in type(module).__name__}
        assert kinds == {FrozenBatchNorm2d if name in frozen else nn.BatchNorm2d}


def test_gradients_reach_every_parameter():
    for block in (BottleneckBlock, BasicBlock):
        model = small(block)
        sum(y.square().sum() for y in model(torch.randn(2, 3, 32, 32)).values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_channels_last_in_channels_last_out_with_the_same_numbers():
    model, x = small(norm="FrozenBN").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(x)
        fast = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, expected in plain.items():
        assert fast[name].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fast[name], expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_averages_over_positions():
    stages = [ResNet.make_stage(BasicBlock, 1, in_channels=8, out_channels=16)]
    model = ResNet(BasicStem(3, 8), stages, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model.linear(model.res2(model.stem(x)).mean((2, 3)))
    torch.testing.assert_close(model(x)["linear"], expected)


def test_impossible_settings_are_refused():
    for options in ({"DEPTH": 51}, {"DEPTH": 18}, {"RES5_DILATION": 3}, {"DEFORM_ON_PER_STAGE": [True] * 4}):
        with pytest.raises(Exception):  # noqa: B017 - upstream and ours use different types
            build(meta=True, **options)
    with pytest.raises(AssertionError):
        small(out_features=["res9"])


def test_per_block_arguments_need_a_value_for_each_block():
    with pytest.raises((ValueError, AssertionError)):
        ResNet.make_stage(BasicBlock, 3, in_channels=8, out_channels=8, stride_per_block=[1, 1])


def test_the_registry_has_it_and_the_input_may_have_other_channels():
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=64)
    model = BACKBONE_REGISTRY.get("build_resnet_backbone")(cfg, ShapeSpec(channels=1))
    assert model.stem.conv1.weight.shape == (64, 1, 7, 7)
    assert model.size_divisibility == 0
