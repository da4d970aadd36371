"""Callables that cross a process boundary."""

from collections.abc import Callable
from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wrap a callable so that plain pickle can carry it: lambdas and local functions go through cloudpickle."""

    _obj: Any

    def __init__(self, obj: Any) -> None:
        while isinstance(obj, PicklableWrapper):  # wrapping twice would pickle twice
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Callable[[bytes], "PicklableWrapper"], tuple[bytes]]:
        return _unwrap, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # not yet set, while being copied
            raise AttributeError(name)
        return getattr(self._obj, name)


def _unwrap(data: bytes) -> PicklableWrapper:
    return PicklableWrapper(cloudpickle.loads(data))
