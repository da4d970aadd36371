"""Checkpoint files as data: arrays and plain containers are read, anything that would run code is refused."""

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_DTYPE_CLASSES = sorted({type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}, key=lambda kind: kind.__name__)


def read_torch(path: str) -> Any:
    """The content of a file written by torch.save, on the CPU.

    Raises:
        ValueError: the file is damaged, or holds more than tensors, arrays and plain containers.
    """
    _check_start(path)
    try:
        with torch.serialization.safe_globals(_torch_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise ValueError(_refused(path, named[1])) from None
        raise ValueError(_damaged(path, str(error).partition("WeightsUnpickler error:")[2])) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(_damaged(path, error)) from error


def read_pickle(path: str) -> Any:
    """The content of a pickle of arrays, tensors and plain containers; strings of Python 2 are read as latin1.

    Raises:
        ValueError: the file is damaged, or names any class or function besides those.
    """
    _check_start(path)
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except _RefusedError as error:
            raise ValueError(_refused(path, str(error))) from None
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise ValueError(_damaged(path, error)) from error


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        ValueError: the file is damaged.
        ImportError: the package safetensors is not installed.
    """
    import safetensors.torch

    _check_start(path)
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # its SafetensorError derives from Exception only
        raise ValueError(_damaged(path, error)) from error


class _RefusedError(Exception):
    """A pickle names something that is not data."""


def _encode(text: str, codec: str) -> bytes:
    # How Python 3 pickles bytes for protocol 2.
    if codec != "latin1":
        raise _RefusedError(f"_codecs.encode with {codec!r}")
    return text.encode("latin1")


def _storage_from_bytes(data: bytes) -> Any:
    # A tensor in a plain pickle is a torch.save inside it.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_globals() -> dict[tuple[str, str], Any]:
    reduced: Any = np.zeros(1).__reduce__()
    rebuild, arguments = reduced[:2]
    scalar = np.float64(0).__reduce__()[0]
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): arguments[0],
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        table[f"{package}.multiarray", "_reconstruct"] = rebuild
        table[f"{package}.multiarray", "scalar"] = scalar
        table[f"{package}.numeric", "_frombuffer"] = np._core.numeric._frombuffer
    return table


def _torch_globals() -> list[Callable | tuple[Callable, str]]:
    named = [(found, f"{module}.{name}") for (module, name), found in _numpy_globals().items()]
    return [*named, *_DTYPE_CLASSES]


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows arrays, tensors and plain containers, and no other name."""

    ALLOWED: dict[tuple[str, str], Any] = {
        **_numpy_globals(),
        **{("builtins", kind.__name__): kind for kind in (set, frozenset, bytearray, complex, slice)},
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
        ("torch", "Size"): torch.Size,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def _check_start(path: str) -> None:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(_damaged(path, "it is empty"))
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(_damaged(path, "it is a Git LFS pointer, not the file itself"))
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(_damaged(path, "it is a web page, not the file itself"))


def _damaged(path: str, reason: object) -> str:
    reason = str(reason).strip().split("\n")[0].rstrip(".") or type(reason).__name__
    return (
        f"Cannot read the checkpoint {path}: {reason}. The file is damaged or incomplete "
        f"({os.path.getsize(path)} bytes): download or copy it again. If a run was interrupted while writing it, write "
        f"the name of an earlier one into {os.path.join(os.path.dirname(path), 'last_checkpoint')}."
    )


def _refused(path: str, what: str) -> str:
    return (
        f"The checkpoint {path} was refused: it asks for {what}, which is not an array, tensor or plain container, so "
        "reading it could run code. If you trust the file, load it with the program that wrote it and save only "
        "{name: tensor} with torch.save."
    )
