"""The polynomial learning rate schedule with a warm-up."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detectron2.solver.lr_scheduler import warmup_factor_at


class WarmupPolyLR(LRScheduler):
    """lr = base rate * warm-up factor * (1 - iteration / max_iters) ** power."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer: its `lr` per group is the base rate.
            max_iters: where the rate reaches zero; going on after it raises ValueError.
            warmup_factor: part of the rate at iteration 0.
            warmup_iters: length of the warm-up, 0 for none.
            warmup_method: "linear", or "constant" to stay at `warmup_factor`.
            last_epoch: iteration to continue after, -1 to start.
            power: 1 is a straight line; smaller stays high for longer.
            constant_ending: part of the base rate below which it does not fall after the warm-up, 0 for no limit.
        """
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"warmup_method is {warmup_method!r}, expected 'linear' or 'constant'")
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over where the schedule is; its shape stays this one's, so a run can be resumed with a longer one."""
        place = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
        super().load_state_dict({key: value for key, value in state_dict.items() if key in place})

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at iteration `last_epoch`."""
        factor = self._factor(self.last_epoch)
        return [base_lr * factor for base_lr in self.base_lrs]

    def _factor(self, iteration: int) -> float:
        left = 1 - iteration / self.max_iters
        if left < 0:
            raise ValueError(
                f"The schedule ends at iteration {self.max_iters}, and this is iteration {iteration}: "
                "raise SOLVER.MAX_ITER, or stop training there"
            )
        decay = math.pow(left, self.power)
        if iteration >= self.warmup_iters:
            return max(decay, self.constant_ending)
        return warmup_factor_at(self.warmup_method, iteration, self.warmup_iters, self.warmup_factor) * decay
