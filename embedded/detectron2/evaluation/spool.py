"""What evaluators must remember of every image until the end: on disk, so that memory does not grow with the images."""

import json
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import torch


class Spool(Sequence[Any]):
    """A list of picklable items in a temporary file (in TMPDIR), which is gone with the list.

    Memory holds eight bytes for each item. Sent to another process, it travels as its bytes.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed, and so deleted, with the list
        self._stops = array("q")  # where items end

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        start = self._stops[index - 1] if index else 0
        self._file.seek(start)
        return pickle.loads(self._file.read(self._stops[index] - start))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def append(self, item: Any) -> None:
        self._add(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def extend(self, items: Iterable[Any]) -> None:
        """Add the items of another list; those of another spool are copied as they are."""
        if isinstance(items, Spool):
            for start, stop in zip([0, *items._stops], list(items._stops)):
                items._file.seek(start)
                self._add(items._file.read(stop - start))
        else:
            for item in items:
                self.append(item)

    def _add(self, data: bytes) -> None:
        self._file.seek(0, 2)
        self._file.write(data)
        self._stops.append(self._file.tell())

    def __getstate__(self) -> tuple[bytes, bytes]:
        self._file.seek(0)
        return self._file.read(), self._stops.tobytes()

    def __setstate__(self, state: tuple[bytes, bytes]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed, and so deleted, with the list
        self._file.write(state[0])
        self._stops = array("q")
        self._stops.frombytes(state[1])


def joined(shares: Sequence[Any]) -> Any:
    """One list from those of all processes; a single one is returned as it is."""
    if len(shares) == 1:
        return shares[0]
    everything = Spool()
    for share in shares:
        everything.extend(share)
    return everything


def save_items(items: Iterable[Any], file: IO[bytes]) -> None:
    """Write what `torch.load` reads as a list, one item at a time: torch.save would need the list in memory.

    This is torch's older format: a few facts about the machine and then one pickle, whose opcodes for "a list" and
    "append" are written here around the items' own pickles.
    """
    sizes = {"short": 2, "int": 4, "long": 4}
    facts = {"protocol_version": torch.serialization.PROTOCOL_VERSION, "little_endian": True, "type_sizes": sizes}
    for head in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, facts):
        pickle.dump(head, file, protocol=2)
    file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
    for item in items:
        file.write(pickle.dumps(item, protocol=2)[2:-1] + pickle.APPEND)  # without its own PROTO 2 and STOP
    file.write(pickle.STOP)
    pickle.dump([], file, protocol=2)  # no tensors


def write_json_list(lists: Iterable[list[Any]], file: IO[str]) -> None:
    """Write the items of all lists as one JSON list, one list at a time."""
    separator = "["
    for items in lists:
        if items:
            file.write(separator + json.dumps(items)[1:-1])
            separator = ", "
    file.write("]" if separator == ", " else "[]")
