"""The training loop: an order of events (TrainerBase), what happens around a step (hooks), and the step itself."""

import logging
import math
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]


class HookBase:
    """Something to do at set moments of a run. `trainer` is there from `before_train` on."""

    trainer: "TrainerBase" = None  # type: ignore[assignment]  # set by register_hooks

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """After the last iteration, also when an exception ended the run."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """Between the gradients and the optimizer's step."""

    def after_step(self) -> None:
        """After each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep for this hook; a hook that keeps something also has `load_state_dict`."""
        return {}


class TrainerBase:
    """Runs `run_step` from `start_iter` to `max_iter` and calls the hooks around it.

    Attributes: `iter`, `start_iter`, `max_iter`, and `storage`, the run's EventStorage.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add hooks, to be called in this order; None is left out."""
        for hook in filter(None, hooks):
            if not isinstance(hook, HookBase):
                raise TypeError(f"{hook!r} is no hook: derive it from detectron2.engine.HookBase")
            hook.trainer = weakref.proxy(self)  # a strong one would keep model and data alive in a circle
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations `start_iter` to `max_iter - 1`; afterwards `iter` is `max_iter`."""
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        self._call_hooks("before_train")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """{"iteration": the current one, "hooks": {class name: its state}}; hooks without state are left out."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks = {type(hook).__name__: kept for hook in self._hooks if (kept := hook.state_dict())}
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take `state_dict` back; state of a hook that is not registered is reported and left out."""
        self.iter = state_dict["iteration"]
        by_name = {type(hook).__name__: hook for hook in reversed(self._hooks)}
        for name, kept in state_dict.get("hooks", {}).items():
            if name in by_name:
                by_name[name].load_state_dict(kept)
            else:
                logging.getLogger(__name__).warning("The checkpoint has state of a hook %s, this run has none", name)

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment)()


class SimpleTrainer(TrainerBase):
    """One batch, one loss, one gradient, one step of the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: takes a batch, returns a loss or a dict of losses; put into training mode here.
            data_loader: endless, or at least as long as the run.
            optimizer: of the model's parameters.
            gather_metric_period: metrics are averaged over the processes every so many iterations.
            zero_grad_before_forward: clear gradients before the model runs rather than after: less memory.
            async_write_metrics: must be False; the argument is there for compatibility.
        """
        super().__init__()
        if async_write_metrics:
            raise ValueError("async_write_metrics=True is not supported here: leave it out")
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._iterator: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        """Made at the first use, so that a trainer that only evaluates starts no workers. User trainers call it."""
        if self._iterator is None:
            self._iterator = iter(self.data_loader)
        return self._iterator

    def run_step(self) -> None:
        batch, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses, total = self._forward(batch)
        # Before the gradients of the last step are cleared, for whoever reports a loss that is not finite.
        self._write_metrics(losses, data_time)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        self.after_backward()
        self._step()

    def _next_batch(self) -> tuple[Any, float]:
        assert self.model.training, f"[{type(self).__name__}] the model is in eval mode; call model.train()"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        return batch, time.perf_counter() - start

    def _forward(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        losses = self.model(batch)
        if isinstance(losses, Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())

    def _backward(self, total: Tensor) -> None:
        total.backward()

    def _step(self) -> None:
        self.optimizer.step()

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        """Report losses and data time to the storage.

        Raises:
            FloatingPointError: the sum of the losses of this process is not finite.
        """
        # One transfer from the device, whatever the number of losses.
        values = torch.stack([loss.detach().float().mean() for loss in loss_dict.values()]).tolist()
        losses = dict(zip(loss_dict, values, strict=True))
        if not math.isfinite(sum(values)):
            # Each process looks at its own: waiting for the main one to notice would let the others step into NaN.
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={self.iter}!\nloss_dict = {losses}")
        if (self.iter + 1) % self.gather_metric_period:
            return
        gathered = comm.gather({**losses, "data_time": data_time})
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(metrics.pop("data_time") for metrics in gathered))
        storage.put_scalar("rank_data_time", data_time)
        means = {name: float(np.mean([metrics[name] for metrics in gathered])) for name in gathered[0]}
        storage.put_scalar(f"{prefix}total_loss", sum(means.values()))
        if len(means) > 1:
            for name, mean in means.items():
                storage.put_scalar(name, mean)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer in mixed precision.

    On CUDA it is autocast with a gradient scaler. On a CPU it is autocast to bfloat16 if the processor computes with
    that, and plain float32 if not.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics: as in
                SimpleTrainer.
            grad_scaler: the default one scales if the precision is float16, the others do not need it.
            precision: of autocast on CUDA.
            log_grad_scaler: report the scale as a scalar `[metric]grad_scaler`.
        """
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        if isinstance(model, DistributedDataParallel | DataParallel):
            assert not (model.device_ids and len(model.device_ids) > 1), "AMPTrainer wants one device per process"
        self.device_type = next((p.device.type for p in model.parameters()), "cpu")
        on_cuda = self.device_type == "cuda"
        self.precision = precision if on_cuda else cpu_precision() if self.device_type == "cpu" else torch.float32
        if not on_cuda:
            logging.getLogger(__name__).info(
                "No CUDA: training on the %s in %s",
                self.device_type.upper(),
                "bfloat16 autocast" if self.precision == torch.bfloat16 else "float32",
            )
        scales = on_cuda and precision == torch.float16
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self.device_type, enabled=scales)
        self.log_grad_scaler = log_grad_scaler

    def _forward(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision != torch.float32):
            return super()._forward(batch)

    def _backward(self, total: Tensor) -> None:
        self.grad_scaler.scale(total).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty when the run before was on a CPU
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def cpu_precision() -> torch.dtype:
    """bfloat16 where the processor has instructions for it, float32 where it would be emulated, which is slower."""
    flags = torch.cpu.get_capabilities()
    fast = flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("sve_bf16")
    return torch.bfloat16 if fast else torch.float32
