"""From data set names to batches: dataset dicts, then a loader for training or for testing.

A batch is a plain list of what the mapper returns for each image.
"""

import logging
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from termcolor import colored
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]

_COLUMNS = 6  # of the class histogram: three times name and number


# ---- dataset dicts


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load data sets by name, into one list of dataset dicts.

    Args:
        names: one registered name, or several.
        filter_empty: drop images without an instance to learn from, in data sets that have instances.
        min_keypoints: only 0; keypoints need upstream detectron2.
        proposal_files: only None; proposals need upstream detectron2.
        check_consistency: all data sets must have the same classes; also logs how often each occurs.

    Returns:
        list[dict], or the torch Dataset if the names stand for such.
    """
    if isinstance(names, str):
        names = [names]
    assert len(names), "No data set to load: DATASETS.TRAIN or DATASETS.TEST is empty."
    if min_keypoints > 0:
        raise NotImplementedError("Keypoints (min_keypoints > 0) need upstream detectron2.")
    if proposal_files is not None:
        load_proposals_into_dataset([], "")

    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], Dataset):
        return ConcatDataset(loaded) if len(loaded) > 1 else loaded[0]
    for name, records in zip(names, loaded):
        assert len(records), f"Dataset '{name}' is empty!"
    dicts = [record for records in loaded for record in records]

    has_instances = "annotations" in dicts[0]
    if filter_empty and has_instances:
        dicts = _drop_images_without_instances(dicts)
    if check_consistency and has_instances and MetadataCatalog.get(names[0]).get("thing_classes") is not None:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert len(dicts), f"No valid data found in {','.join(names)}."
    return dicts


def _drop_images_without_instances(dicts: list[dict]) -> list[dict]:
    kept = [record for record in dicts if any(not anno.get("iscrowd", 0) for anno in record["annotations"])]
    logging.getLogger(__name__).info(
        f"Removed {len(dicts) - len(kept)} images with no usable annotations. {len(kept)} images left."
    )
    return kept


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Precomputed proposals are for R-CNN models: not here."""
    raise NotImplementedError(
        "Precomputed proposals need upstream detectron2 (github.com/facebookresearch/detectron2)."
    )


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]) -> None:
    """Log a table of how many instances each class has, without crowd regions.

    AssertionError if a category id is not a position in `class_names`.
    """
    counts = np.zeros(len(class_names), dtype=np.int64)
    for record in dataset_dicts:
        for position, anno in enumerate(record["annotations"]):
            category = anno["category_id"]
            assert 0 <= category < len(class_names), (
                f"Annotation {position} of {record.get('file_name')} has category_id {category}, but the data set has "
                f"{len(class_names)} classes, so 0 to {len(class_names) - 1}. Are the ids mapped to contiguous ones?"
            )
            counts[category] += not anno.get("iscrowd", 0)

    cells: list[Any] = [cell for name, count in zip(class_names, counts.tolist()) for cell in (name[:16], count)]
    total = ["total", int(counts.sum())]
    cells += [None] * (-len(cells) % _COLUMNS)
    rows = [cells[begin : begin + _COLUMNS] for begin in range(0, len(cells), _COLUMNS)]
    if len(class_names) > 1:
        rows.append(total)
    table = tabulate(rows, headers=["category", "#instances"] * (_COLUMNS // 2), tablefmt="pipe", numalign="left")
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {len(class_names)} categories:\n" + colored(table, "cyan"),
        key="message",
    )


# ---- loaders


def trivial_batch_collator(batch: list) -> list:
    """A batch is the list of its elements."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Give each worker process a random state of its own, in torch, numpy and random."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler[int] | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """Batches for training, without end if the sampler has none.

    Args:
        dataset: with indices; or a stream, then without a sampler.
        sampler: which indices; it runs inside the workers, which share its indices out among them.
        total_batch_size: images per step, over all processes.
        aspect_ratio_grouping: only images that are wider than high, or only others, in a batch.
        num_workers: worker processes of this process; 0 loads in the process itself.
        collate_fn: takes the list of elements; the default returns that list.
        drop_last: leave out an incomplete last batch.
        single_gpu_batch_size: images per step and process, instead of total_batch_size.
        prefetch_factor, persistent_workers, pin_memory: as in torch's DataLoader.
        seed: of the workers' random states.
        kwargs: more for torch's DataLoader.
    """
    world_size = comm.get_world_size()
    if single_gpu_batch_size is not None:
        total_batch_size = single_gpu_batch_size * world_size
    assert total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"Total batch size ({total_batch_size}) must be divisible by the number of gpus ({world_size})."
    )
    batch_size = total_batch_size // world_size

    if isinstance(dataset, IterableDataset):
        assert sampler is None, "A stream decides itself what comes next: no sampler can be used with it."
    else:
        assert sampler is not None, "A data set with indices needs a sampler."
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    kwargs.update(
        num_workers=num_workers,
        worker_init_fn=worker_init_reset_seed,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        pin_memory=pin_memory,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )
    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs)
    # Workers send single images; they are sorted into batches here.
    images = DataLoader(dataset, batch_size=1, collate_fn=operator.itemgetter(0), **kwargs)
    batches: Any = AspectRatioGroupedDataset(images, batch_size)
    if collate_fn is not None:
        batches = MapDataset(batches, collate_fn)
    return batches


def _train_loader_from_config(
    cfg: CfgNode, mapper: Callable | None = None, *, dataset: Any = None, sampler: Sampler[int] | None = None
) -> dict[str, Any]:
    if dataset is None:
        _refuse_proposals(cfg)
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=int(cfg.MODEL.KEYPOINT_ON),
        )
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = _training_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable | None,
    sampler: Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """The endless loader for training; also called as `build_detection_train_loader(cfg, mapper=None)`.

    Args:
        dataset: list of dataset dicts, or a torch Dataset.
        mapper: from a dataset dict to what the model takes; None leaves the dicts as they are.
        sampler: endless indices; default TrainingSampler.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs: see build_batch_data_loader.
    """
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = TrainingSampler(len(dataset))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | list[str], mapper: Callable | None = None
) -> dict[str, Any]:
    _refuse_proposals(cfg)
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """The loader for testing, each image once; also called as `build_detection_test_loader(cfg, name, mapper=None)`.

    Args:
        dataset: list of dataset dicts, or a torch Dataset.
        mapper: from a dataset dict to what the model takes; None leaves the dicts as they are.
        sampler: default InferenceSampler, which shares the images out among the processes.
        batch_size: images per batch; the last one may have fewer.
        num_workers: worker processes; 0 loads in the process itself.
        collate_fn: takes the list of elements; the default returns that list.
    """
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = InferenceSampler(len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _mapped(dataset: Any, mapper: Callable | None) -> Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _refuse_proposals(cfg: CfgNode) -> None:
    if cfg.MODEL.LOAD_PROPOSALS:
        load_proposals_into_dataset([], "")


def _training_sampler(cfg: CfgNode, dataset: Any) -> Sampler[int]:
    """The sampler that DATALOADER.SAMPLER_TRAIN names."""
    kind = cfg.DATALOADER.SAMPLER_TRAIN
    seed = cfg.SEED if cfg.SEED >= 0 else None
    logging.getLogger(__name__).info(f"Using training sampler {kind}")
    if kind == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if kind == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(
            len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
        )
    factors = torch.ones(len(dataset))
    if kind in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        factors = factors * _factors_of_datasets(cfg, len(dataset))
    if kind in ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"):
        factors = factors * RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
    elif kind != "WeightedTrainingSampler":
        raise ValueError(
            f"Unknown training sampler: {kind}. DATALOADER.SAMPLER_TRAIN can be TrainingSampler, "
            "RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, WeightedTrainingSampler or "
            "WeightedCategoryTrainingSampler."
        )
    return RepeatFactorTrainingSampler(factors, seed=seed)


def _factors_of_datasets(cfg: CfgNode, num_images: int) -> Tensor:
    """The (N,) weight of each image: that of its data set in DATASETS.TRAIN_REPEAT_FACTOR, (name, weight) pairs."""
    weights = dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)
    # Loading once more is the only way to know which image came from where.
    factors = [
        weights.get(name, 1.0)
        for name in cfg.DATASETS.TRAIN
        for _ in get_detection_dataset_dicts(name, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, check_consistency=False)
    ]
    if len(factors) != num_images:
        raise ValueError(f"DATASETS.TRAIN has {len(factors)} images, the data set given {num_images}.")
    return torch.tensor(factors)
