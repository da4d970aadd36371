"""The training loader of a run that can be stopped and resumed: which image comes when, and how it is augmented,
depends on the seed and the position in the run only, not on the process or the worker that happens to load it.
"""

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from PIL import Image
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
    """The endless order of a sampler, made from the run's seed and entered where a resumed run goes on.

    With `wide`, which says of an index whether its image is wider than high, every `batch_size` neighbours are alike
    in that: batches are put together here, before anything is loaded, because a loader that does it later cannot be
    entered midway.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], Iterable[int]],
        run: RunPosition,
        batch_size: int = 1,
        wide: Callable[[int], bool] | None = None,
    ) -> None:
        self.make_sampler = make_sampler
        self.run = run
        self.batch_size = batch_size
        self.wide = wide

    def __iter__(self) -> Iterator[int]:
        start = self.run.start
        for position, index in enumerate(itertools.islice(self._order(), start, None), start):
            draw = _Draw(index)
            draw.position = position
            yield draw

    def _order(self) -> Iterator[int]:
        order = iter(self.make_sampler(self.run.seed))
        if self.wide is None:
            yield from order
            return
        waiting: dict[bool, list[int]] = {True: [], False: []}
        for index in order:
            batch = waiting[self.wide(index)]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield from batch
                batch.clear()


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
        record = self.dicts[int(draw)]
        try:
            return self.mapper(record)
        except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
            name = str(record.get("file_name"))
            if name in str(error) and not isinstance(error, FileNotFoundError):
                raise
            said = repr(error) if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise ValueError(
                f"{name} cannot be trained on: {said.rstrip('.')}. Repair the file or its annotations, or leave the "
                "image out of the data set."
            ) from error


class PinnableInstances(Instances):
    """Instances whose tensors torch's loader can put into page-locked memory."""

    @classmethod
    def of(cls, instances: Instances) -> "PinnableInstances":
        return cls(instances.image_size, **instances.get_fields())

    def pin_memory(self) -> "PinnableInstances":
        """Tensors among the fields pinned, the others as they are."""
        fields = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.get_fields().items()}
        return PinnableInstances(self.image_size, **fields)


def pinnable(mapper: Callable[[dict[str, Any]], Any], record: dict[str, Any]) -> Any:
    """What the mapper makes of a record, with instances that can be pinned."""
    sample = mapper(record)
    if isinstance(sample, dict) and isinstance(sample.get("instances"), Instances):
        sample["instances"] = PinnableInstances.of(sample["instances"])
    return sample


def seed_random(*key: int) -> None:
    """Set the states of `random`, numpy and torch from a key of integers, well apart for neighbouring keys."""
    words = np.random.SeedSequence([abs(k) for k in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> Any:
    """Loader of lists of SOLVER.IMS_PER_BATCH / world size mapped dicts; its `run` is the position a resume moves.

    Raises:
        ValueError: no DATASETS.TRAIN, a batch that the processes cannot share, or a DATALOADER.SAMPLER_TRAIN other
            than TrainingSampler and RepeatFactorTrainingSampler.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name what to train on, as in DATASETS.TRAIN '(\"my_dataset\",)'.")
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
    if rest or not batch_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of the {comm.get_world_size()} "
            "processes that share each batch."
        )
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    _describe(cfg, dicts)
    run = RunPosition(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
    wide = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        wide = partial(_is_wide, dicts)
    # From page-locked memory images and masks are copied to the GPU without the host waiting for it.
    pin = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    loader = build_detection_train_loader(
        SeededDataset(dicts, partial(pinnable, mapper) if pin else mapper, run),
        mapper=None,
        sampler=ResumableSampler(_order_of(cfg, dicts), run, batch_size, wide),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,  # the sampler has done it
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=pin,
    )
    loader.run = run
    return loader


def _is_wide(dicts: list[dict[str, Any]], index: int) -> bool:
    """Whether an image is wider than high; most label folders do not say, then its file's head does."""
    record = dicts[index]
    return record["width"] > record["height"] if "width" in record else _file_is_wide(record["file_name"])


@cache
def _file_is_wide(file_name: str) -> bool:
    with Image.open(file_name) as image:
        return image.width > image.height


def _order_of(cfg: CfgNode, dicts: list[dict[str, Any]]) -> Callable[[int], Iterable[int]]:
    """From a seed to the sampler that DATALOADER.SAMPLER_TRAIN names."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return partial(_every_image, len(dicts))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return partial(_repeated_images, factors)
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN is '{name}', expected TrainingSampler or RepeatFactorTrainingSampler.")


def _describe(cfg: CfgNode, dicts: list[dict[str, Any]]) -> None:
    """Say what will be trained on, and warn of what trains without an error and yet scores badly."""
    datasets = ", ".join(cfg.DATASETS.TRAIN)
    names = class_names(cfg)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    shown = f"{len(names)} classes: {', '.join(names)}" if names else f"{num_classes} classes, without names"
    logger.info("Training on %d images of %s, %s.", len(dicts), datasets, shown)
    if names and len(names) != num_classes:
        logger.warning(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES is %d, but %s has %d classes: set it to %d.",
            num_classes, cfg.DATASETS.TRAIN[0], len(names), len(names),
        )  # fmt: skip
    for record in dicts:
        _check_classes(record, num_classes)
    targets = [len(_targets(record)) for record in dicts]
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    crowded = sum(count > queries for count in targets)
    if crowded:
        logger.warning(
            "%d images have more segments (up to %d) than MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, %d: "
            "the model cannot find them all.",
            crowded, max(targets), queries,
        )  # fmt: skip
    if any("annotations" in r or "segments_info" in r for r in dicts) and not any(targets):
        logger.warning("None of the images of %s has an annotation that can be learned from.", datasets)


def class_names(cfg: CfgNode) -> list[str]:
    """What the training data calls its classes, in order; empty where its metadata does not say.

    Instance mappers number things only; the others number `stuff_classes`, which has things too.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    keys = ["thing_classes"] if "instance" in cfg.INPUT.DATASET_MAPPER_NAME else ["stuff_classes", "thing_classes"]
    return next((list(metadata.get(key)) for key in keys if metadata.get(key)), [])


def _targets(record: dict[str, Any]) -> list[dict[str, Any]]:
    segments = record.get("annotations", record.get("segments_info", []))
    return [segment for segment in segments if not segment.get("iscrowd", 0)]


def _check_classes(record: dict[str, Any], num_classes: int) -> None:
    """Find now what the mapper would only find when the image is drawn."""
    for segment in _targets(record):
        category = segment.get("category_id")
        if not isinstance(category, int | np.integer) or not 0 <= category < num_classes:
            raise ValueError(
                f"{record.get('file_name')} has a segment with category_id {category!r}, expected 0 to "
                f"{num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}): correct the annotations or set "
                "the number of classes."
            )


def _every_image(size: int, seed: int) -> TrainingSampler:
    return TrainingSampler(size, seed=seed)


def _repeated_images(factors: torch.Tensor, seed: int) -> RepeatFactorTrainingSampler:
    return RepeatFactorTrainingSampler(factors, seed=seed)
