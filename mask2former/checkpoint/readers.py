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
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

Weights = dict[str, torch.Tensor]

# Bytes per element of the storages that torch.save writes; a storage of another name counts bytes.
_ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    "ComplexDoubleStorage": 16,
}


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
        return _DataUnpickler(_bounded(file, path.stat().st_size), encoding="latin1").load()


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


# What a torch file claims


def check_storages(file: IO[bytes]) -> None:
    """Refuse a torch file that claims larger storages than it has: PyTorch allocates, or reads, what is claimed.

    Raises:
        ValueError: a storage is larger than its bytes, or entries of the archive are compressed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(4):  # magic number, protocol, the machine's sizes, the content
            _Scanner(_bounded(file, size), lambda key: size, encoding="latin1").load()
        return
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ValueError("its archive would grow when unpacked")
        name = next((name for name in entries if name.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError("it is a zip archive, but torch.save did not write it (no data.pkl)")
        folder = name.removesuffix("data.pkl") + "data/"
        content = archive.read(name)

    def stored(key: str) -> int:
        return entries[folder + key].file_size if folder + key in entries else 0

    _Scanner(_bounded(io.BytesIO(content), len(content)), stored, encoding="latin1").load()


class _Stub:
    """Stands for whatever a file names while it is scanned: accepts everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Stub":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def accept(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = accept


class _Scanner(pickle._Unpickler):
    """Goes through a pickle, imports nothing, and compares the storages claimed with those there."""

    def __init__(self, file: Any, stored: Callable[[str], int], **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self._stored = stored

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Stub,), {})

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            kind, key, number = getattr(pid[1], "__name__", ""), str(pid[2]), pid[4]
            claimed = number * _ITEM_SIZES.get(kind, 1) if isinstance(number, int) else -1
            if not 0 <= claimed <= self._stored(key):
                raise ValueError(
                    f"storage {clipped(key)} claims {clipped(number)} elements, but has {self._stored(key)} bytes"
                )
        return _Stub()


class _Bounded:
    """A file whose reads never ask for more than is left of it: what a file claims is not allocated."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, number: int) -> bytes:
        if number > self._size - self._file.tell():
            raise EOFError(f"it ends {number - self._size + self._file.tell()} bytes too early")
        return self._file.read(number)


def _bounded(file: IO[bytes], size: int) -> Any:
    return _Bounded(file, size)


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


def clipped(value: object, length: int = 80) -> str:
    """What a file says, as it may appear in a message: on one line, without control characters, not too long."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


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
