"""The training loader: which image comes when, and how it is augmented, is a function of seed and position."""

import itertools
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny import tiny_config

from mask2former.data.loader import ResumableSampler, RunPosition, build_train_loader, class_names, seed_random

NAME = "test_loader_images"


class Draws:
    """A mapper that gives the image and a number from each random generator."""

    def __call__(self, record: dict) -> tuple:
        return record["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


@pytest.fixture
def cfg(tmp_path):
    records = [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "width": 40 if i % 3 else 20,
            "height": 30,
            "annotations": [{"category_id": i % 2}] * i,
        }
        for i in range(10)
    ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["a", "b"], stuff_classes=["a", "b", "c"])
    yield tiny_config(tmp_path, "DATASETS.TRAIN", (NAME,), "SEED", 5).clone()
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def first(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_loader_entered_midway_gives_what_comes_there(cfg, grouping, sampler):
    cfg.defrost()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    whole = first(build_train_loader(cfg, Draws()), 12)
    later = build_train_loader(cfg, Draws())
    later.run.start = 7 * 2
    assert first(later, 5) == whole[7:]
    assert len({draws for batch in whole for draws in batch}) == 24  # an image that comes again is augmented anew


def test_workers_give_what_the_process_itself_gives(cfg):
    alone = first(build_train_loader(cfg, Draws()), 8)
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 2
    assert first(build_train_loader(cfg, Draws()), 8) == alone


def test_the_seed_decides_and_without_one_every_run_differs(cfg):
    order = [[draws[0] for draws in batch] for batch in first(build_train_loader(cfg, Draws()), 5)]
    assert sorted(itertools.chain(*order)) == list(range(10))
    cfg.defrost()
    cfg.SEED = -1
    seeds = {build_train_loader(cfg, Draws()).run.seed for _ in range(3)}
    assert len(seeds) == 3


def test_batches_hold_images_that_are_all_wide_or_all_tall():
    run = RunPosition(seed=0)
    wide = [True, False, True, True, False].__getitem__
    # By hand: 0 waits, 1 waits, 2 fills the wide batch, 3 waits, 4 fills the tall one.
    sampler = ResumableSampler(lambda seed: [0, 1, 2, 3, 4, 0], run, 2, wide)
    assert list(sampler) == [0, 2, 1, 4, 3, 0]
    run.start = 2
    assert [(int(draw), draw.position) for draw in sampler] == [(1, 2), (4, 3), (3, 4), (0, 5)]


def test_neighbouring_keys_give_unrelated_numbers():
    draws = []
    for key in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        seed_random(*key)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[3] and len({number for draw in draws[:3] for number in draw}) == 9


# ---- what is said


def test_the_log_says_what_is_trained_on(cfg, caplog):
    caplog.set_level(logging.INFO, "mask2former")
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    build_train_loader(cfg, Draws())
    assert f"Training on 10 images of {NAME}, 3 classes: a, b, c." in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_wrong_number_of_classes_is_told(cfg, caplog):
    build_train_loader(cfg, Draws())
    assert f"NUM_CLASSES is 13, but {NAME} has 3 classes: set it to 3." in caplog.text


def test_more_segments_than_queries_are_told(cfg, caplog):
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 7
    build_train_loader(cfg, Draws())
    assert "2 images have more segments (up to 9) than MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, 7" in caplog.text


def test_crowds_are_no_targets_and_images_without_any_are_told(cfg, caplog):
    for record in DatasetCatalog.get(NAME):
        record["annotations"] = [{"category_id": 0, "iscrowd": 1}] * 50
    build_train_loader(cfg, Draws())
    assert "None of the images" in caplog.text and "more segments" not in caplog.text


def test_instance_mappers_count_things_only(cfg):
    assert class_names(cfg) == ["a", "b", "c"]
    cfg.defrost()
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    assert class_names(cfg) == ["a", "b"]
    cfg.DATASETS.TRAIN = ("test_loader_no_such_metadata",)
    assert class_names(cfg) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", (), "DATASETS.TRAIN is empty: name what to train on"),
        ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH is 0, expected a multiple of the 1 processes"),
        ("DATALOADER.SAMPLER_TRAIN", "Shuffle", "SAMPLER_TRAIN is 'Shuffle', expected TrainingSampler or Repeat"),
    ],
)
def test_what_cannot_be_loaded_from_is_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(cfg, Draws())
