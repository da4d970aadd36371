"""The published optimiser: AdamW or SGD with a slower backbone, no decay on norms and embeddings, full-model clipping
(paper, section 4.1 and appendix)."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed")


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning rate and weight decay; a shared parameter counts once.

    Equal settings are one group, so that the optimiser updates all its tensors at once.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr, decay = solver.BASE_LR, solver.WEIGHT_DECAY
            if "backbone" in module_name:
                lr *= solver.BACKBONE_MULTIPLIER
            if any(undecayed in name for undecayed in UNDECAYED):
                decay = 0.0
            if isinstance(module, NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            if isinstance(module, nn.Embedding):
                decay = solver.WEIGHT_DECAY_EMBED
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over `parameter_groups`, with gradients clipped as SOLVER.CLIP_GRADIENTS says.

    Raises:
        ValueError: an optimiser other than ADAMW and SGD.
    """
    groups = parameter_groups(cfg, model)
    name = cfg.SOLVER.OPTIMIZER
    if name == "ADAMW":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, cfg.SOLVER.BASE_LR, fused=True)
    elif name == "SGD":
        optimizer = torch.optim.SGD(groups, cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is '{name}', expected ADAMW or SGD.")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        if clip.CLIP_VALUE > 0:
            clip_full_model(optimizer, clip.CLIP_VALUE)
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def clip_full_model(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Before every step, scale all gradients together so that their joint L2 norm is at most `max_norm`."""

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        # A fused optimiser divides by the loss scale of mixed precision itself, after this: the gradients are scaled.
        scale = getattr(optimizer, "grad_scale", None)
        if scale is not None:
            norm = norm / scale
        optimizer.unclipped_norm = norm
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)

    optimizer.register_step_pre_hook(clip)


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """Joint L2 norm of the gradients of the last step, before full-model clipping; NaN when there was none."""
    norm = getattr(optimizer, "unclipped_norm", None)
    if norm is None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else math.nan
    return float(norm)
