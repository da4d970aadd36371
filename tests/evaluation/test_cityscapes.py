"""Cityscapes' scores: what lies around them. The numbers are in test_perturbations.py."""

import logging
import os

import numpy as np
import pytest
import torch

pytest.importorskip("cityscapesscripts")
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from perturbations import instances_of, prepare, record_of, run, scores_of
from scenes import duplicated, exact

from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, cityscapes

KINDS = {CityscapesInstanceEvaluator: instances_of, CityscapesSemSegEvaluator: scores_of}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cityscapes") / "data", images=3)


@both
def test_nothing_is_left_in_the_working_folder_nor_in_anybodys_modules(data, kind, tmp_path, monkeypatch):
    name, scenes = data
    evaluator = kind(name)
    before = dict(vars(evaluator._scripts)), dict(vars(evaluator._scripts.args)), set(vars(np))
    monkeypatch.chdir(tmp_path)
    run(evaluator, scenes, [KINDS[kind](exact(s)) for s in scenes])
    assert os.listdir(tmp_path) == []
    assert (dict(vars(evaluator._scripts)), dict(vars(evaluator._scripts.args)), set(vars(np))) == before


@both
def test_a_second_evaluation_starts_from_nothing(data, kind):
    name, scenes = data
    evaluator = kind(name)
    outputs = [KINDS[kind](duplicated(s)) for s in scenes]
    assert _equal(run(evaluator, scenes, outputs), run(evaluator, scenes, outputs))


def _equal(a, b):
    (task,) = a
    return a.keys() == b.keys() and a[task] == pytest.approx(b[task], nan_ok=True)


@both
def test_processes_add_up_to_one(data, kind, monkeypatch):
    name, scenes = data
    outputs = [KINDS[kind](duplicated(s)) for s in scenes]
    alone = run(kind(name), scenes, outputs)
    first, second = kind(name), kind(name)
    for evaluator, share in ((first, slice(0, 1)), (second, slice(1, 3))):
        evaluator.reset()
        for scene, output in zip(scenes[share], outputs[share]):
            evaluator.process([record_of(scene)], [output])
    sent = []
    monkeypatch.setattr(comm, "gather", lambda value: sent.append(value) or sent)
    monkeypatch.setattr(comm, "is_main_process", lambda: len(sent) == 2)
    assert second.evaluate() is None  # not the main process
    assert _equal(first.evaluate(), alone)


@both
def test_an_image_that_was_not_predicted_is_named(data, kind):
    name, scenes = data
    with pytest.raises(ValueError, match=r"1 of the 3 images .*town_000003"):
        run(kind(name), scenes[:2], [KINDS[kind](exact(s)) for s in scenes[:2]])


@both
def test_an_image_without_ground_truth_is_named(data, kind):
    name, scenes = data
    record = {"file_name": "leftImg8bit/town/town_000099_000019_leftImg8bit.png"}
    with pytest.raises(FileNotFoundError, match=r"town_000099_000019_gtFine_.*gt_dir"):
        kind(name).process([record], [KINDS[kind](exact(scenes[0]))])


@both
def test_a_prediction_of_another_size_is_refused(data, kind):
    name, scenes = data
    output = KINDS[kind](exact(scenes[0]))
    if "sem_seg" in output:
        output["sem_seg"] = output["sem_seg"][:, :-1]
    else:
        output["instances"]._image_size = (95, 128)
    with pytest.raises(ValueError, match=r"\(96, 128\).*\(95, 128\)"):
        kind(name).process([record_of(scenes[0])], [output])


def test_labels_may_come_instead_of_scores(data):
    name, scenes = data
    outputs = [scores_of(duplicated(s)) for s in scenes]
    labels = [{"sem_seg": output["sem_seg"].argmax(0)} for output in outputs]
    evaluator = CityscapesSemSegEvaluator(name)
    assert _equal(run(evaluator, scenes, labels), run(evaluator, scenes, outputs))
    labels[0]["sem_seg"][0, 0] = 19
    with pytest.raises(ValueError, match=r"class 19 .*0 \.\.\. 18"):
        run(evaluator, scenes, labels)


def test_an_image_without_predicted_instances_counts(data):
    name, scenes = data
    outputs = [instances_of(exact(s)) for s in scenes]
    whole = run(CityscapesInstanceEvaluator(name), scenes, outputs)["segm"]["AP"]
    outputs[1] = instances_of([])
    assert run(CityscapesInstanceEvaluator(name), scenes, outputs)["segm"]["AP"] < whole == pytest.approx(100)


def test_masks_may_be_floats(data):
    name, scenes = data
    outputs = [instances_of(duplicated(s)) for s in scenes]
    expected = run(CityscapesInstanceEvaluator(name), scenes, outputs)
    for output in outputs:
        output["instances"].pred_masks = output["instances"].pred_masks.to(torch.float32)
    assert _equal(run(CityscapesInstanceEvaluator(name), scenes, outputs), expected)


def test_the_log_says_what_there_was_and_doubts_a_perfect_score(data, caplog):
    name, scenes = data
    caplog.set_level(logging.INFO, "mask2former")
    run(CityscapesInstanceEvaluator(name), scenes, [instances_of(exact(s)) for s in scenes])
    assert "classes in the ground truth" in caplog.text
    assert "AP is exactly 100" in caplog.text
    caplog.clear()
    run(CityscapesInstanceEvaluator(name), scenes, [instances_of(duplicated(s)) for s in scenes])
    assert "exactly" not in caplog.text


def test_unknown_class_names_are_refused(data):
    MetadataCatalog.get("cityscapes_typo").set(gt_dir="nowhere", thing_classes=["person", "lorry"])
    with pytest.raises(ValueError, match=r"lorry"):
        CityscapesInstanceEvaluator("cityscapes_typo")


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[cityscapes\]'"):
        cityscapes.import_cityscapesscripts("cityscapesscripts.no_such_part")
