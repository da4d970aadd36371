"""The loop around evaluators, and what is done with their results."""

import logging
from types import SimpleNamespace

import detectron2
import pytest
import torch
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn


class Recorder(DatasetEvaluator):
    def __init__(self, task):
        self.task = task

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip(inputs, outputs)

    def evaluate(self):
        return {self.task: {"count": len(self.seen)}} if self.task else None


class Doubler(nn.Module):
    def forward(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * value for value in batch]


def test_every_output_reaches_every_evaluator_with_its_input():
    model, first, second = Doubler(), Recorder("a"), Recorder("b")
    result = inference_on_dataset(model, [[1, 2], [3]], [first, second])
    assert result == {"a": {"count": 3}, "b": {"count": 3}}
    assert first.seen == second.seen == [(1, 2), (2, 4), (3, 6)]
    assert model.training  # as before


def test_no_evaluator_and_no_result_give_an_empty_dict():
    assert inference_on_dataset(Doubler(), [[1]], None) == {}
    assert inference_on_dataset(Doubler(), [[1]], Recorder(None)) == {}
    assert inference_on_dataset(Doubler(), [[1]], [Recorder(None), Recorder("a")]) == {"a": {"count": 1}}
    assert inference_on_dataset(Doubler(), [], Recorder("a")) == {"a": {"count": 0}}


def test_callbacks_come_in_order():
    events = []
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    callbacks = {name: lambda name=name: events.append(name) for name in names}
    inference_on_dataset(Doubler(), [[1], [2]], Recorder("a"), callbacks=callbacks)
    assert events == [names[0], *names[1:3], *names[1:3], names[3]]


def test_progress_says_where_the_time_goes_and_how_much_is_left(caplog, monkeypatch):
    clock = iter(range(10_000))
    # each look at the clock is one second later: every batch takes 3 or more
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="detectron2.evaluation.evaluator"):
        inference_on_dataset(Doubler(), [[1]] * 20, None)
    text = caplog.text
    assert "Start inference on 20 batches" in text
    for part in ("Inference done ", "Dataloading: ", "Inference: ", "Eval: ", "Total: ", "s/iter", "ETA="):
        assert part in text
    assert "Total inference time: " in text and "Total inference pure compute time: " in text


def test_two_evaluators_of_one_task_are_refused():
    both = DatasetEvaluators([Recorder("a"), Recorder("a")])
    both.reset()
    with pytest.raises(AssertionError, match="same key a"):
        both.evaluate()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_even_after_an_error(training):
    model = nn.Dropout().train(training)
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training
        raise RuntimeError
    assert model.training is training


def test_lines_to_paste_have_four_decimals_and_no_single_classes(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"segm": {"AP": 1.23456, "AP50": 2.0, "AP-person": 3.0}, "loss": 4})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "copypaste: Task: segm",
        "copypaste: AP,AP50",
        "copypaste: 1.2346,2.0000",
        "copypaste: loss=4",
    ]


def config(*expected):
    return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(expected)))


def test_expected_results():
    results = {"segm": {"AP": 40.0, "bad": float("nan")}}
    assert verify_results(config(), results)
    assert verify_results(config(["segm", "AP", 40.5, 0.6]), results)
    for wrong in (["segm", "AP", 41.0, 0.5], ["segm", "bad", 1.0, 9.0], ["segm", "AR", 1.0, 9.0]):
        with pytest.raises(SystemExit) as stop:
            verify_results(config(wrong), results)
        assert stop.value.code == 1


@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream has them")
def test_what_is_not_here_says_so():
    from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, LVISEvaluator
    from detectron2.layers import DeformConv

    with pytest.raises(ImportError, match="LVISEvaluator"):
        LVISEvaluator("lvis_v1_val")
    with pytest.raises(ImportError, match="DeformConv"):
        DeformConv(3, 3, 3)
    for kind in (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator):
        with pytest.raises(ImportError, match=f"from mask2former.evaluation import {kind.__name__}"):
            kind("cityscapes_fine_instance_seg_val")


def test_results_flatten_at_any_depth():
    assert flatten_results_dict({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a/b/c": 1, "a/d": 2, "e": 3}
