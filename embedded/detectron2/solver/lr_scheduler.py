"""Learning rate as a function of progress, with a warm-up before it."""

import bisect
import logging
import math
from collections.abc import Sequence
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["LRMultiplier", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """Another schedule, with a warm-up in place of its beginning.

    Args:
        scheduler: the schedule after the warm-up.
        warmup_factor: the warm-up starts at this part of the schedule's first value.
        warmup_length: the part of the whole run that is warm-up, 0 to 1.
        warmup_method: "linear", up to the schedule's value at that point, or "constant".
        rescale_interval: squeeze the schedule into the rest of the run instead of cutting its beginning off.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "constant":
            warmup: ParamScheduler = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            # The end of a multi-step schedule's warm-up may be the very end of the run, which it has no value for.
            joint = 0.0 if rescale_interval else warmup_length
            warmup = LinearParamScheduler(start, scheduler(joint))
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}, expected linear or constant")
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1.0 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiply each group's learning rate by `multiplier(iteration / max_iter)`.

    Args:
        optimizer: its learning rates are the ones multiplied.
        multiplier: a function of progress from 0 to 1.
        max_iter: iterations of the whole run.
        last_iter: the last one done; -1 for a new run.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"LRMultiplier needs a fvcore ParamScheduler, got {type(multiplier).__name__}")
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def get_lr(self) -> list[float | Tensor]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        # The multiplier and the length come from the config, which may change between runs.
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}


class WarmupMultiStepLR(LambdaLR):
    """Deprecated: use LRMultiplier with a multi-step schedule.

    Args:
        milestones: increasing iterations at which the rate is multiplied by gamma.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        _deprecated(self)
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones should be increasing integers, got {milestones}")

        def factor(iteration: int) -> float:
            warmup = warmup_factor_at(warmup_method, iteration, warmup_iters, warmup_factor)
            return warmup * gamma ** bisect.bisect_right(milestones, iteration)

        super().__init__(optimizer, factor, last_epoch)


class WarmupCosineLR(LambdaLR):
    """Deprecated: use LRMultiplier with a cosine schedule.

    Args:
        max_iters: the iteration at which the rate is zero.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        _deprecated(self)

        def factor(iteration: int) -> float:
            warmup = warmup_factor_at(warmup_method, iteration, warmup_iters, warmup_factor)
            return warmup * (1 + math.cos(math.pi * iteration / max_iters)) / 2

        super().__init__(optimizer, factor, last_epoch)


def _deprecated(scheduler: LRScheduler) -> None:
    logging.getLogger(__name__).warning("%s is deprecated: use LRMultiplier", type(scheduler).__name__)


def warmup_factor_at(method: str, iteration: int, length: int, start: float) -> float:
    """From `start` to 1 over the first `length` iterations."""
    if iteration >= length:
        return 1.0
    if method not in ("linear", "constant"):
        raise ValueError(f"Unknown warmup method: {method}, expected linear or constant")
    progress = iteration / length if method == "linear" else 0.0
    return start + (1 - start) * progress
