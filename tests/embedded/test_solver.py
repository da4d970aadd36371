"""Optimisers and schedules by config. The multipliers were recorded from detectron2, in its documentation's setting."""

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

AT = (0, 1, 5, 9, 10, 50, 59, 60, 79, 80, 99, 100)
MULTI_STEP = (0.1, 0.19, 0.55, 0.91, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01)
MULTI_STEP_CONSTANT = (0.1, 0.1, 0.1, 0.1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01)
COSINE = (0.1, 0.187553, 0.537764, 0.887975, 0.975528, 0.5, 0.360504, 0.345492, 0.104922, 0.095492, 0.000247, 0)


def config(**solver):
    cfg = get_cfg()
    cfg.SOLVER.update(MAX_ITER=100, STEPS=(60, 80), WARMUP_ITERS=10, WARMUP_FACTOR=0.1, BASE_LR=2.0, **solver)
    return cfg


def rates(build) -> dict[int, float]:
    """The multiplier used at each iteration, for a base rate of 2."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build(optimizer)
    seen = {}
    for iteration in range(101):
        seen[iteration] = optimizer.param_groups[0]["lr"] / 2
        optimizer.step()
        if iteration < 100:
            scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        ({}, MULTI_STEP),
        ({"WARMUP_METHOD": "constant"}, MULTI_STEP_CONSTANT),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR"}, COSINE),
    ],
)
def test_multipliers_are_the_recorded_ones(solver, expected):
    seen = rates(lambda optimizer: build_lr_scheduler(config(**solver), optimizer))
    assert [seen[iteration] for iteration in AT] == pytest.approx(expected, abs=1e-6)


def test_fixed_gamma_schedule():
    # 1 + NUM_DECAYS equal parts, each half of the one before; linear warm-up over the first ten.
    cfg = config(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", NUM_DECAYS=3, GAMMA=0.5)
    seen = rates(lambda optimizer: LRMultiplierUpTo99(cfg, optimizer))
    assert [seen[i] for i in (0, 5, 10, 24, 25, 50, 75, 99)] == pytest.approx(
        [0.1, 0.55, 1, 1, 0.5, 0.25, 0.125, 0.125]
    )


def LRMultiplierUpTo99(cfg, optimizer):
    # fvcore's step schedule has no value for the very end, where no training step uses it.
    scheduler = build_lr_scheduler(cfg, optimizer)
    step = scheduler.step
    scheduler.step = lambda: step() if scheduler.last_epoch < 99 else None
    return scheduler


def test_cosine_ends_at_base_lr_end():
    seen = rates(lambda o: build_lr_scheduler(config(LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR_END=0.5), o))
    assert seen[100] == pytest.approx(0.25) and seen[50] == pytest.approx(0.625)


def test_warm_up_over_the_whole_run_and_none_at_all():
    cfg = config()
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WARMUP_ITERS = 1000
    seen = rates(lambda optimizer: build_lr_scheduler(cfg, optimizer))
    assert seen[50] == pytest.approx(0.55)
    cfg.SOLVER.WARMUP_ITERS = 0
    assert rates(lambda optimizer: build_lr_scheduler(cfg, optimizer))[0] == 1


def test_the_deprecated_classes_give_the_same_multi_step_rates():
    seen = rates(lambda o: WarmupMultiStepLR(o, [60, 80], warmup_factor=0.1, warmup_iters=10))
    assert [seen[iteration] for iteration in AT] == pytest.approx(MULTI_STEP)
    seen = rates(lambda o: WarmupCosineLR(o, 100, warmup_factor=0.1, warmup_iters=10))
    assert seen[5] == pytest.approx(0.55 * 0.9938441703)  # warm-up times (1 + cos(pi / 20)) / 2
    assert [seen[iteration] for iteration in AT[4:]] == pytest.approx(COSINE[4:], abs=1e-6)


def test_steps_at_or_after_the_end():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cfg = config()
    cfg.SOLVER.STEPS = (60, 100)
    with pytest.raises(ValueError):
        build_lr_scheduler(cfg, optimizer)
    cfg.SOLVER.STEPS = (60, 101)
    seen = rates(lambda o: build_lr_scheduler(cfg, o))
    assert seen[99] == pytest.approx(0.1)


def test_unknown_names():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="Unknown LR scheduler: Nonsense"):
        build_lr_scheduler(config(LR_SCHEDULER_NAME="Nonsense"), optimizer)
    with pytest.raises(ValueError):
        build_lr_scheduler(config(WARMUP_METHOD="nonsense"), optimizer)


def test_the_state_of_a_schedule_is_small_and_resumes():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_lr_scheduler(config(), optimizer)
    assert isinstance(scheduler, LRMultiplier)
    for _ in range(65):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"base_lrs": [2.0], "last_epoch": 65}

    fresh = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    again = build_lr_scheduler(config(), fresh)
    again.load_state_dict(state)
    fresh.step()
    again.step()
    assert fresh.param_groups[0]["lr"] == pytest.approx(0.2)


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight  # shared
    model[0].bias.requires_grad = False
    return model


def test_parameter_groups():
    model = small_model()
    groups = get_default_optimizer_params(
        model, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.05
    )
    options = {}
    for group in groups:
        for parameter in group["params"]:
            assert parameter not in options
            options[parameter] = (group["lr"], group["weight_decay"])
    assert model[0].bias not in options and len(options) == 6
    assert options[model[0].weight] == options[model[2].weight] == (1.0, 0.1)
    assert options[model[1].weight] == (1.0, 0.0)
    assert options[model[1].bias] == options[model[3].bias] == (2.0, 0.05)
    assert len(groups) == 3  # equal options are one group


def test_parameter_groups_by_function_and_override():
    model = small_model()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("2.") else 1.0,
        overrides={"bias": {"weight_decay": 0.0}},
    )
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert rate[model[2].weight] == 0.5 and rate[model[0].weight] == 1.0
    assert all(group["weight_decay"] == 0.0 for group in groups if any(p is model[2].bias for p in group["params"]))


def test_build_optimizer():
    cfg = get_cfg()
    cfg.SOLVER.NESTEROV = True
    optimizer = build_optimizer(cfg, small_model())
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["nesterov"]
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.0001]


@pytest.mark.parametrize("as_class", [True, False])
def test_clipping_is_per_parameter(as_class: bool):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE="norm", CLIP_VALUE=1.0)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    if as_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    assert isinstance(optimizer, torch.optim.SGD)
    parameters[0].grad = torch.tensor([30.0, 40.0])  # norm 50
    parameters[1].grad = torch.tensor([0.3, 0.4])  # norm 0.5
    optimizer.step()
    assert parameters[0].tolist() == pytest.approx([-0.6, -0.8], abs=1e-4)
    assert parameters[1].tolist() == pytest.approx([-0.3, -0.4], abs=1e-4)


def test_clipping_by_value_and_unknown_types():
    cfg = get_cfg()
    parameter = nn.Parameter(torch.zeros(2))
    plain = torch.optim.SGD([parameter], lr=1.0)
    assert maybe_add_gradient_clipping(cfg, plain) is plain and type(plain) is torch.optim.SGD
    cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE="value", CLIP_VALUE=0.25)
    maybe_add_gradient_clipping(cfg, plain)
    parameter.grad = torch.tensor([-3.0, 0.125])
    plain.step()
    assert parameter.tolist() == [0.25, -0.125]
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError):
        maybe_add_gradient_clipping(cfg, plain)


@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream raises fvcore's message")
def test_a_step_at_the_end_says_what_to_do():
    cfg = config()
    cfg.SOLVER.STEPS = (100,)
    with pytest.raises(ValueError, match=r"SOLVER.STEPS \(\) for none"):
        build_lr_scheduler(cfg, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
