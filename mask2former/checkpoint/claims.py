"""Sizes that files claim, compared with the bytes they have before anything of that size is made."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any

# Bytes per element of the storages that torch.save writes; a storage of another name counts bytes.
_ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    "ComplexDoubleStorage": 16,
}


def check_storages(file: IO[bytes]) -> None:
    """Refuse a torch file that claims larger storages than it has: PyTorch allocates, or reads, what is claimed.

    Raises:
        ValueError: a storage is larger than its bytes, or entries of the archive are compressed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    is_archive = zipfile.is_zipfile(file)
    file.seek(0)
    if not is_archive:
        if file.read(2) == b"PK":
            raise ValueError("it is cut off: its archive has no end")
        file.seek(0)
        for _ in range(4):  # magic number, protocol, the machine's sizes, the content
            _Scanner(bounded(file, size), lambda key: size, encoding="latin1").load()
        return
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ValueError("its archive would grow when unpacked")
        # PyTorch must find the very entries that are looked at here; it takes no notice of upper case.
        if len({name.lower() for name in entries}) < len(archive.infolist()):
            raise ValueError("its archive has two entries of one name")
        folders = {name.partition("/")[0] for name in entries}
        folder = folders.pop() if len(folders) == 1 else ""
        if f"{folder}/data.pkl" not in entries:
            raise ValueError("it is a zip archive, but torch.save did not write it (no data.pkl)")
        content = archive.read(f"{folder}/data.pkl")

    def stored(key: str) -> int:
        entry = entries.get(f"{folder}/data/{key}")
        return entry.file_size if entry else 0

    _Scanner(bounded(io.BytesIO(content), len(content)), stored, encoding="latin1").load()


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


def bounded(file: IO[bytes], size: int) -> Any:
    return _Bounded(file, size)


def clipped(value: object, length: int = 80) -> str:
    """What a file says, as it may appear in a message: on one line, without control characters, not too long."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."
