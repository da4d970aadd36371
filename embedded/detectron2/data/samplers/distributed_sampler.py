"""Samplers for any number of processes.

The training samplers are endless streams of indices. Every process makes the same stream from a shared seed and
keeps each world_size-th index of it, so no communication is needed and no image is seen twice within an epoch.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

from detectron2.utils import comm


class _EndlessSampler(Sampler[int]):
    """Epoch after epoch, of which this process takes its share; a subclass says what one epoch is."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return islice(self._all_ranks(), self._rank, None, self._world_size)

    def _all_ranks(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _epoch(self, generator: torch.Generator) -> Tensor:
        """The (N,) indices of one epoch, not yet shuffled."""
        raise NotImplementedError


def _check_size(size: int, what: str) -> int:
    if not isinstance(size, int):
        raise TypeError(f"{what}(size=) expects an int. Got type {type(size)}.")
    if size <= 0:
        raise ValueError(f"{what}(size=) expects a positive int. Got {size}: is the data set empty?")
    return size


class TrainingSampler(_EndlessSampler):
    """Every index once per epoch, for ever."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            size: number of images.
            shuffle: a new order every epoch.
            seed: the same on every process; None lets the processes agree on a random one.
        """
        self._size = _check_size(size, "TrainingSampler")
        super().__init__(shuffle, seed)

    def _epoch(self, generator: torch.Generator) -> Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(_EndlessSampler):
    """A random part of the data, drawn once; then every index of the part once per epoch."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        """
        Args:
            size: number of images.
            subset_ratio: which share of them, in (0, 1].
            shuffle: a new order every epoch.
            seed_shuffle: decides the orders.
            seed_subset: decides the part.
        """
        _check_size(size, "RandomSubsetTrainingSampler")
        kept = int(size * subset_ratio)
        if not 0 < subset_ratio <= 1 or kept == 0:
            raise ValueError(f"A share of {subset_ratio} of {size} images leaves {kept}; give a share in (0, 1].")
        generator = torch.Generator()
        generator.manual_seed(comm.shared_random_seed() if seed_subset is None else int(seed_subset))
        self._subset = torch.randperm(size, generator=generator)[:kept]
        super().__init__(shuffle, seed_shuffle)

    def _epoch(self, generator: torch.Generator) -> Tensor:
        return self._subset


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Images with a repeat factor r appear r times per epoch, on average: 2.3 is twice, and a third time in 30 %."""

    def __init__(self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            repeat_factors: (N,) float, one per image.
            shuffle: a new order every epoch.
            seed: the same on every process; None lets the processes agree on a random one.
        """
        factors = torch.as_tensor(repeat_factors, dtype=torch.float32)
        self._whole = factors.floor()
        self._fraction = factors - self._whole
        super().__init__(shuffle, seed)

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """Repeat images that show rare categories (LVIS paper, appendix B.2).

        A category on a share f of the images has the factor max(1, sqrt(repeat_thresh / f)); an image has the
        largest factor of its categories.

        Returns:
            (N,) float.
        """
        present = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(category for categories in present for category in categories)

        def factor(category: int) -> float:
            ratio = repeat_thresh * len(dataset_dicts) / images_with[category]
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        return torch.tensor([max(map(factor, categories), default=1.0) for categories in present])

    def _epoch(self, generator: torch.Generator) -> Tensor:
        extra = torch.rand(len(self._fraction), generator=generator) < self._fraction
        return torch.arange(len(self._whole)).repeat_interleave((self._whole + extra).long())


class InferenceSampler(Sampler[int]):
    """Every index once: neighbouring indices on one process, shares that differ by at most one."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: number of images.
        """
        assert size > 0, f"Nothing to run on: the data set has {size} images."
        each, left_over = divmod(size, comm.get_world_size())
        rank = comm.get_rank()
        begin = rank * each + min(rank, left_over)
        self._indices = range(begin, begin + each + (rank < left_over))

    def __iter__(self) -> Iterator[int]:
        yield from self._indices

    def __len__(self) -> int:
        return len(self._indices)
