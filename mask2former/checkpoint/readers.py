"""Checkpoint files as data: tensors, arrays and plain containers are read; nothing a file says is executed.

Memory stays within a small multiple of the file's size, whatever sizes the file claims.
"""

import io
import json
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .claims import bounded, check_storages, clipped

Weights = dict[str, torch.Tensor]


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, with its weights under "model".

    Args:
        path: a `.safetensors`, `.pkl`, `.pth`, `.pt`, `.pyth` or `.bin` file.

    Returns:
        "model": tensors by name, on the CPU (an OrderedDict keeps its `_metadata`), and what else the file holds.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or asks for more than data.
    """
    path = Path(path)
    _check_start(path)
    if path.suffix == ".safetensors":
        return {"model": _read_safetensors(path)}
    read = _read_pickle if path.suffix == ".pkl" else _read_torch
    try:
        content = read(path)
    except RefusedError as error:
        raise ValueError(
            f"{path} was refused: it asks for {error}, which is not a tensor, array or plain container, so reading it "
            "could run code. If you trust the file, load it with the program that wrote it and save only its weights, "
            '{"model": {name: tensor}}, with torch.save.'
        ) from None
    except (MemoryError, RecursionError, *_DAMAGE) as error:
        raise ValueError(_damaged(path, error)) from error
    return _with_model(content, path)


def read_folder(folder: str | Path) -> Weights:
    """The weights of a folder in the Hugging Face layout, in one file or several.

    Raises:
        ValueError: there are no weights in it, or an index names a file outside of it.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_file(folder / name)["model"]
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
    found = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
    raise ValueError(
        f"{folder} is a folder without weights: expected model.safetensors or pytorch_model.bin (or their index), "
        f"found {found}. Name a checkpoint file, or a folder in the Hugging Face layout."
    )


class RefusedError(Exception):
    """A file names something that is not data."""


_DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError),
    *(ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, OverflowError, UnicodeDecodeError),
)


def _read_shards(folder: Path, index: Path) -> Weights:
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    weights: Weights = {}
    for name in names:
        if os.path.basename(name) != name:
            raise ValueError(f"{index} names {name!r}, a file outside of its folder: it was refused.")
        weights.update(read_file(folder / name)["model"])
    return weights


def _read_safetensors(path: Path) -> Weights:
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except Exception as error:  # its SafetensorError derives from Exception only
        raise ValueError(_damaged(path, error)) from error


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return _DataUnpickler(bounded(file, path.stat().st_size), encoding="latin1").load()


def _read_torch(path: Path) -> Any:
    with open(path, "rb") as file:
        check_storages(file)
    return _load_tensors(path)


def _load_tensors(source: Any) -> Any:
    names = [(found, f"{module}.{name}") for (module, name), found in _SAFE_NUMPY.items()]
    kinds: list[Any] = [type(np.dtype(code)) for code in "?bBhHiIqQefd"]
    try:
        with torch.serialization.safe_globals([*names, *kinds]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"class (\S+)", str(error))
        if named:
            raise RefusedError(named[1]) from None
        raise ValueError(str(error).rpartition("WeightsUnpickler error: ")[2].strip()) from None


# A plain pickle


class _DataUnpickler(pickle._Unpickler):
    """Knows arrays, tensors, numbers, strings and plain containers, and no other name.

    The Python one of the two unpicklers: a file can make the C one allocate gigabytes with a single opcode.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise RefusedError(clipped(f"{module}.{name}")) from None

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype):
            if state[1] not in ("<", "|", "=") or sys.byteorder != "little":
                raise ValueError("it holds arrays of another byte order")
            self.stack.pop()
        elif isinstance(target, np.ndarray | OrderedDict):
            super().load_build()  # type: ignore[misc]
        else:
            raise RefusedError(f"the state of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def _dtype(code: str, *_: Any) -> np.dtype:
    # A copy: the state that follows changes it, and the original is shared by the whole process.
    kind = np.dtype(code, False, True) if isinstance(code, str) else None
    if kind is None or kind.kind not in "biufc":
        raise RefusedError(f"an array of {clipped(code)}")
    return kind


class _Array(np.ndarray):
    """An array that starts empty whatever size is asked for; the state that follows in the file fills it.

    That state has a shape and bytes, and NumPy checks one against the other.
    """

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, (0,))


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: np.dtype, data: bytes | str) -> np.generic:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind, 1)[0]


def _from_buffer(buffer: Any, kind: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, kind).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, codec: str) -> bytes:
    # How Python 3 writes bytes in protocol 2.
    if codec != "latin1":
        raise RefusedError(f"the codec {clipped(codec)}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    # How Python 3 writes b"" in protocol 2. With a number it would allocate that many.
    if arguments:
        raise RefusedError("bytes(...)")
    return b""


def _nested_tensor(data: bytes) -> Any:
    # A tensor in a plain pickle is a torch.save inside it.
    check_storages(io.BytesIO(data))
    return _load_tensors(io.BytesIO(data))


def _numpy_names(reconstruct: Any, scalar: Any, from_buffer: Any) -> dict[tuple[str, str], Any]:
    return {
        (f"{package}.{module}", name): found
        for package in ("numpy.core", "numpy._core")  # NumPy 1 and 2
        for module, name, found in (
            ("multiarray", "_reconstruct", reconstruct),
            ("multiarray", "scalar", scalar),
            ("numeric", "_frombuffer", from_buffer),
        )
    }


_SAFE_NUMPY = {
    **_numpy_names(_empty_array, _scalar, _from_buffer),
    ("numpy", "ndarray"): _Array,  # only ever the first argument of _reconstruct
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}
_ALLOWED: dict[tuple[str, str], Any] = {
    **_SAFE_NUMPY,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _nested_tensor,
}


# What the content must be


def _with_model(content: Any, path: Path) -> dict[str, Any]:
    """The content with checked weights under "model", wherever the writing program put them."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected weights by name.")
    checkpoint = dict(content)
    key = next(
        (key for key in ("model", "state_dict", "model_state", "blobs") if isinstance(content.get(key), dict)), None
    )
    weights = content if key is None else checkpoint.pop(key)
    if key is None:
        checkpoint = {}
    checkpoint["model"] = _tensors(weights, path)
    return checkpoint


def _tensors(weights: dict[Any, Any], path: Path) -> Weights:
    """Arrays as tensors; numbers beside the weights are dropped; anything else is an error."""
    tensors: Weights = OrderedDict()
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name of a weight is {clipped(name)}, expected a string.")
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in "biufc" or value.dtype.names:
                raise ValueError(f"{path}: {clipped(name)} is an array of {clipped(str(value.dtype))}, not of numbers.")
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), subok=False))
        if isinstance(value, int | float | str | None):
            continue
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {clipped(name)} is a {type(value).__name__}, expected a tensor or an array.")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{path}: {clipped(name)} is not a plain dense tensor; save it as one.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {clipped(name)} claims the shape {clipped(tuple(value.shape))}, but the file has only "
                f"{value.untyped_storage().nbytes()} bytes for it. Save a copy that is not expanded."
            )
        tensors[name] = value
    if not tensors:
        raise ValueError(f"{path} holds no weights: expected tensors by name, found {clipped(list(weights)[:5])}.")
    if hasattr(weights, "_metadata"):
        tensors._metadata = weights._metadata
    return tensors


def _check_start(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(_damaged(path, "it is empty"))
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(_damaged(path, "it is a Git LFS pointer, not the file itself (`git lfs pull` fetches it)"))
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(_damaged(path, "it is a web page, not the file itself"))


def _damaged(path: Path, reason: object) -> str:
    text = clipped(str(reason).strip().split("\n")[0].rstrip(".") or type(reason).__name__, 160)
    return (
        f"Cannot read the checkpoint {path}: {text}. The file ({path.stat().st_size} bytes) is damaged, incomplete or "
        "not a checkpoint: download or copy it again."
    )
