"""The training loader of a run that can be stopped and resumed: which image comes when, and how it is augmented,
depends on the seed and the position in the run only, not on the process or the worker that happens to load it.
"""

import itertools
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, Sampler

logger = logging.getLogger(__name__)


@dataclass
class RunPosition:
    """Where a run is: its seed, and the images each process has consumed before it was resumed."""

    seed: int
    start: int = 0


class _Draw(int):
    """An index into the data set that knows its position in the run."""

    position: int


class ResumableSampler(Sampler):
    """The endless order of a sampler, made from the run's seed and entered where a resumed run goes on."""

    def __init__(self, make_sampler: Callable[[int], Any], run: RunPosition) -> None:
        self.make_sampler = make_sampler
        self.run = run

    def __iter__(self) -> Iterator[int]:
        start = self.run.start
        for position, index in enumerate(itertools.islice(self.make_sampler(self.run.seed), start, None), start):
            draw = _Draw(index)
            draw.position = position
            yield draw


class SeededDataset(Dataset):
    """Mapped dataset dicts; the random state of every draw is set from the seed, the rank and its position."""

    def __init__(self, dicts: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], run: RunPosition) -> None:
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = PicklableWrapper(mapper)
        self.run = run
        self.rank = comm.get_rank()

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, draw: int) -> Any:
        seed_random(self.run.seed, self.rank, getattr(draw, "position", int(draw)))
        return self.mapper(self.dicts[int(draw)])


def seed_random(*key: int) -> None:
    """Set the states of `random`, numpy and torch from a key of integers, well apart for neighbouring keys."""
    words = np.random.SeedSequence([abs(k) for k in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> Any:
    """Loader of lists of SOLVER.IMS_PER_BATCH / world size mapped dicts; its `run` is the position a resume moves.

    Raises:
        ValueError: a DATALOADER.SAMPLER_TRAIN other than TrainingSampler and RepeatFactorTrainingSampler.
    """
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        make_sampler = partial(_every_image, len(dicts))
    elif name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        make_sampler = partial(_repeated_images, factors)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is '{name}', expected TrainingSampler or RepeatFactorTrainingSampler."
        )
    logger.info("Training on %d images of %s.", len(dicts), ", ".join(cfg.DATASETS.TRAIN))
    run = RunPosition(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
    loader = build_detection_train_loader(
        SeededDataset(dicts, mapper, run),
        mapper=None,
        sampler=ResumableSampler(make_sampler, run),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    loader.run = run
    return loader


def _every_image(size: int, seed: int) -> TrainingSampler:
    return TrainingSampler(size, seed=seed)


def _repeated_images(factors: torch.Tensor, seed: int) -> RepeatFactorTrainingSampler:
    return RepeatFactorTrainingSampler(factors, seed=seed)
