"""From data set names to batches."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset, IterableDataset


@pytest.fixture
def register():
    names = []

    def add(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def image(number, *categories, iscrowd=0):
    annotations = [{"category_id": category, "iscrowd": iscrowd} for category in categories]
    return {"file_name": f"{number}.jpg", "image_id": number, "annotations": annotations}


def ids(dicts):
    return [record["image_id"] for record in dicts]


# ---- dataset dicts


def test_several_data_sets_become_one_list_without_images_to_learn_nothing_from(register):
    one = register("build_one", [image(1, 0), image(2)], thing_classes=["a", "b"])
    two = register("build_two", [image(3, 1, iscrowd=1), image(4, 1)], thing_classes=["a", "b"])
    assert ids(get_detection_dataset_dicts([one, two])) == [1, 4]
    assert ids(get_detection_dataset_dicts([one, two], filter_empty=False)) == [1, 2, 3, 4]
    assert ids(get_detection_dataset_dicts(one)) == [1]


def test_images_without_instance_annotations_are_not_filtered(register):
    name = register("build_semantic", [{"image_id": 1, "sem_seg_file_name": "1.png"}])
    assert ids(get_detection_dataset_dicts(name)) == [1]


def test_data_sets_must_agree_on_classes(register):
    one = register("build_one", [image(1, 0)], thing_classes=["a", "b"])
    two = register("build_two", [image(2, 0)], thing_classes=["b", "a"])
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts([one, two])


def test_empty_data_is_refused(register):
    with pytest.raises(AssertionError, match="'build_none' is empty"):
        get_detection_dataset_dicts(register("build_none", []))
    with pytest.raises(AssertionError, match="No valid data found in build_crowd"):
        get_detection_dataset_dicts(register("build_crowd", [image(1)]))


def test_a_category_beyond_the_classes_is_refused(register):
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts(register("build_beyond", [image(7, 0, 2)], thing_classes=["a", "b"]))


def test_the_class_histogram_counts_instances_but_no_crowd(register, caplog):
    classes = ["apple", "pear", "a name of more than sixteen letters"]
    dicts = [image(1, 0, 0, 2), image(2, 1, iscrowd=1)]
    with caplog.at_level(logging.INFO):
        # Some set-ups keep detectron2's records from the root logger, which caplog listens to.
        logging.getLogger("detectron2").propagate = True
        get_detection_dataset_dicts(register("build_histogram", dicts, thing_classes=classes))
    table = next(record.getMessage() for record in caplog.records if "Distribution" in record.getMessage())
    assert "all 3 categories" in table
    cells = [cell.strip() for cell in table.replace("\n", "|").split("|")]
    for class_name, count in (("apple", "2"), ("pear", "0"), ("total", "3")):
        assert cells[cells.index(class_name) + 1] == count
    assert "a name of more than" not in table


def test_torch_data_sets_pass_through(register):
    class Numbers(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return index

    DatasetCatalog.register("build_torch", Numbers)
    try:
        assert isinstance(get_detection_dataset_dicts("build_torch"), Numbers)
        assert len(get_detection_dataset_dicts(["build_torch", "build_torch"])) == 6
    finally:
        DatasetCatalog.remove("build_torch")


# ---- wrappers


@pytest.mark.parametrize("serialize", [True, False])
def test_a_list_gives_fresh_copies(serialize):
    dataset = DatasetFromList([{"a": [1]}, {"a": [2, 3]}, {}], copy=True, serialize=serialize)
    dataset[1]["a"].append(4)
    assert len(dataset) == 3
    assert [dataset[index] for index in range(3)] == [{"a": [1]}, {"a": [2, 3]}, {}]


def test_a_list_may_give_its_own_elements():
    dataset = DatasetFromList([{"a": [1]}], copy=False, serialize=False)
    assert dataset[0] is dataset[0]


def test_refused_elements_are_replaced():
    dataset = MapDataset(list(range(10)), lambda value: None if value == 3 else value * 10)
    assert len(dataset) == 10 and dataset[4] == 40
    assert dataset[3] in {value * 10 for value in range(10) if value != 3}


def test_a_refused_element_is_not_tried_twice():
    tried = []

    def only_the_last(value):
        assert value not in tried
        tried.append(value)
        return value if value == 29 else None

    assert MapDataset(list(range(30)), only_the_last)[0] == 29


class Stream(IterableDataset):
    def __init__(self, stop):
        self.stop = stop

    def __iter__(self):
        return iter(range(self.stop))


def test_refused_elements_of_a_stream_are_left_out():
    mapped = MapDataset(Stream(6), lambda value: None if value % 2 else value)
    assert isinstance(mapped, IterableDataset) and list(mapped) == [0, 2, 4]


def test_a_sampler_makes_a_stream():
    assert list(ToIterableDataset(list("abcd"), [3, 0, 0])) == ["d", "a", "a"]


# ---- loaders


def numbers(count):
    return [{"image_id": number, "width": 10 + number % 2, "height": 10} for number in range(count)]


def test_training_batches_follow_the_sampler():
    loader = build_detection_train_loader(
        numbers(5), mapper=None, sampler=TrainingSampler(5, seed=42), total_batch_size=3, aspect_ratio_grouping=False
    )
    batches = list(islice(loader, 3))
    assert all(type(batch) is list for batch in batches)
    assert [ids(batch) for batch in batches] == [[2, 4, 3], [0, 1, 1], [4, 3, 2]]


def test_the_mapper_may_be_a_lambda():
    loader = build_detection_train_loader(
        numbers(4), mapper=lambda record: record["image_id"] * 2, total_batch_size=4, aspect_ratio_grouping=False
    )
    assert sorted(next(iter(loader))) == [0, 2, 4, 6]


def test_wide_and_high_images_go_into_different_batches():
    loader = build_detection_train_loader(
        numbers(6), mapper=None, sampler=TrainingSampler(6, shuffle=False), total_batch_size=2
    )
    assert [ids(batch) for batch in islice(loader, 4)] == [[0, 2], [1, 3], [4, 0], [5, 1]]


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_share_an_epoch_without_repetition(grouping):
    loader = build_detection_train_loader(
        numbers(8),
        mapper=lambda record: record,
        sampler=TrainingSampler(8, seed=1),
        total_batch_size=2,
        aspect_ratio_grouping=grouping,
        num_workers=2,
    )
    seen = [number for batch in islice(loader, 4) for number in ids(batch)]
    assert len(seen) == 8 and (grouping or sorted(seen) == list(range(8)))
    assert len(set(seen)) >= 6


def test_two_workers_have_random_states_of_their_own():
    def draw(record):
        return float(np.random.rand()), float(torch.rand(()))

    loader = build_detection_train_loader(
        numbers(8), mapper=draw, total_batch_size=2, aspect_ratio_grouping=False, num_workers=2
    )
    draws = [value for batch in islice(loader, 4) for pair in batch for value in pair]
    assert len(set(draws)) == 16


def test_workers_may_be_spawned():
    loader = build_detection_train_loader(
        numbers(4),
        mapper=lambda record: record["image_id"] + 100,
        sampler=TrainingSampler(4, shuffle=False),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert list(islice(loader, 2)) == [[100, 101], [102, 103]]


def test_the_batch_must_divide_among_processes(monkeypatch):
    from detectron2.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(AssertionError, match="must be divisible by the number of gpus"):
        build_batch_data_loader(numbers(4), TrainingSampler(4, seed=0), 3)
    loader = build_batch_data_loader(numbers(4), TrainingSampler(4, seed=0), 4)
    assert len(next(iter(loader))) == 2


def test_the_test_loader_shows_each_image_once_and_has_a_length():
    loader = build_detection_test_loader(numbers(5), mapper=lambda record: record, batch_size=2)
    assert len(loader) == 3
    assert [ids(batch) for batch in loader] == [[0, 1], [2, 3], [4]]


def test_collate_fn_decides_what_a_batch_is():
    loader = build_detection_test_loader(numbers(4), mapper=None, batch_size=4, collate_fn=len)
    assert list(loader) == [4]


# ---- from a config


def config(*train):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.DATASETS.TRAIN = train
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SEED = 42
    return cfg


def test_a_config_says_which_data_and_which_order(register):
    name = register("build_cfg", [image(number, 0) for number in range(5)], thing_classes=["a"])
    loader = build_detection_train_loader(config(name), mapper=lambda record: record)
    assert [ids(batch) for batch in islice(loader, 2)] == [[2, 4, 3], [0, 1, 1]]
    test_loader = build_detection_test_loader(config(), name, mapper=lambda record: record)
    assert [ids(batch) for batch in test_loader] == [[0], [1], [2], [3], [4]]


def test_a_config_names_the_sampler(register):
    name = register("build_cfg", [image(0, 0, 1), *(image(number, 0) for number in range(1, 10))], thing_classes="ab")
    cfg = config(name)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9  # class 1 is on a tenth of the images: sqrt(9) = 3
    loader = build_detection_train_loader(cfg, mapper=lambda record: record)
    seen = [number for batch in islice(loader, 4) for number in ids(batch)]
    assert seen.count(0) == 3 and sorted(set(seen)) == list(range(10))

    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="Unknown training sampler: Sampler"):
        build_detection_train_loader(cfg, mapper=lambda record: record)
