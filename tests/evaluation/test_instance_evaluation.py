"""InstanceSegEvaluator: things that are scattered among the classes."""

import json
from pathlib import Path

import pytest

pytest.importorskip("cityscapesscripts")
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from perturbations import SEGM, instances_of, prepare, run, scattered
from scenes import NAMES, THINGS, exact

from mask2former.evaluation import InstanceSegEvaluator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("instances") / "data", images=2)


def test_detectron2s_own_evaluator_refuses_scattered_things(data):
    name, scenes = data
    with pytest.raises(AssertionError):
        run(COCOEvaluator(name, **SEGM), scenes, [instances_of(exact(s)) for s in scenes])


def test_the_columns_are_the_things_whether_thing_classes_names_them_alone_or_all_classes(data):
    name, scenes = data
    all_names = scattered(name, scenes, [exact(s) for s in scenes])
    metadata = MetadataCatalog.get(f"{name}_named_alone")
    facts = {**vars(MetadataCatalog.get(name)), "name": metadata.name, "thing_classes": [NAMES[c] for c in THINGS]}
    metadata.set(**facts)
    assert scattered(metadata.name, scenes, [exact(s) for s in scenes]) == pytest.approx(all_names, nan_ok=True)
    assert {key for key in all_names if "-" in key} == {f"AP-{NAMES[c]}" for c in THINGS}


def test_the_data_sets_own_metadata_stays_as_it_is(data):
    name, scenes = data
    before = dict(vars(MetadataCatalog.get(name)))
    evaluator = InstanceSegEvaluator(name, **SEGM)
    run(evaluator, scenes, [instances_of(exact(s)) for s in scenes])
    assert vars(MetadataCatalog.get(name)) == before


def test_results_are_written_with_the_ids_of_the_data_set(data, tmp_path):
    name, scenes = data
    evaluator = InstanceSegEvaluator(name, **SEGM, output_dir=str(tmp_path))
    run(evaluator, scenes, [instances_of(exact(s)) for s in scenes])
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    true = json.loads(Path(name, "instances.json").read_text())["annotations"]
    assert [e["category_id"] for e in written] == [e["category_id"] for e in true]


def test_a_predicted_class_that_is_no_thing_is_refused(data):
    name, scenes = data
    outputs = [instances_of(exact(s)) for s in scenes]
    outputs[0]["instances"].pred_classes[0] = 3
    with pytest.raises(AssertionError, match=r"class 3 .*not among the things"):
        run(InstanceSegEvaluator(name, **SEGM), scenes, outputs)
