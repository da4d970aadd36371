"""Hooks: when they act, what they record and keep."""

import json
import math
import time

import detectron2
import pytest
import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import EventWriter, JSONWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="not in upstream detectron2")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch) -> torch.Tensor:
        return self.weight**2


def _trainer(lr: float = 0.1) -> SimpleTrainer:
    model = Model()
    return SimpleTrainer(model, [[{}]] * 100, torch.optim.SGD(model.parameters(), lr=lr))


def _halving(trainer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.MultiStepLR(trainer.optimizer, range(1, 50), gamma=0.5)


def _values(trainer, name: str) -> list[tuple[float, int]]:
    return trainer.storage.history(name).values()


def test_callbacks_get_the_trainer():
    calls = []
    trainer = _trainer()
    hook = hooks.CallbackHook(
        before_train=lambda t: calls.append(("train", t.iter)), after_step=lambda t: calls.append(("step", t.iter))
    )
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert calls == [("train", 0), ("step", 0), ("step", 1)]


def test_the_timer_counts_steps_after_the_warm_up():
    trainer = _trainer()
    step = trainer.run_step
    trainer.run_step = lambda: (time.sleep(0.01), step())
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=3)])
    trainer.train(0, 5)
    times = _values(trainer, "time")
    assert [when for _, when in times] == [2, 3, 4]
    assert all(0.01 <= seconds < 1 for seconds, _ in times)


def test_the_rate_is_recorded_as_used_then_moved_on_and_kept_in_a_checkpoint():
    trainer = _trainer()
    trainer.register_hooks([hooks.LRScheduler(scheduler=_halving(trainer))])
    trainer.train(0, 3)
    assert _values(trainer, "lr") == [(0.1, 0), (0.05, 1), (0.025, 2)]
    state = trainer.state_dict()

    resumed = _trainer()
    resumed.register_hooks([hooks.LRScheduler(scheduler=_halving(resumed))])
    resumed.load_state_dict(state)
    resumed.train(3, 5)
    assert _values(resumed, "lr") == [(0.0125, 3), (0.00625, 4)]


def test_the_rate_of_the_largest_group_or_else_the_most_common_one_is_recorded():
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    for groups, expected in (
        ([{"params": [a], "lr": 1.0}, {"params": [b, c, d], "lr": 2.0}], 2.0),
        ([{"params": [p], "lr": lr} for p, lr in zip((a, b, c), (3.0, 4.0, 4.0), strict=True)], 4.0),
    ):
        trainer = _trainer()
        optimizer = torch.optim.SGD(groups)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0)
        optimizer.step()  # the trainer steps its own optimizer; without a step the scheduler warns
        trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
        trainer.train(0, 1)
        assert trainer.storage.latest()["lr"] == (expected, 0)


def test_a_schedule_of_fvcore_runs_over_the_whole_training():
    trainer = _trainer(lr=2.0)
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 4)
    assert [rate for rate, _ in _values(trainer, "lr")] == [2.0, 1.5, 1.0, 0.5]


def test_evaluation_every_period_and_once_at_the_end():
    trainer, seen = _trainer(), []

    def evaluate():
        seen.append(trainer.iter)
        return {"segm": {"AP": 10 + trainer.iter, "parts": {"small": 1}}}

    trainer.register_hooks([hooks.EvalHook(2, evaluate)])
    trainer.train(0, 6)
    assert seen == [1, 3, 6]  # not at 5, the last iteration, as the end follows
    assert _values(trainer, "segm/AP") == [(11.0, 1), (13.0, 3), (16.0, 6)]
    assert trainer.storage.latest()["segm/parts/small"] == (1.0, 6)


def test_no_evaluation_at_the_end_of_a_run_that_failed_or_where_it_is_not_wanted():
    trainer, seen = _trainer(), []
    trainer.register_hooks([hooks.EvalHook(0, lambda: seen.append(trainer.iter))])
    trainer.model.forward = lambda batch: trainer.model.weight * math.nan
    with pytest.raises(FloatingPointError):
        trainer.train(0, 6)
    trainer = _trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: seen.append(trainer.iter), eval_after_train=False)])
    trainer.train(0, 2)
    assert seen == []


def test_results_that_are_no_numbers_are_refused():
    trainer = _trainer()
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"segm": {"AP": "good"}})])
    with pytest.raises(ValueError, match="good"):
        trainer.train(0, 2)


def test_writers_write_every_period_and_at_the_end_and_are_closed(tmp_path):
    class Writer(EventWriter):
        calls = []

        def write(self):
            self.calls.append(trainer.iter)

        def close(self):
            self.calls.append("closed")

    trainer = _trainer()
    file = JSONWriter(str(tmp_path / "metrics.json"))
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"PQ": 70}), hooks.PeriodicWriter([Writer(), file], period=3)])
    trainer.train(0, 7)
    assert Writer.calls == [2, 5, 6, 7, "closed"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 5, 6, 7]
    assert lines[-1] == {"PQ": 70.0, "iteration": 7} and set(lines[0]) >= {"total_loss", "data_time"}


def test_checkpoints_every_period_and_a_final_one(tmp_path):
    trainer = _trainer()
    trainer.register_hooks([hooks.PeriodicCheckpointer(Checkpointer(trainer.model, str(tmp_path)), 3)])
    trainer.train(0, 6)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "model_0000002.pth")["iteration"] == 2


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 1)])
def test_the_best_checkpoint_by_a_metric(tmp_path, mode, best):
    trainer = _trainer()
    metrics = iter([5.0, 3.0, float("nan"), 9.0, 7.0])
    checkpointer = Checkpointer(trainer.model, str(tmp_path))
    trainer.register_hooks(
        [hooks.EvalHook(1, lambda: {"AP": next(metrics)}), hooks.BestCheckpointer(1, checkpointer, "AP", mode)]
    )
    trainer.train(0, 5)
    weights = torch.load(tmp_path / "model_best.pth")
    # Each step multiplies the weight by 0.8, and the first evaluation follows the first step.
    assert weights["model"]["weight"].item() == pytest.approx(0.8 ** (best + 1))


@embedded_only
def test_the_best_checkpoint_is_not_the_one_to_resume_from(tmp_path):
    trainer = _trainer()
    checkpointer = Checkpointer(trainer.model, str(tmp_path))
    best = hooks.BestCheckpointer(1, checkpointer, "AP")
    trainer.register_hooks(
        [hooks.PeriodicCheckpointer(checkpointer, 1), hooks.EvalHook(1, lambda: {"AP": trainer.iter}), best]
    )
    trainer.train(0, 2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    again = hooks.BestCheckpointer(1, checkpointer, "AP")
    again.load_state_dict(best.state_dict())
    assert (again.best_metric, again.best_iter) == (2.0, 2)


def test_precise_batch_norm_is_the_mean_over_the_batches():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(1)

        def forward(self, x):
            return self.bn(x).square().mean()

    model = Norm()
    trainer = SimpleTrainer(model, [torch.randn(4, 1)] * 2, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]
    trainer.register_hooks([hooks.PreciseBN(0, model, batches, 2)])
    trainer.train(0, 1)
    assert model.bn.running_mean.item() == pytest.approx(3.0)


@embedded_only
def test_the_profiler_writes_the_chosen_iterations(tmp_path):
    trainer = _trainer()
    trainer.register_hooks([hooks.TorchProfiler(lambda t: t.iter == 1, str(tmp_path), activities=None)])
    trainer.train(0, 3)
    traces = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(traces) == 1 and "iter1" in traces[0].name
    assert any("backward" in event["name"].lower() for event in json.loads(traces[0].read_text())["traceEvents"])
