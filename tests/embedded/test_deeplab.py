"""DeepLab's keys, its polynomial schedule and its ResNet."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.deeplab import WarmupPolyLR, add_deeplab_config, build_lr_scheduler


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
