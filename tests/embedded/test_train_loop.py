"""The training loop: order of events, one step, its metrics, state, and what stops it."""

import detectron2
import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.utils.events import get_event_storage
from torch import nn

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="not in upstream detectron2")


class Recorder(HookBase):
    def __init__(self, calls: list[str], name: str = "") -> None:
        self.calls, self.name = calls, name

    def _note(self, what: str) -> None:
        self.calls.append(f"{self.name}{what}{self.trainer.iter}")

    def before_train(self) -> None:
        self._note("before_train ")

    def after_train(self) -> None:
        self._note("after_train ")

    def before_step(self) -> None:
        self._note("before_step ")

    def after_step(self) -> None:
        self._note("after_step ")


class Losses(nn.Module):
    """Two losses of one weight: 2w and w squared."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, batch) -> dict[str, torch.Tensor]:
        factor = batch[0].get("factor", 1.0)
        return {"loss_a": 2 * self.weight * factor, "loss_b": self.weight**2}


def _trainer(cls=SimpleTrainer, batches=None, weight=1.0, **kwargs):
    model = Losses(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return cls(model, batches or [[{}]] * 10, optimizer, **kwargs)


def test_hooks_are_called_in_order_around_each_step():
    calls = []

    class Loop(TrainerBase):
        def run_step(self):
            assert get_event_storage().iter == self.iter
            calls.append(f"step {self.iter}")

    loop = Loop()
    loop.register_hooks([Recorder(calls, "a "), None, Recorder(calls, "b ")])
    loop.train(3, 5)
    expected = ["a before_train 3", "b before_train 3"]
    for i in (3, 4):
        expected += [f"a before_step {i}", f"b before_step {i}", f"step {i}", f"a after_step {i}", f"b after_step {i}"]
    assert calls == [*expected, "a after_train 5", "b after_train 5"]
    assert (loop.iter, loop.start_iter, loop.max_iter) == (5, 3, 5)


def test_after_train_runs_after_an_exception_which_is_raised():
    calls = []

    class Loop(TrainerBase):
        def run_step(self):
            raise ZeroDivisionError("here")

    loop = Loop()
    loop.register_hooks([Recorder(calls)])
    with pytest.raises(ZeroDivisionError, match="here"):
        loop.train(0, 5)
    assert calls == ["before_train 0", "before_step 0", "after_train 0"]


def test_a_step_is_gradient_descent_on_the_sum_of_the_losses():
    trainer = _trainer()
    trainer.train(0, 1)
    # d(2w + w^2)/dw = 4 at w = 1; 1 - 0.1 * 4
    assert trainer.model.weight.item() == pytest.approx(0.6)
    latest = trainer.storage.latest()
    assert latest["total_loss"] == (3.0, 0) and latest["loss_a"] == (2.0, 0) and latest["loss_b"] == (1.0, 0)
    assert latest["data_time"][0] >= 0
    trainer.train(1, 2)
    assert trainer.model.weight.item() == pytest.approx(0.6 - 0.1 * (0.9 * 4 + 3.2))  # gradients do not add up


def test_a_single_loss_is_the_total_loss():
    trainer = _trainer()
    trainer.model.forward = lambda batch: trainer.model.weight * 5
    trainer.train(0, 1)
    scalars = trainer.storage.latest()
    assert scalars["total_loss"] == (5.0, 0) and not any(name.startswith("loss") for name in scalars)


def test_a_model_left_in_eval_mode_is_refused():
    trainer = _trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError):
        trainer.train(0, 1)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights():
    trainer = _trainer(batches=[[{}], [{"factor": float("nan")}]])
    with pytest.raises(FloatingPointError, match="Loss became infinite or NaN at iteration=1!"):
        trainer.train(0, 2)
    assert trainer.model.weight.item() == pytest.approx(0.6)


def test_a_run_that_stops_and_goes_on_equals_one_that_does_not():
    whole = _trainer()
    whole.train(0, 6)
    first = _trainer()
    first.train(0, 3)
    second = _trainer(weight=first.model.weight.item())
    second.load_state_dict(first.state_dict())
    assert second.iter == 3
    second.train(3, 6)
    assert second.model.weight.item() == whole.model.weight.item()


def test_the_state_of_hooks_is_kept_by_class_name():
    class Counter(HookBase):
        count = 0

        def after_step(self):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    trainer = _trainer()
    trainer.register_hooks([Recorder([]), Counter()])
    trainer.train(0, 2)
    state = trainer.state_dict()
    assert state["hooks"] == {"Counter": {"count": 2}} or "Counter" in str(state["hooks"])
    other, counter = _trainer(), Counter()
    other.register_hooks([counter])
    other.load_state_dict(state)
    assert counter.count == 2
    _trainer().load_state_dict(state)  # a hook that is gone is no error


@embedded_only
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_mixed_precision_without_cuda_trains_in_what_the_processor_has(monkeypatch):
    seen = []

    class Linear(nn.Linear):
        def forward(self, batch):
            out = super().forward(torch.ones(1, 2))
            seen.append(out.dtype)
            return {"loss": out.float().square().sum()}

    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        model = Linear(2, 2)
        before = model.weight.detach().clone()
        trainer = AMPTrainer(model, [[{}]] * 3, torch.optim.SGD(model.parameters(), lr=0.1))
        trainer.train(0, 2)
        assert seen.pop() == expected and model.weight.dtype == torch.float32
        assert not torch.equal(model.weight, before)
        state = trainer.state_dict()
        assert "grad_scaler" in state
        trainer.load_state_dict(state)


@embedded_only
def test_hooks_run_between_gradient_and_step():
    norms = []

    class Grad(HookBase):
        def after_backward(self):
            norms.append(self.trainer.model.weight.grad.item())

    trainer = _trainer()
    trainer.register_hooks([Grad()])
    trainer.train(0, 1)
    assert norms == [4.0]
