"""How a command ends when its user can put it right: one message on stderr and exit status 1, without a traceback."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import yaml

# What config, data and weights raise here and in detectron2.
_DELIBERATE = (ValueError, KeyError, AssertionError, NotImplementedError)
_ALWAYS = (OSError, yaml.YAMLError, FloatingPointError)
_FROM_WORKER = "Original Traceback"


@contextlib.contextmanager
def told_in_one_message() -> Iterator[None]:
    """Turn an error that the user can put right into SystemExit with its message; bugs keep their traceback."""
    try:
        yield
    except (*_DELIBERATE, *_ALWAYS) as error:
        if not _is_for_users(error):
            raise
        raise SystemExit(f"error: {message(error)}") from error


def message(error: BaseException) -> str:
    """What an error says, without quotes around it and without the traceback of a loader's worker process."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if _FROM_WORKER in text:
        kind = text.partition("Caught ")[2].partition(" ")[0]
        text = text.rpartition(f"\n{kind}: ")[2]
    return text.strip() or type(error).__name__


def _is_for_users(error: BaseException) -> bool:
    """Whether an error was raised for users: not one that numpy or torch raise when they are called wrongly."""
    if isinstance(error, _ALWAYS) or _FROM_WORKER in str(error):
        return True
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return not {"torch", "numpy"} & set(raised_in.parts)
