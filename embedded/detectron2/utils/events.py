"""What a training run records about itself, and where it writes it.

Code anywhere below a training loop reports to `get_event_storage()`; the loop's writers then put the news on the
console and into files.
"""

import datetime
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from detectron2.utils.file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_active: list["EventStorage"] = []  # innermost last


def get_event_storage() -> "EventStorage":
    """The storage of the innermost `with EventStorage(...)`; AssertionError outside of one."""
    assert has_event_storage(), "get_event_storage() has to be called inside a 'with EventStorage(...)' context"
    return _active[-1]


def has_event_storage() -> bool:
    """Whether the caller runs inside a `with EventStorage(...)`."""
    return bool(_active)


class EventStorage:
    """Scalars by name with their history, and the images and histograms no writer has taken yet."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._scalars: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothed: dict[str, bool] = {}
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def __enter__(self) -> "EventStorage":
        _active.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        left = _active.pop()
        assert left is self, "EventStorage contexts have to be left in the opposite order of entering"

    @property
    def iteration(self) -> int:
        """Another name of `iter`."""
        return self.iter

    def step(self) -> None:
        """Go on to the next iteration."""
        self.iter += 1

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put "name/" before what is reported inside."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Record a number.

        Args:
            name: what it is; "loss" in it puts it among the losses on the console.
            value: anything `float` takes.
            smoothing_hint: whether writers show the median of a window rather than the last value. One name, one hint:
                changing it is an AssertionError.
            cur_iter: when, if not now.
        """
        name, number = self._prefix + name, float(value)
        when = self.iter if cur_iter is None else int(cur_iter)
        hint = self._smoothed.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} came with smoothing_hint={hint} before, now {smoothing_hint}"
        self._scalars[name].update(number, when)
        self._latest[name] = (number, when)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Record several numbers: `put_scalars(loss=..., accuracy=...)`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Record an image: (3, H, W), uint8 or float in [0, 1], RGB."""
        self._vis_data.append((self._prefix + img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Record how the values of a tensor of any shape are spread."""
        values = hist_tensor.detach().to("cpu", torch.float32).flatten()
        low, high = values.aminmax()
        edges = torch.linspace(float(low), float(high), bins + 1)
        self._histograms.append(
            {
                "tag": self._prefix + hist_name,
                "bucket_counts": values.histc(bins, min=float(low), max=float(high)).tolist(),
                "bucket_limits": edges[1:].tolist(),
                "min": float(low),
                "max": float(high),
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float(values.square().sum()),
                "global_step": self.iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of one scalar; KeyError if there are none."""
        if name not in self._scalars:
            raise KeyError(f"No scalar {name!r} was recorded; there are {sorted(self._scalars)}")
        return self._scalars[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All values of all scalars."""
        return self._scalars

    def latest(self) -> dict[str, tuple[float, int]]:
        """By name, the last value and its iteration."""
        return self._latest

    def smoothing_hints(self) -> dict[str, bool]:
        """By name, whether writers should smooth."""
        return self._smoothed

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar fall into the `window_size` iterations that end with its last one."""
        values = self.history(name).values()
        first = values[-1][1] - window_size
        # There is at most about one value per iteration, so looking at the end of a long history is enough.
        return sum(when > first for _, when in values[-4 * window_size :])

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, with the median of the window where smoothing was asked for."""
        return {
            name: (self._median(name, window_size) if self._smoothed[name] else value, when)
            for name, (value, when) in self._latest.items()
        }

    def clear_images(self) -> None:
        """Forget the images, once they are written."""
        self._vis_data.clear()

    def clear_histograms(self) -> None:
        """Forget the histograms, once they are written."""
        self._histograms.clear()

    def _median(self, name: str, window_size: int) -> float:
        return self._scalars[name].median(self.count_samples(name, window_size))


class EventWriter:
    """Something that takes the news from the current storage when `write` is called."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close, unless a writer says otherwise."""


class _NewScalars:
    """Tells which scalars came since it was last asked."""

    def __init__(self, window_size: int) -> None:
        self._window_size = window_size
        self._last_iter = -1

    def take(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """By iteration, then by name."""
        news: dict[int, dict[str, float]] = {}
        for name, (value, when) in storage.latest_with_smoothing_hint(self._window_size).items():
            if when > self._last_iter:
                news.setdefault(when, {})[name] = value
        self._last_iter = max(news, default=self._last_iter)
        return dict(sorted(news.items()))


class JSONWriter(EventWriter):
    """Appends to a file one JSON object per iteration, such as {"iteration": 19, "lr": 0.0001, "total_loss": 2.9}.

    A run that resumes adds to the same file, so iterations after its checkpoint may occur twice: the later line counts.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = PathManager.open(json_file, "a")
        self._news = _NewScalars(window_size)

    def write(self) -> None:
        for when, scalars in self._news.take(get_event_storage()).items():
            self._file.write(json.dumps({**scalars, "iteration": when}, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard. Its file appears with the first write."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """`kwargs` go to `torch.utils.tensorboard.SummaryWriter`."""
        self._log_dir = log_dir
        self._options = kwargs
        self._news = _NewScalars(window_size)

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        return SummaryWriter(self._log_dir, **self._options)

    def write(self) -> None:
        storage = get_event_storage()
        for when, scalars in self._news.take(storage).items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, when)
        for name, image, when in storage._vis_data:
            self._writer.add_image(name, image, when)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time left, iteration, losses, speed, learning rate and GPU memory.

    Losses of deep supervision, `loss_x_0`, `loss_x_1`, ... beside a `loss_x`, appear as their sum, `aux_loss`.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """`max_iter` is where training ends, for the time left; None if nobody knows."""
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and clock

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # only the final evaluation reports at this iteration, and it has its own tables
        line = f" {self._eta(storage)}iter: {storage.iter}  {self._losses(storage)}    {self._times(storage)}"
        if "lr" in storage.latest():
            line += f" lr: {storage.latest()['lr'][0]:.5g}  "
        if torch.cuda.is_available():
            line += f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
        self.logger.info(line.rstrip())

    def _eta(self, storage: EventStorage) -> str:
        if self._max_iter is None:
            return ""
        seconds = self._seconds_per_iter(storage)
        self._last_write = (storage.iter, time.perf_counter())
        if seconds is None:
            return ""
        eta = seconds * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        return f"eta: {datetime.timedelta(seconds=int(eta))}  "

    def _seconds_per_iter(self, storage: EventStorage) -> float | None:
        if "time" in storage.latest():
            return storage.history("time").median(1000)
        if self._last_write is None or self._last_write[0] == storage.iter:
            return None
        last_iter, clock = self._last_write
        return (time.perf_counter() - clock) / (storage.iter - last_iter)

    def _losses(self, storage: EventStorage) -> str:
        losses = {name: storage._median(name, self._window_size) for name in storage.latest() if "loss" in name}
        auxiliary = [name for name in losses if (m := re.fullmatch(r"(.+)_\d+", name)) and m[1] in losses]
        aux_loss = sum(losses.pop(name) for name in auxiliary)
        if auxiliary:
            losses["aux_loss"] = aux_loss
        return "  ".join(f"{name}: {value:.4g}" for name, value in losses.items())

    def _times(self, storage: EventStorage) -> str:
        parts = []
        if "time" in storage.latest():
            history = storage.history("time")
            parts += [f"time: {history.global_avg():.4f}", f"last_time: {history.latest():.4f}"]
        if "data_time" in storage.latest():
            history = storage.history("data_time")
            recent = history.avg(storage.count_samples("data_time", self._window_size))
            parts += [f"data_time: {recent:.4f}", f"last_data_time: {history.latest():.4f}"]
        return "".join(part + "  " for part in parts)
