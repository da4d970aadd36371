"""Compiled kernels in the threads that PyTorch computes with.

PyTorch's OpenMP threads stay awake for some milliseconds after each operation, to be ready for the next. Threads of our
own would share the processor with them all that time. So kernels are given to the same threads, by the call that
compilers make for `#pragma omp parallel`; where PyTorch has no GNU OpenMP (macOS, Windows), and in a fork, to ordinary
ones.

Numba's own pools would ignore `torch.set_num_threads`, and the default one aborts when two Python threads enter it.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

# Numbers that are worth another thread: waking one takes some 50 microseconds.
WORK_PER_THREAD = 50_000
# A fork has none of its parent's threads, but GNU OpenMP would wait for them.
PROCESS = os.getpid()

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_threads(kernel: Callable[..., None], items: int, work: int, arguments: tuple) -> None:
    """Call kernel(first, last, *arguments) on equal parts of range(items), as many as PyTorch's threads.

    Args:
        kernel: releases the GIL, and gives the same whatever the parts are.
        work: numbers to compute; for few of them there are fewer parts.
    """
    parts = min(torch.get_num_threads(), items, max(1, work // WORK_PER_THREAD))
    if parts < 2:
        kernel(0, items, *arguments)
        return
    ends = [items * part // parts for part in range(parts + 1)]
    run = _in_pool if os.getpid() != PROCESS or _openmp() is None else _in_openmp_threads
    run(lambda part: kernel(ends[part], ends[part + 1], *arguments), parts)


def _in_openmp_threads(call: Callable[[int], None], parts: int) -> None:
    openmp, errors = _openmp(), []

    def region(_: int | None) -> None:
        try:
            # OpenMP may give fewer threads than it is asked for, inside a region of another for example.
            for part in range(openmp.omp_get_thread_num(), parts, openmp.omp_get_num_threads()):
                call(part)
        except BaseException as error:
            errors.append(error)

    openmp.GOMP_parallel(_Region(region), None, parts, 0)
    if errors:
        raise errors[0]


@functools.cache
def _openmp() -> Any:
    """The OpenMP library that PyTorch computes with, if its calls are GNU's; else None."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    return library if hasattr(library, "GOMP_parallel") else None


def _in_pool(call: Callable[[int], None], parts: int) -> None:
    others = [_pool(os.getpid(), parts - 1).submit(call, part) for part in range(1, parts)]
    call(0)
    for other in others:
        other.result()


@functools.lru_cache(maxsize=2)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool for each process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mask2former")
