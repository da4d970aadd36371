"""EventStorage and the writers: what is recorded, and what lands in files and on the console."""

import json
import logging

import detectron2
import pytest
import torch
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _console(caplog, *args, **kwargs) -> str:
    caplog.clear()
    logger = logging.getLogger("detectron2.utils.events")
    logger.addHandler(caplog.handler)  # detectron2's loggers do not hand their records on once they are set up
    logger.setLevel(logging.INFO)
    try:
        CommonMetricPrinter(*args, **kwargs).write()
    finally:
        logger.removeHandler(caplog.handler)
    return caplog.messages[0] if caplog.messages else ""


def test_the_innermost_storage_is_the_current_one():
    assert not has_event_storage()
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage(7) as inner:
            assert get_event_storage() is inner and inner.iter == 7
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_scalars_are_kept_with_their_iteration_and_smoothed_by_the_median_of_the_window():
    with EventStorage() as storage:
        for value in [10.0, 1.0, 2.0, 3.0]:
            storage.put_scalar("loss", value)
            storage.put_scalars(lr=value, smoothing_hint=False)
            storage.step()
    assert storage.latest() == {"loss": (3.0, 3), "lr": (3.0, 3)}
    assert storage.latest_with_smoothing_hint(3) == {"loss": (2.0, 3), "lr": (3.0, 3)}
    assert storage.latest_with_smoothing_hint(20)["loss"] == (2.5, 3)
    assert storage.history("loss").values() == [(10.0, 0), (1.0, 1), (2.0, 2), (3.0, 3)]
    with pytest.raises(KeyError):
        storage.history("unknown")


def test_a_scalar_that_comes_every_ten_iterations_is_not_smoothed_over_200():
    with EventStorage() as storage:
        for when in range(0, 100, 10):
            storage.put_scalar("rare", when, cur_iter=when)
    assert storage.count_samples("rare", 20) == 2
    assert storage.latest_with_smoothing_hint(20)["rare"] == (85.0, 90)


def test_a_name_keeps_its_smoothing_hint():
    with EventStorage() as storage:
        storage.put_scalar("lr", 1, smoothing_hint=False)
        with pytest.raises(AssertionError):
            storage.put_scalar("lr", 1)


def test_a_name_scope_is_put_before_the_names_inside():
    with EventStorage() as storage:
        with storage.name_scope("head"):
            storage.put_scalar("loss", 1)
        storage.put_scalar("loss", 2)
    assert storage.latest() == {"head/loss": (1.0, 0), "loss": (2.0, 0)}


def test_the_json_writer_writes_each_iteration_once_and_appends(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=2)
        storage.put_scalar("loss", 4.0)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalars(loss=2.0)
        storage.put_scalar("segm/AP", 50.5, smoothing_hint=False, cur_iter=2)
        writer.write()
        writer.close()
    assert _lines(path) == [
        {"iteration": 0, "loss": 4.0},
        {"iteration": 1, "loss": 3.0},
        {"iteration": 2, "segm/AP": 50.5},
    ]
    with EventStorage(5) as storage:
        writer = JSONWriter(str(path))
        storage.put_scalars(b=1.0, a=float("nan"))
        writer.write()
        writer.close()
    assert path.read_text().splitlines()[-1] == '{"a": NaN, "b": 1.0, "iteration": 5}'


def test_tensorboard_gets_scalars_images_and_histograms_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        for value in (1.0, 2.0):
            storage.put_scalar("lr", value, smoothing_hint=False)
            storage.put_image("picture", torch.zeros(3, 4, 6, dtype=torch.uint8))
            storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 3.0]), bins=3)
            writer.write()
            writer.write()
            storage.step()
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(0, 1.0), (1, 2.0)]
    assert [(image.step, image.width, image.height) for image in events.Images("picture")] == [(0, 6, 4), (1, 6, 4)]
    first = events.Histograms("weights")[0].histogram_value
    assert (first.min, first.max, first.num, first.sum, first.sum_squares) == (0.0, 3.0, 4.0, 5.0, 11.0)
    assert list(first.bucket) == [1.0, 2.0, 1.0] and list(first.bucket_limit) == [1.0, 2.0, 3.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the line also has the GPU memory there")
def test_the_console_line(caplog):
    with EventStorage(5) as storage:
        storage.put_scalars(total_loss=23.714, loss_ce=1.7612)
        storage.put_scalar("lr", 2.5e-5, smoothing_hint=False)
        storage.put_scalar("time", 2.0, cur_iter=4)
        storage.put_scalar("time", 3.0)
        storage.put_scalar("data_time", 0.0112)
        line = _console(caplog, 106)
        assert storage.latest()["eta_seconds"] == (250.0, 5)  # 100 iterations of 2.5 s
    assert line.rstrip() == (
        " eta: 0:04:10  iter: 5  total_loss: 23.71  loss_ce: 1.761    time: 2.5000  last_time: 3.0000  "
        "data_time: 0.0112  last_data_time: 0.0112   lr: 2.5e-05"
    )


def test_the_console_is_silent_at_the_iteration_after_the_last(caplog):
    with EventStorage(6) as storage:
        storage.put_scalar("total_loss", 1)
        assert _console(caplog, 6) == ""
        assert "iter: 6  total_loss: 1" in _console(caplog)


@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream prints every loss")
def test_losses_of_deep_supervision_are_one_figure_on_the_console_and_all_in_the_file(caplog, tmp_path):
    losses = {"total_loss": 10.0, "loss_ce": 1.0, "loss_ce_0": 2.0, "loss_ce_1": 3.0, "loss_mask": 4.0, "loss_x_2": 0.5}
    with EventStorage() as storage:
        storage.put_scalars(**losses)
        line = _console(caplog)
        writer = JSONWriter(str(tmp_path / "metrics.json"))
        writer.write()
        writer.close()
    # There is no loss_x, so loss_x_2 is a name like any other.
    assert "total_loss: 10  loss_ce: 1  loss_mask: 4  loss_x_2: 0.5  aux_loss: 5 " in line + " "
    assert _lines(tmp_path / "metrics.json") == [{**losses, "iteration": 0}]
