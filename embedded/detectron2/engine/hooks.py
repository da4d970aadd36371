"""What happens around the steps of a training run, one class each.

Longer than other files, because it is the module that all of the hooks are imported from, and none needs another.
"""

import datetime
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchLRScheduler

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.file_io import PathManager

from .train_loop import HookBase, TrainerBase

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]

_Callback = Callable[[TrainerBase], None]


def _every(period: int, iteration: int) -> bool:
    """Whether `period` iterations, or a multiple, are done after this one. A period of 0 is never."""
    return period > 0 and (iteration + 1) % period == 0


class CallbackHook(HookBase):
    """Functions of the trainer, given one by one."""

    def __init__(
        self,
        *,
        before_train: _Callback | None = None,
        after_train: _Callback | None = None,
        before_step: _Callback | None = None,
        after_step: _Callback | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks[moment]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")
        self._callbacks.clear()  # they may hold the trainer in a circle

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts the `time` of each step; at the end logs the speed, and how much of the time went into hooks.

    Only what happens between its own `before_step` and `after_step` counts as the step: register it first.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        """`warmup_iter` steps at the start are slower than the rest and not counted."""
        self._warmup_iter = warmup_iter
        self._counted: list[float] = []
        self._step_start = 0.0
        self._train_start = 0.0

    def before_train(self) -> None:
        self._train_start = time.perf_counter()
        self._counted.clear()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        if self.trainer.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._train_start = now
            return
        self._counted.append(now - self._step_start)
        self.trainer.storage.put_scalar("time", self._counted[-1])

    def after_train(self) -> None:
        if not self._counted:
            return
        in_all, in_steps = time.perf_counter() - self._train_start, sum(self._counted)

        def clock(seconds: float) -> datetime.timedelta:
            return datetime.timedelta(seconds=int(seconds))

        logger = logging.getLogger(__name__)
        num = len(self._counted)
        logger.info("Overall training speed: %d iterations in %s (%.4f s / it)", num, clock(in_steps), in_steps / num)
        logger.info("Total training time: %s (%s on hooks)", clock(in_all), clock(max(0.0, in_all - in_steps)))


class PeriodicWriter(HookBase):
    """Lets the writers write every `period` iterations and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"{writer!r} is no writer: derive it from detectron2.utils.events.EventWriter")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        if _every(self._period, self.trainer.iter) or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()

    def after_train(self) -> None:
        self._write()  # hooks before this one may have had something to report, such as the last evaluation
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer, called after each step; the last iteration comes from the trainer."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint whenever a metric is better than ever before. To be registered after the EvalHook."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: the period of the EvalHook.
            checkpointer: what saves.
            val_metric: a scalar in the storage, such as "segm/AP".
            mode: "max" if larger is better, "min" if smaller is.
            file_prefix: name of the file, without ".pth".
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}, expected 'max' or 'min'")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._sign = 1 if mode == "max" else -1
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        if _every(self._period, self.trainer.iter) and self.trainer.iter + 1 != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._check()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]

    def _check(self) -> None:
        logger = logging.getLogger(__name__)
        scalars = self.trainer.storage.latest()
        if self._val_metric not in scalars:
            logger.warning(
                "No metric %s to choose the best checkpoint by; is there an EvalHook before?", self._val_metric
            )
            return
        metric, when = scalars[self._val_metric]
        if not math.isfinite(metric):
            return
        if self.best_metric is not None and self._sign * metric <= self._sign * self.best_metric:
            logger.info(
                "%s = %.5f is not better than %.5f of iteration %s",
                self._val_metric,
                metric,
                self.best_metric,
                self.best_iter,
            )
            return
        self.best_metric, self.best_iter = metric, when
        latest = self._checkpointer.get_checkpoint_file()
        self._checkpointer.save(self._file_prefix, iteration=when)
        if latest:  # saving made the best checkpoint the one to resume from, and that is older than the latest
            self._checkpointer.tag_last_checkpoint(os.path.basename(latest))
        logger.info("Saved the best checkpoint so far: %s = %.5f", self._val_metric, metric)


class LRScheduler(HookBase):
    """Puts the learning rate as `lr` and moves the schedule on, after each step."""

    def __init__(
        self, optimizer: Optimizer | None = None, scheduler: TorchLRScheduler | ParamScheduler | None = None
    ) -> None:
        """What is None is the trainer's. A ParamScheduler of fvcore multiplies the rates over the whole run."""
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._group = 0

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            from detectron2.solver import LRMultiplier

            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._group = _representative_group(self._optimizer)

    def after_step(self) -> None:
        rate = self._optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> TorchLRScheduler | ParamScheduler:
        """The given one, or else the trainer's."""
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, TorchLRScheduler) else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, TorchLRScheduler):
            self.scheduler.load_state_dict(dict(state_dict))


def _representative_group(optimizer: Optimizer) -> int:
    """Index of the parameter group whose rate to report.

    The largest one; or, where each has one parameter, the first with the most common rate.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if max(sizes) > 1:
        return sizes.index(max(sizes))
    rates = [group["lr"] for group in optimizer.param_groups]
    return rates.index(Counter(rates).most_common(1)[0][0])


class EvalHook(HookBase):
    """Runs an evaluation every `period` iterations and at the end, and puts its results as scalars."""

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None], eval_after_train: bool = True
    ) -> None:
        """
        Args:
            eval_period: 0 for none before the end.
            eval_function: returns numbers by name, nested as deep as it likes, or None.
            eval_after_train: whether to evaluate after the last iteration, if training got there.
        """
        self._period = eval_period
        self._func: Callable[[], Mapping[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        if _every(self._period, self.trainer.iter) and self.trainer.iter + 1 != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        self._func = None  # it is usually a method of the trainer's, which would live on with its model

    def _evaluate(self) -> None:
        assert self._func is not None, "the run is over"
        results = self._func()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"The evaluation returned {results!r}, expected a dict of numbers by name")
            for name, value in _flatten(results).items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        comm.synchronize()  # some processes evaluate longer than others


def _flatten(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"segm": {"AP": 1}} to {"segm/AP": 1.0}."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}/"))
            continue
        try:
            flat[f"{prefix}{name}"] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The evaluation returned {prefix}{name} = {value!r}; a training run can only record numbers, "
                "nested in dicts"
            ) from error
    return flat


class PreciseBN(HookBase):
    """Recomputes the statistics of batch normalisation from many batches, every `period` iterations and at the end."""

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        """
        Args:
            period: 0 for only at the end.
            model: in training mode when this runs; without batch norm layers this hook does nothing.
            data_loader: of its own, batches taken here are not trained on.
            num_iter: number of batches.
        """
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._batches: Any = None

    def after_step(self) -> None:
        if _every(self._period, self.trainer.iter) or self.trainer.iter == self.trainer.max_iter - 1:
            self.update_stats()

    def update_stats(self) -> None:
        """Run `num_iter` batches through the model, without training on them."""
        logger = logging.getLogger(__name__)
        if not get_bn_modules(self._model):
            logger.info("No batch normalisation in training mode: nothing to make precise")
            return
        self._batches = self._batches or iter(self._data_loader)
        logger.info("Computing the statistics of batch normalisation from %d batches", self._num_iter)
        # What the model reports during these passes is not training: a storage to throw away takes it.
        with EventStorage():
            update_bn_stats(self._model, (next(self._batches) for _ in count()), self._num_iter)


class TorchProfiler(HookBase):
    """Records chosen iterations with torch.profiler, as Chrome traces in `output_dir`."""

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Sequence[Any] | None = None,
    ) -> None:
        """
        Args:
            enable_predicate: whether to record the step to come, such as `lambda trainer: 10 <= trainer.iter < 15`.
            output_dir: gets a file per recorded iteration.
            activities: of torch.profiler; None is all this machine has.
        """
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            self._profiler = torch.profiler.profile(activities=self._activities)
            self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        PathManager.mkdirs(self._output_dir)
        trace = os.path.join(self._output_dir, f"profiler-trace-iter{self.trainer.iter}.json")
        self._profiler.export_chrome_trace(trace)
        logging.getLogger(__name__).info("Wrote the profile of iteration %d to %s", self.trainer.iter, trace)
        self._profiler = None


class AutogradProfiler(TorchProfiler):
    """The older name of TorchProfiler, with a switch for CUDA."""

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        cpu_only = [torch.profiler.ProfilerActivity.CPU]
        super().__init__(enable_predicate, output_dir, activities=None if use_cuda else cpu_only)


class TorchMemoryStats(HookBase):
    """Logs the GPU memory in use, every `period` iterations, `max_runs` times."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._runs_left = max_runs

    def after_step(self) -> None:
        if not (torch.cuda.is_available() and self._runs_left and _every(self._period, self.trainer.iter)):
            return
        self._runs_left -= 1
        megabytes = {
            "reserved": torch.cuda.memory_reserved(),
            "max_reserved": torch.cuda.max_memory_reserved(),
            "allocated": torch.cuda.memory_allocated(),
            "max_allocated": torch.cuda.max_memory_allocated(),
        }
        text = ", ".join(f"{name} {size / 2**20:.0f} MB" for name, size in megabytes.items())
        logging.getLogger(__name__).info("GPU memory at iteration %d: %s", self.trainer.iter, text)
        torch.cuda.reset_peak_memory_stats()
