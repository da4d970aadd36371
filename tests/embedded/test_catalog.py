"""Names of data sets, and what is known about them."""

import copy
import pickle

import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog


@pytest.fixture
def name():
    yield "catalog_test"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "catalog_test" in catalog:
            catalog.remove("catalog_test")


def test_a_function_runs_each_time_its_data_is_asked_for(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"n": len(calls)}])
    assert calls == [] and name in DatasetCatalog and name in DatasetCatalog.list()
    assert DatasetCatalog.get(name) == [{"n": 1}]
    assert DatasetCatalog.get(name) == [{"n": 2}]


def test_a_name_is_taken_once_and_by_a_function(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="'catalog_test' is already registered"):
        DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name + "2", [])
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(KeyError, match=r"'nonsense' is not registered! Available datasets are: .*coco_2017_val"):
        DatasetCatalog.get("nonsense")


def test_metadata_is_one_object_for_one_name(name):
    assert name not in MetadataCatalog
    meta = MetadataCatalog.get(name)
    assert meta.name == name and name in MetadataCatalog.list()
    assert MetadataCatalog.get(name) is meta
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


def test_metadata_is_set_once_or_to_an_equal_value(name):
    meta = MetadataCatalog.get(name).set(thing_classes=["a", "b"], evaluator_type="coco")
    meta.thing_classes = ["a", "b"]
    with pytest.raises(AssertionError, match="'thing_classes' in the metadata of 'catalog_test' cannot be set"):
        meta.thing_classes = ["b", "a"]
    del meta.thing_classes
    meta.thing_classes = ["b", "a"]
    assert meta.as_dict() == {"name": name, "thing_classes": ["b", "a"], "evaluator_type": "coco"}


def test_a_missing_attribute_says_what_there_is(name):
    meta = MetadataCatalog.get(name)
    assert not hasattr(meta, "stuff_classes")
    assert meta.get("stuff_classes") is None and getattr(meta, "stuff_classes", 3) == 3
    with pytest.raises(AttributeError, match="metadata is empty"):
        _ = meta.stuff_classes
    meta.json_file = "x"
    with pytest.raises(AttributeError, match=r"stuff_classes.*catalog_test.*json_file"):
        _ = meta.stuff_classes


def test_old_names_of_attributes_work():
    meta = Metadata(name="old")
    meta.class_names = ["a"]
    meta.dataset_id_to_contiguous_id = {5: 0}
    assert meta.thing_classes == ["a"] and meta.class_names == ["a"]
    assert meta.thing_dataset_id_to_contiguous_id == {5: 0}


def test_metadata_can_be_copied_and_pickled():
    meta = Metadata(name="x", thing_classes=["a"])
    assert copy.deepcopy(meta).as_dict() == pickle.loads(pickle.dumps(meta)).as_dict() == meta.as_dict()
