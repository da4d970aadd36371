"""Learning rate schedules by name, the polynomial one included."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_other_lr_scheduler

from .lr_scheduler import WarmupPolyLR


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that SOLVER.LR_SCHEDULER_NAME says: "WarmupPolyLR", or one that detectron2.solver knows."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_other_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        max_iters=solver.MAX_ITER,
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
        warmup_method=solver.WARMUP_METHOD,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
    )
