"""DeepLab's keys, its polynomial schedule and its ResNet."""

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR


def _cfg(**solver):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.STEPS = (60, 80)
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def _rates(cfg, until: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(until + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) <= until:
            scheduler.step()
    return rates


# Recorded from upstream detectron2, as multiples of the base rate.
RECORDED = {
    0: 0.1,
    1: 0.188289,
    5: 0.525187,
    9: 0.835947,
    10: 0.909533,
    50: 0.535887,
    80: 0.234924,
    99: 0.015849,
    100: 0,
}


def test_the_polynomial_schedule_has_the_recorded_values():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR"), 100)
    for iteration, multiple in RECORDED.items():
        assert rates[iteration] == pytest.approx(2 * multiple, abs=2e-6)


def test_without_warm_up_it_is_the_polynomial_alone():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_ITERS=0), 9)
    assert rates[:2] == pytest.approx([2.0, 2 * 0.990995], abs=2e-6)
    assert rates[9] == pytest.approx(2 * 0.918623, abs=2e-6)


def test_a_constant_warm_up_stays_at_its_factor():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_METHOD="constant"), 10)
    assert rates[5] == pytest.approx(2 * 0.1 * 0.95**0.9)
    assert rates[10] == pytest.approx(2 * 0.909533, abs=2e-6)


def test_a_constant_ending_bounds_the_rate_but_not_the_warm_up():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_CONSTANT_ENDING=0.3), 100)
    assert rates[0] == pytest.approx(0.2) and rates[100] == pytest.approx(0.6)


def test_going_on_after_the_end_is_an_error():
    with pytest.raises((ValueError, ArithmeticError)):
        _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR"), 101)


def test_the_schedule_goes_on_from_its_state():
    def make():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return optimizer, WarmupPolyLR(optimizer, 100, warmup_iters=10, warmup_factor=0.1)

    optimizer, scheduler = make()
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = make()
    resumed.load_state_dict(scheduler.state_dict())
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    for one in (scheduler, resumed):
        one.optimizer.step()
        one.step()
    assert optimizer.param_groups[0]["lr"] == resumed_optimizer.param_groups[0]["lr"] == pytest.approx(0.49**0.9)


@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream's schedule keeps the old length")
def test_a_run_resumed_with_more_iterations_follows_the_longer_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    short = WarmupPolyLR(optimizer, 10, warmup_iters=0)
    long = WarmupPolyLR(optimizer, 40, warmup_iters=0)
    for _ in range(10):
        optimizer.step()
        short.step()
    long.load_state_dict(short.state_dict())
    long.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx((29 / 40) ** 0.9)


def test_other_names_are_those_of_detectron2():
    assert _rates(_cfg(LR_SCHEDULER_NAME="WarmupMultiStepLR"), 60)[59:] == pytest.approx([2.0, 0.2])
    with pytest.raises(ValueError, match="Nonsense"):
        _rates(_cfg(LR_SCHEDULER_NAME="Nonsense"), 0)


def test_the_keys_and_their_defaults():
    cfg = _cfg()
    assert (cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING) == (0.9, 0.0)
    assert cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 1.0
    resnets, head = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD
    assert (resnets.STEM_TYPE, resnets.RES4_DILATION, resnets.RES5_MULTI_GRID) == ("deeplab", 1, [1, 2, 4])
    assert (head.LOSS_TYPE, head.PROJECT_FEATURES, head.PROJECT_CHANNELS) == ("hard_pixel_mining", ["res2"], [48])
    assert (head.ASPP_CHANNELS, head.ASPP_DILATIONS, head.ASPP_DROPOUT) == (256, [6, 12, 18], 0.1)
    assert head.USE_DEPTHWISE_SEPARABLE_CONV is False


def _resnet(**options):
    cfg = _cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    for key, value in {"NORM": "BN", "OUT_FEATURES": ["res2", "res4", "res5"], **options}.items():
        cfg.MODEL.RESNETS[key] = value
    with torch.device("meta"):
        return build_backbone(cfg)


def test_the_deeplab_stem_has_three_convolutions():
    model = _resnet(STEM_OUT_CHANNELS=128)
    shapes = {name: tuple(p.shape) for name, p in model.stem.named_parameters() if name.endswith("v1.weight")}
    assert shapes == {"conv1.weight": (64, 3, 3, 3)}
    assert tuple(model.stem.conv2.weight.shape) == (64, 64, 3, 3)
    assert tuple(model.stem.conv3.weight.shape) == (128, 64, 3, 3) and hasattr(model.stem.conv3, "norm")
    assert tuple(_resnet(STEM_TYPE="basic").stem.conv1.weight.shape) == (64, 3, 7, 7)


def test_multi_grid_dilates_res5_even_at_dilation_1():
    assert [block.conv2.dilation[0] for block in _resnet().res5] == [1, 2, 4]
    blocks = _resnet(RES4_DILATION=2, RES5_DILATION=4)
    assert [block.conv2.dilation[0] for block in blocks.res5] == [4, 8, 16]
    assert {block.conv2.dilation[0] for block in blocks.res4} == {2}


@pytest.mark.parametrize(("res4", "res5", "strides"), [(1, 1, (4, 16, 32)), (1, 2, (4, 16, 16)), (2, 4, (4, 8, 8))])
def test_a_dilated_stage_does_not_stride(res4, res5, strides):
    model = _resnet(RES4_DILATION=res4, RES5_DILATION=res5)
    assert tuple(spec.stride for spec in model.output_shape().values()) == strides
    maps = model(torch.zeros(1, 3, 64, 64, device="meta"))
    assert tuple(64 // features.shape[-1] for features in maps.values()) == strides


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        _resnet(STEM_TYPE="nonsense")
