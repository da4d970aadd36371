"""Which parameter learns how fast, and clipping, against slow plain versions."""

import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from mask2former import add_maskformer2_config
from mask2former.optimizer import build_optimizer, gradient_norm, parameter_groups


class Net(nn.Module):
    """One parameter of every kind the published rules know."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.backbone.absolute_pos_embed = nn.Parameter(torch.zeros(3))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Embedding(5, 4))
        self.level_embed = nn.Parameter(torch.zeros(4))  # no nn.Embedding: decayed, as published
        self.again = self.head[0]  # shared
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.WEIGHT_DECAY = 0.25
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.125
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0625
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    return cfg


EXPECTED = {  # (learning rate, weight decay)
    "backbone.0.weight": (0.05, 0.25),
    "backbone.0.bias": (0.05, 0.25),
    "backbone.1.weight": (0.05, 0.125),
    "backbone.1.bias": (0.05, 0.125),
    "backbone.2.weight": (0.05, 0.125),
    "backbone.2.bias": (0.05, 0.125),
    "backbone.relative_position_bias_table": (0.05, 0.0),
    "backbone.absolute_pos_embed": (0.05, 0.0),
    "head.0.weight": (0.5, 0.25),
    "head.0.bias": (0.5, 0.25),
    "head.1.weight": (0.5, 0.125),
    "head.1.bias": (0.5, 0.125),
    "head.2.weight": (0.5, 0.0625),
    "level_embed": (0.5, 0.25),
}


def test_every_parameter_is_in_one_group_with_its_rate_and_decay(cfg):
    net = Net()
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = {}
    for group in parameter_groups(cfg, net):
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (pytest.approx(group["lr"]), group["weight_decay"])
    assert found == EXPECTED


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_the_step_is_that_of_one_group_per_parameter(cfg, name):
    """Against torch's optimiser, set up one parameter at a time, with gradients scaled by hand."""
    cfg.SOLVER.OPTIMIZER = name
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    kind = {"ADAMW": torch.optim.AdamW, "SGD": lambda p, lr: torch.optim.SGD(p, lr, momentum=cfg.SOLVER.MOMENTUM)}[name]
    groups = [
        {"params": [parameter], "lr": EXPECTED[key][0], "weight_decay": EXPECTED[key][1]}
        for key, parameter in twin.named_parameters()
        if parameter.requires_grad
    ]
    slow, fast = kind(groups, lr=0.5), build_optimizer(cfg, net)
    for _ in range(3):
        gradients = {key: torch.randn_like(p) for key, p in net.named_parameters() if p.requires_grad}
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
        for key, gradient in gradients.items():
            net.get_parameter(key).grad = gradient.clone()
            twin.get_parameter(key).grad = gradient * min(1, 0.1 / norm)
        fast.step()
        slow.step()
        assert gradient_norm(fast) == pytest.approx(norm)
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(key), rtol=1e-5, atol=1e-6)


def test_gradients_below_the_limit_stay_as_they_are(cfg):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BASE_LR = "SGD", 0.0, 1.0
    line = nn.Linear(2, 1, bias=False)
    start = line.weight.detach().clone()
    optimizer = build_optimizer(cfg, line)
    line.weight.grad = torch.tensor([[0.03, 0.04]])  # norm 0.05
    optimizer.step()
    assert torch.allclose(start - line.weight, torch.tensor([[0.03, 0.04]]), atol=1e-7)
    line.weight.grad = torch.tensor([[3.0, 4.0]])  # norm 5
    optimizer.zero_grad()
    line.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer.param_groups[0]["momentum"] = 0.0
    before = line.weight.detach().clone()
    optimizer.step()
    assert torch.allclose(before - line.weight, torch.tensor([[0.06, 0.08]]), atol=1e-6)


def test_a_fused_optimiser_clips_true_gradients_not_scaled_ones(cfg):
    """GradScaler leaves gradients scaled for a fused optimiser: clipping must know."""

    def step(fused: bool) -> tuple[torch.Tensor, float]:
        from mask2former.optimizer import clip_full_model

        weight = nn.Parameter(torch.ones(2))
        # An eps of the size of the clipped gradients shows a wrong scale, which Adam would otherwise hide.
        optimizer = torch.optim.AdamW([weight], lr=0.1, eps=0.1, weight_decay=0.0, fused=fused)
        clip_full_model(optimizer, 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
        if not fused:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        return weight.detach(), gradient_norm(optimizer)

    (fused, fused_norm), (plain, plain_norm) = step(True), step(False)
    assert torch.allclose(fused, plain) and fused_norm == pytest.approx(5.0) == plain_norm
    # The first step of Adam is lr * g / (|g| + eps), with g = (0.06, 0.08).
    assert torch.allclose(plain, 1 - 0.1 * torch.tensor([0.06 / 0.16, 0.08 / 0.18]), atol=1e-6)


def test_an_unknown_optimiser_is_refused(cfg):
    cfg.SOLVER.OPTIMIZER = "ADAM"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'ADAM', expected ADAMW or SGD"):
        build_optimizer(cfg, Net())


def test_detectron2s_own_clipping_works_too(cfg):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BASE_LR = "SGD", 0.0, 1.0
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    line = nn.Linear(2, 1, bias=False)
    start = line.weight.detach().clone()
    optimizer = build_optimizer(cfg, line)
    line.weight.grad = torch.tensor([[3.0, 0.04]])
    optimizer.step()
    assert torch.allclose(start - line.weight, torch.tensor([[0.1, 0.04]]), atol=1e-6)
