"""A second and a third try for functions that run out of CUDA memory."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) and value.is_cuda else value


def retry_if_cuda_oom(func: Callable[..., Any]) -> Callable[..., Any]:
    """Call `func`; when CUDA memory runs out, empty the cache and try again, then try on the CPU.

    On the CPU only tensors that are direct arguments are moved, and the result stays there.
    """

    def attempt(args: tuple, kwargs: dict[str, Any]) -> tuple[bool, Any]:
        try:
            return True, func(*args, **kwargs)
        except RuntimeError as error:
            if "CUDA out of memory. " not in str(error):
                raise
            return False, None

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        done, result = attempt(args, kwargs)
        if not done:
            torch.cuda.empty_cache()
            done, result = attempt(args, kwargs)
        if done:
            return result
        logging.getLogger(__name__).info("CUDA memory is short: running %s on the CPU, which is slower", func)
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped
