"""The optimiser and the schedule that SOLVER.* describes."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler

__all__ = ["build_lr_scheduler", "build_optimizer", "get_default_optimizer_params", "maybe_add_gradient_clipping"]

_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the model's parameters, with the gradient clipping of the config."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    return sgd(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Any) -> Any:
    """Let `step` first clip the gradient of each parameter, when SOLVER.CLIP_GRADIENTS.ENABLED.

    Args:
        optimizer: an optimiser class, of which a subclass is returned, or an optimiser, whose class is changed.

    Raises:
        ValueError: CLIP_TYPE is neither "value" nor "norm".
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clip = _clipper(cfg.SOLVER.CLIP_GRADIENTS)
    base = optimizer if isinstance(optimizer, type) else type(optimizer)

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                clip(parameter)
        return base.step(self, closure)

    clipping = type(f"{base.__name__}WithGradientClip", (base,), {"step": step})
    if isinstance(optimizer, type):
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def _clipper(clip: CfgNode) -> Callable[[nn.Parameter], Any]:
    value, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE
    if clip.CLIP_TYPE == "value":
        return lambda parameter: clip_grad_value_(parameter, value)
    if clip.CLIP_TYPE == "norm":
        return lambda parameter: clip_grad_norm_(parameter, value, norm_type)
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}, expected 'value' or 'norm'")


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups with the usual exceptions for norm layers and biases.

    Args:
        base_lr, weight_decay: of all parameters; None leaves it to the optimiser.
        weight_decay_norm: of the parameters of norm layers.
        bias_lr_factor, weight_decay_bias: for parameters called "bias".
        lr_factor_func: a factor on base_lr by the parameter's full name.
        overrides: options by the parameter's own name, as in {"bias": {"lr": 0.1}}.

    Returns:
        Groups for an optimiser; parameters with equal options are together, frozen ones left out.
    """
    overrides = dict(overrides or {})
    bias: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias:
        if "bias" in overrides:
            raise ValueError("Conflicting overrides for 'bias': give either overrides['bias'] or the bias arguments")
        overrides["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    groups: dict[tuple, dict[str, Any]] = {}
    for module, name, full_name, parameter in _own_parameters(model):
        options = {"lr": base_lr, "weight_decay": weight_decay}
        if isinstance(module, _NORM_LAYERS) and weight_decay_norm is not None:
            options["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None and base_lr is not None:
            options["lr"] = base_lr * lr_factor_func(full_name)
        options.update(overrides.get(name, {}))
        options = {key: value for key, value in options.items() if value is not None}
        same = groups.setdefault(tuple(sorted(options.items())), {"params": [], **options})
        same["params"].append(parameter)
    return list(groups.values())


def _own_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """(module, name, full name, parameter) of what is trained; shared parameters once."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module, name, f"{prefix}.{name}".lstrip("."), parameter


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule called SOLVER.LR_SCHEDULER_NAME, after its warm-up.

    Raises:
        ValueError: an unknown name, or a step at MAX_ITER.
    """
    solver = cfg.SOLVER
    warmed = WarmupParamScheduler(
        _schedule(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=warmed, max_iter=solver.MAX_ITER)


def _schedule(solver: CfgNode) -> ParamScheduler:
    """What the learning rate is multiplied by, without the warm-up."""
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        return _multi_step(solver)
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0.0 <= end <= 1.0:
            raise ValueError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} is not between 0 and BASE_LR {solver.BASE_LR}")
        return CosineParamScheduler(1.0, end)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=solver.MAX_ITER
        )
    raise ValueError(
        f"Unknown LR scheduler: {name}, expected WarmupMultiStepLR, WarmupCosineLR or WarmupStepWithFixedGammaLR "
        "(WarmupPolyLR: detectron2.projects.deeplab.build_lr_scheduler)"
    )


def _multi_step(solver: CfgNode) -> MultiStepParamScheduler:
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. These values will be ignored: %s of %s",
            [step for step in solver.STEPS if step > solver.MAX_ITER],
            solver.STEPS,
        )
    if solver.MAX_ITER in steps:
        raise ValueError(
            f"SOLVER.STEPS {solver.STEPS} has a step at SOLVER.MAX_ITER {solver.MAX_ITER}, after which nothing comes: "
            "leave it out (SOLVER.STEPS () for none)"
        )
    values = [solver.GAMMA**power for power in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)
