"""Loggers for the console and log.txt, messages that are said once, and small tables."""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TextIO

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_DATE = "%m/%d %H:%M:%S"
_FILE_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


class _Formatter(logging.Formatter):
    """Abbreviates the logger's name; with colour, shows the level only when it is a warning or worse."""

    def __init__(self, name: str, short: str, color: bool) -> None:
        start = colored("[%(asctime)s %(name)s]: ", "green", force_color=True)
        super().__init__(start + "%(message)s" if color else _FILE_FORMAT, datefmt=_DATE)
        self._name, self._short, self._color = name, short, color

    def formatMessage(self, record: logging.LogRecord) -> str:
        full = record.name
        if full == self._name or full.startswith(self._name + "."):
            record.name = (self._short + full[len(self._name) :]).lstrip(".")
        try:
            line = super().formatMessage(record)
        finally:
            record.name = full  # other handlers see the same record
        if not self._color or record.levelno < logging.WARNING:
            return line
        attributes = ["blink"] if record.levelno == logging.WARNING else ["blink", "underline"]
        level = "WARNING" if record.levelno == logging.WARNING else "ERROR"
        return colored(level, "red", attrs=attributes, force_color=True) + " " + line


@lru_cache  # a second call with the same arguments must not add the same handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up the logger `name`: rank 0 writes to stdout, every rank to its own file.

    Args:
        output: a folder, which gets log.txt, or a file name ending in .txt or .log; no file when None.
        distributed_rank: rank of this process; other files than rank 0's end in `.rank{r}`.
        color: colour on stdout.
        name: the root of the loggers that are set up.
        abbrev_name: what stands for `name` in the lines; "d2" for detectron2, else the name itself.
        enable_propagation: also pass messages on to the parent logger.
        configure_stdout: write to stdout at all.
    """
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation

    handlers: list[tuple[TextIO, bool]] = []
    if configure_stdout and distributed_rank == 0:
        handlers.append((sys.stdout, color))
    if output is not None:
        handlers.append((_log_file(_log_path(output, distributed_rank)), False))
    for stream, with_color in handlers:
        handler = logging.StreamHandler(stream)
        handler.setLevel(logging.DEBUG)
        handler.setFormatter(_Formatter(name, abbrev_name, with_color))
        logger.addHandler(handler)
    return logger


def _log_path(output: str, rank: int) -> str:
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return path + f".rank{rank}" if rank > 0 else path


@lru_cache  # loggers of several packages share one open log.txt
def _log_file(path: str) -> TextIO:
    folder = os.path.dirname(path)
    if folder:
        PathManager.mkdirs(folder)
    return PathManager.open(path, "a", buffering=1)  # whole lines reach the disk, so that `tail -f` follows


_COUNTS: Counter = Counter()
_TIMES: dict[object, float] = {}


def _caller() -> tuple[str, tuple[str, int]]:
    """(name of the module, (file, line)) of whoever called the log_* function."""
    frame = sys._getframe(2)
    return frame.f_globals.get("__name__", "detectron2"), (frame.f_code.co_filename, frame.f_lineno)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log only the first n times.

    Args:
        lvl: level, such as logging.WARNING.
        name: logger; the caller's module when None.
        key: what counts as the same: "caller" (the line of code), "message", or both in a tuple.
    """
    module, line = _caller()
    parts = (key,) if isinstance(key, str) else key
    same = ("first", *(line if part == "caller" else msg for part in parts))
    _COUNTS[same] += 1
    if _COUNTS[same] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every n calls from the same line."""
    module, line = _caller()
    _COUNTS["every", line] += 1
    if n == 1 or _COUNTS["every", line] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at most once in n seconds from the same line."""
    module, line = _caller()
    now = time.monotonic()
    if line not in _TIMES or now - _TIMES[line] >= n:
        _TIMES[line] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: Mapping[str, float]) -> str:
    """A table of one row, with the names as its header and the numbers to three digits."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
