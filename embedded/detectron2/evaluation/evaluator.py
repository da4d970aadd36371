"""Running a model over a data set and handing what it says to evaluators."""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process

SECONDS_BETWEEN_REPORTS = 5.0
MAX_WARMUP_BATCHES = 5


class DatasetEvaluator:
    """Sees every input with its output, one batch at a time, and says in the end how good they were."""

    def reset(self) -> None:
        """Forget what was processed; called before each evaluation."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[Any]) -> None:
        """Take in one batch: what went into the model and what came out, image by image."""

    def evaluate(self) -> Mapping[str, Any] | None:
        """Returns:
        {task: {metric: value}}, or None on processes that have nothing to say.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators at once."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[Any]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """The results of all, on the main process. Two of them may not report the same task (AssertionError)."""
        merged: dict[str, Any] = {}
        for evaluator in self._evaluators:
            result = evaluator.evaluate()  # on every process: evaluators talk to each other here
            if result is None or not is_main_process():
                continue
            for key in result:
                assert key not in merged, f"Different evaluators produce results with the same key {key}"
            merged.update(result)
        return merged


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Stopwatch:
    """Where the time of an inference run goes: loading, inference, evaluation. The first few batches do not count."""

    def __init__(self, total: int, logger: logging.Logger) -> None:
        self.total = total
        self.warmup = min(MAX_WARMUP_BATCHES, max(total - 1, 0))
        self.logger = logger
        self.spent = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}
        self.started = self.mark = self.reported = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on `phase`."""
        now = time.perf_counter()
        self.spent[phase] += now - self.mark
        self.mark = now

    def batch_done(self, done: int) -> None:
        """Report, if it is time to."""
        if done == self.warmup:
            self.spent = dict.fromkeys(self.spent, 0.0)
            self.started = self.mark
        elif self.mark - self.reported >= SECONDS_BETWEEN_REPORTS and done > self.warmup:
            self.reported = self.mark
            count = done - self.warmup
            per_batch = (self.mark - self.started) / count
            phases = " ".join(f"{name}: {seconds / count:.4f} s/iter." for name, seconds in self.spent.items())
            eta = datetime.timedelta(seconds=int(per_batch * (self.total - done)))
            self.logger.info(
                "Inference done %d/%d. %s Total: %.4f s/iter. ETA=%s", done, self.total, phases, per_batch, eta
            )

    def finish(self, done: int) -> None:
        """Report the whole run."""
        count, devices = max(done - self.warmup, 1), get_world_size()
        for label, seconds in (("", self.mark - self.started), ("pure compute ", self.spent["Inference"])):
            self.logger.info(
                "Total inference %stime: %s (%.6f s / iter per device, on %d devices)",
                label,
                datetime.timedelta(seconds=seconds),
                seconds / count,
                devices,
            )


def inference_on_dataset(
    model: nn.Module | Callable[[list[dict[str, Any]]], list[Any]],
    data_loader: Iterable[list[dict[str, Any]]],
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run `model` on everything `data_loader` has, in evaluation mode and without gradients.

    Args:
        data_loader: has a length.
        evaluator: one, several, or None to only measure time.
        callbacks: functions to call "on_start", "before_inference" and "after_inference" of each batch, and "on_end".

    Returns:
        what the evaluator returns; {} where that is None.
    """
    logger = logging.getLogger(__name__)
    hooks = callbacks or {}
    if evaluator is None or isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator or [])

    def call(event: str) -> None:
        if event in hooks:
            hooks[event]()

    total = len(data_loader)  # type: ignore[arg-type]  # the contract says Iterable; it must have a length too
    logger.info("Start inference on %d batches", total)
    evaluator.reset()
    mode = inference_context(model) if isinstance(model, nn.Module) else torch.no_grad()
    with mode, torch.no_grad():
        call("on_start")
        watch = _Stopwatch(total, logger)
        done = 0
        for done, inputs in enumerate(data_loader, start=1):
            watch.lap("Dataloading")
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("Inference")
            evaluator.process(inputs, outputs)
            watch.lap("Eval")
            watch.batch_done(done)
        watch.finish(done)
        call("on_end")
    return dict(evaluator.evaluate() or {})
