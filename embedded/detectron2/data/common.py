"""Data set wrappers: a list held once for all workers, a mapper on top, batches of similar shape."""

import copy
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

_FAILURES_BEFORE_WARNING = 3


class DatasetFromList(Dataset):
    """A list as a data set, each element kept as bytes.

    A long list of Python dicts is copied into every worker process page by page, as soon as the reference counts
    in it are touched. One tensor of bytes has no reference counts inside, and is shared.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True) -> None:
        """
        Args:
            lst: anything that can be pickled.
            copy: whether an element is copied when it is asked for (with serialize it always is).
            serialize: whether to keep bytes instead of objects.
        """
        self._copy = copy
        self._lst: Sequence[Any] = lst
        self._bytes: torch.Tensor | None = None
        if serialize:
            chunks = [pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL) for element in lst]
            self._ends = torch.tensor([0, *map(len, chunks)]).cumsum(0)
            self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(chunks)), dtype=np.uint8))
            self._lst = range(len(lst))  # only its length is needed from here on

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        if self._bytes is None:
            return copy.deepcopy(self._lst[idx]) if self._copy else self._lst[idx]
        position = self._lst[idx]  # makes negative indices and IndexError those of a list
        begin, end = self._ends[position : position + 2].tolist()
        return pickle.loads(self._bytes[begin:end].numpy().data)


class MapDataset(Dataset):
    """Applies a function to each element; an element for which it returns None is replaced by another one."""

    def __new__(cls, dataset: Any, map_func: Callable) -> Any:
        if isinstance(dataset, IterableDataset):
            return _MappedIterable(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable) -> None:
        """
        Args:
            dataset: a list-like or an iterable data set.
            map_func: takes an element; may be a lambda, also where workers are spawned.
        """
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._usable = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Callable]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index, failures = int(idx), 0
        while True:
            mapped = self._map_func(self._dataset[index])
            if mapped is not None:
                self._usable.add(index)
                return mapped
            failures += 1
            self._usable.discard(index)
            if failures >= _FAILURES_BEFORE_WARNING:
                logging.getLogger(__name__).warning(f"The mapper refused {failures} elements in a row, from {idx} on.")
            if not self._usable:
                raise ValueError(f"The mapper refused every one of the {len(self)} elements: nothing to load.")
            index = self._rng.choice(sorted(self._usable))


class _MappedIterable(IterableDataset):
    """MapDataset of a stream: elements that map to None are left out."""

    def __init__(self, dataset: Iterable, map_func: Callable) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (mapped for mapped in map(self._map_func, self._dataset) if mapped is not None)


class ToIterableDataset(IterableDataset):
    """A data set and a sampler as one stream, so that the sampler runs inside the workers."""

    def __init__(
        self, dataset: Dataset, sampler: Iterable[int], shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        """
        Args:
            dataset: gives an element for an index.
            sampler: gives the indices; every worker iterates a copy of it, which must give the same ones.
            shard_sampler: whether each worker keeps only its share of the indices.
            shard_chunk_size: how many indices in a row go to one worker.
        """
        assert not isinstance(dataset, IterableDataset), "ToIterableDataset needs a data set with indices."
        assert isinstance(sampler, (Sampler, Iterable)), f"Not a sampler: {type(sampler)}."
        self.dataset = dataset
        self.sampler = sampler
        self._shard_sampler = shard_sampler
        self._chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        indices: Iterable[int] = self.sampler
        if self._shard_sampler and worker is not None and worker.num_workers > 1:
            indices = _share(iter(self.sampler), self._chunk_size, worker.id, worker.num_workers)
        for index in indices:
            yield self.dataset[index]


def _share(indices: Iterator[int], chunk_size: int, worker: int, num_workers: int) -> Iterator[int]:
    """Deal runs of `chunk_size` indices to the workers in turn, and keep the runs of this worker."""
    while chunk := list(islice(indices, chunk_size * num_workers)):
        yield from chunk[worker * chunk_size : (worker + 1) * chunk_size]


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of images that are all wider than high, or all not: less padding.

    Elements are dicts with "width" and "height"; what a full batch lacks at the end of a stream is dropped.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        """
        Args:
            dataset: a stream of dicts, as of mapped images.
            batch_size: images per batch.
        """
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict]]:
        waiting: dict[bool, list[dict]] = {True: [], False: []}
        for element in self.dataset:
            is_wide = element["width"] > element["height"]
            waiting[is_wide].append(element)
            if len(waiting[is_wide]) == self.batch_size:
                batch, waiting[is_wide] = waiting[is_wide], []
                yield batch
