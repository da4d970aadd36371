"""What a run needs to go on as if it had not stopped, besides weights: random states and the place in the data."""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng


def random_state() -> dict[str, Any]:
    """The generators of the main process, in types that a checkpoint may hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any], iteration: int) -> None:
    """Go on drawing where the checkpoint stopped. Processes other than the main one, whose state it does not have,
    take a seed that neither another process nor an earlier start has.
    """
    if not comm.is_main_process():
        seed_all_rng((torch.initial_seed() + 1_000_003 * (iteration + 1)) % 2**31)
        return
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class _Later(Sampler[int]):
    """A sampler without its first indices."""

    def __init__(self, sampler: Iterable[int], num_skipped: int) -> None:
        self._sampler = sampler
        self._num_skipped = num_skipped

    def __iter__(self) -> Iterator[int]:
        return islice(self._sampler, self._num_skipped, None)


def skip_seen(data_loader: Any, num_images: int) -> None:
    """Let a train loader start after the images that this process has seen.

    Only a sampler with a fixed seed (SEED >= 0) gives the order of the run before. Where batches are grouped by aspect
    ratio, the place is right up to the few images that were waiting for their batch.

    Args:
        data_loader: from `build_detection_train_loader`, not iterated yet. Other kinds start where they start, and so
            do samplers of the user's own, which may know themselves where to go on.
        num_images: iterations done, times images per process.
    """
    part = data_loader  # a loader, inside what groups or maps its elements
    while part is not None:
        if isinstance(part, DataLoader) and part.generator is None:
            # Starting a loader draws a number from the global state, which the run before has done already. Workers
            # get other seeds than they had then, or they would repeat their augmentations.
            part.generator = torch.Generator().manual_seed((torch.initial_seed() + num_images) % 2**63)
        if isinstance(part, ToIterableDataset):
            if isinstance(part.sampler, (TrainingSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler)):
                part.sampler = _Later(part.sampler, num_images)
            return
        part = getattr(part, "dataset", None)
