"""Registered data sets: names, class tables, metadata, what is said when files are missing or do not fit."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import shapely
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

import mask2former.data.datasets  # noqa: F401
from mask2former.data.datasets import _common
from mask2former.data.datasets.register_cityscapes import visible_instances


def digest(rows):
    """sha256 over id, tab, name, as recorded from the published tables."""
    return hashlib.sha256("\n".join(f"{id_}\t{name}" for id_, name in rows).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "table, count, expected",
    [
        ("cityscapes", 19, "4d0039d884035584"),
        ("ade20k_150", 150, "5d91d12354f9f928"),
        ("ade20k_instance", 100, "d77fda5d525263a0"),
        ("ade20k_full", 847, "a417577c119f6311"),
        ("coco_stuff_10k", 171, "7092c9fe84a26b0f"),
        ("mapillary_vistas", 66, "6fb3ce5aec60680d"),
    ],
)
def test_class_tables_are_the_published_ones(table, count, expected):
    rows = [(row["id"], row["name"]) for row in _common.class_table(table)]
    assert len(rows) == count and digest(rows) == expected


def test_panoptic_tables_are_the_published_ones():
    assert digest([(row["id"], row["name"]) for row in COCO_CATEGORIES]) == "bea341301deb0016"
    vistas = _common.class_table("mapillary_vistas")[:65]
    assert digest([(row["id"] + 1, row["name"]) for row in vistas]) == "f927cd61cb9b4208"


def test_colours_and_things_of_cityscapes_are_those_of_cityscapesscripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    expected = [(label.id, label.hasInstances, label.color) for label in labels if 0 <= label.trainId < 255]
    rows = _common.class_table("cityscapes")
    assert [(row["id"], bool(row["isthing"]), tuple(row["color"])) for row in rows] == expected


# name: evaluator, ignore label, thing classes, stuff classes, thing ids, stuff ids
METADATA = {
    "coco_2017_val": ("coco", None, 80, None, 80, None),
    "coco_2017_train_panoptic": ("coco_panoptic_seg", 255, 80, 133, 80, 53),
    "coco_2017_val_panoptic_with_sem_seg": ("coco_panoptic_seg", 255, 80, 133, 80, 133),
    "ade20k_sem_seg_val": ("sem_seg", 255, None, 150, None, None),
    "ade20k_panoptic_train": ("ade20k_panoptic_seg", 255, 100, 150, 100, 150),
    "ade20k_instance_val": ("coco", None, 100, None, 100, None),
    "ade20k_full_sem_seg_train": ("sem_seg", 65535, None, 847, None, None),
    "cityscapes_fine_instance_seg_test": ("cityscapes_instance", None, 8, 19, None, None),
    "cityscapes_fine_sem_seg_train": ("cityscapes_sem_seg", 255, 8, 19, None, None),
    "cityscapes_fine_panoptic_val": ("cityscapes_panoptic_seg", 255, 19, 19, 8, 11),
    "mapillary_vistas_sem_seg_train": ("sem_seg", 65, None, 65, None, None),
    "mapillary_vistas_panoptic_val": ("mapillary_vistas_panoptic_seg", 65, 65, 65, 37, 65),
    "coco_2017_test_stuff_10k_sem_seg": ("sem_seg", 255, None, 171, None, 171),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name):
    meta = MetadataCatalog.get(name)
    maps = (meta.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff"))
    classes = (meta.get("thing_classes"), meta.get("stuff_classes"))
    sizes = [None if value is None else len(value) for value in (*classes, *maps)]
    assert (meta.evaluator_type, meta.get("ignore_label"), *sizes) == METADATA[name]
    for kind in ("thing", "stuff"):
        colors = meta.get(f"{kind}_colors")
        assert colors is None or len(colors) == len(meta.get(f"{kind}_classes"))


def test_all_published_names_are_registered():
    names = [f"coco_2017_{s}{form}" for s in ("train", "val") for form in ("", "_panoptic", "_panoptic_with_sem_seg")]
    names += [f"ade20k_{form}_{s}" for s in ("train", "val") for form in ("sem_seg", "panoptic", "instance")]
    names += [f"ade20k_full_sem_seg_{s}" for s in ("train", "val")]
    names += [f"cityscapes_fine_{f}_{s}" for s in ("train", "val", "test") for f in ("instance_seg", "sem_seg")]
    names += [f"cityscapes_fine_panoptic_{s}" for s in ("train", "val")]
    names += [f"mapillary_vistas_{form}_{s}" for s in ("train", "val") for form in ("sem_seg", "panoptic")]
    names += [f"coco_2017_{s}_stuff_10k_sem_seg" for s in ("train", "test")]
    assert set(names) <= set(DatasetCatalog.list())


def test_ids_by_hand():
    ade = MetadataCatalog.get("ade20k_panoptic_val")
    # "bed" and "window " are rows 7 and 8 of the 150, and the first and second thing.
    assert ade.stuff_classes[7] == ade.thing_classes[0] == "bed" and ade.stuff_classes[8] == "window "
    assert ade.thing_dataset_id_to_contiguous_id[149] == 149
    instance = MetadataCatalog.get("ade20k_instance_val")
    assert instance.thing_dataset_id_to_contiguous_id[149] == 99 and instance.thing_classes[1] == "windowpane"
    city = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    assert city.thing_dataset_id_to_contiguous_id[24] == 11 and city.stuff_dataset_id_to_contiguous_id[7] == 0
    vistas = MetadataCatalog.get("mapillary_vistas_panoptic_val")
    assert vistas.stuff_classes[0] == "Bird" and vistas.stuff_dataset_id_to_contiguous_id[65] == 64
    stuff = MetadataCatalog.get("coco_2017_train_stuff_10k_sem_seg")
    assert stuff.stuff_classes[170] == "wood" and stuff.stuff_dataset_id_to_contiguous_id[182] == 170


def test_importing_reads_nothing_and_follows_the_environment(tmp_path):
    """In a folder that does not exist, so that any look at it would fail."""
    code = (
        "import mask2former.data.datasets\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "print(MetadataCatalog.get('ade20k_panoptic_val').panoptic_json)\n"
        "try: DatasetCatalog.get('ade20k_panoptic_val')\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    env = {"DETECTRON2_DATASETS": str(tmp_path / "nowhere"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True)
    path, message = done.stdout.strip().splitlines()
    assert path == str(tmp_path / "nowhere" / "ADEChallengeData2016" / "ade20k_panoptic_val.json")
    assert "'ade20k_panoptic_val' needs what does not exist" in message and path in message
    assert f"DETECTRON2_DATASETS is '{tmp_path / 'nowhere'}'" in message and "prepare_ade20k_pan_seg.py" in message


@pytest.mark.parametrize("name", METADATA)
def test_a_missing_data_set_says_where_it_should_be(name, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(name)
    message = str(error.value)
    assert f"'{name}'" in message and "DETECTRON2_DATASETS is not set" in message and "datasets" in message


def test_registering_again_replaces_the_loader_and_keeps_the_metadata():
    try:
        MetadataCatalog.get("ours_for_a_test").set(evaluator_type="sem_seg")
        DatasetCatalog.register("ours_for_a_test", lambda: [])
        _common.register("ours_for_a_test", lambda: [{"image_id": 1}], [], evaluator_type="coco", ignore_label=3)
        assert DatasetCatalog.get("ours_for_a_test") == [{"image_id": 1}]
        meta = MetadataCatalog.get("ours_for_a_test")
        assert (meta.evaluator_type, meta.ignore_label) == ("sem_seg", 3)
    finally:
        DatasetCatalog.remove("ours_for_a_test")
        MetadataCatalog.remove("ours_for_a_test")


def test_labels_of_another_image_are_refused(tmp_path):
    for folder, name in (("images", "a.jpg"), ("images", "b.jpg"), ("labels", "a.png"), ("labels", "c.png")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / folder / name)
    with pytest.raises(ValueError, match=r"b\.jpg and .*c\.png do not belong together"):
        _common.load_labels("mine", str(tmp_path / "labels"), str(tmp_path / "images"))


META = {"thing_dataset_id_to_contiguous_id": {7: 0}, "stuff_dataset_id_to_contiguous_id": {7: 0, 9: 1}}


def test_panoptic_segments_are_renumbered(tmp_path):
    segments = [{"id": 70000, "category_id": 9}, {"id": 3, "category_id": 7}]
    content = {"annotations": [{"image_id": "ADE_1", "file_name": "ADE_1.png", "segments_info": segments}]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    record = _common.load_panoptic("mine", str(tmp_path / "p.json"), "images", "panoptic", "labels", META)[0]
    assert record == {
        "file_name": "images/ADE_1.jpg",
        "image_id": "ADE_1",
        "pan_seg_file_name": "panoptic/ADE_1.png",
        "sem_seg_file_name": "labels/ADE_1.png",
        "segments_info": [
            {"id": 70000, "category_id": 1, "isthing": False},
            {"id": 3, "category_id": 0, "isthing": True},
        ],
    }


@pytest.mark.parametrize(
    "text, error, message",
    [
        ('{"annotations": [', ValueError, "not valid json"),
        ('{"annotations": []}', ValueError, "lists no images"),
        (
            '{"annotations": [{"image_id": 5, "file_name": "x", "segments_info": [{"id": 1, "category_id": 8}]}]}',
            KeyError,
            "segment 1 of image 5 has category_id 8",
        ),
    ],
)
def test_bad_panoptic_json_is_named(tmp_path, text, error, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(error, match=message):
        _common.load_panoptic("mine", str(tmp_path / "p.json"), "images", "panoptic", "labels", META)


# ---- Cityscapes polygons

LEFT = [[0, 0], [9, 0], [9, 9], [0, 9]]
RIGHT = [[5, 0], [19, 0], [19, 9], [5, 9]]


def test_what_is_drawn_later_hides_what_was_drawn_before():
    """A point is a pixel: 0 to 9 are ten pixels, half of which a later object from 5 on covers."""
    near, far = visible_instances([{"label": "car", "polygon": LEFT}, {"label": "person", "polygon": RIGHT}])
    assert [near["category_id"], far["category_id"]] == [0, 2]
    assert near["bbox"] == pytest.approx([5, 0, 20, 10])
    # Corners are rounded by half a pixel, so that a sliver of the far one shows at those of the near one.
    (outline,) = far["segmentation"]
    assert shapely.Polygon(np.reshape(outline, (-1, 2))).area == pytest.approx(50, abs=0.3)


def test_groups_are_crowds_and_other_labels_only_hide():
    objects = [
        {"label": "person", "polygon": LEFT},
        {"label": "cargroup", "polygon": [[30, 0], [39, 0], [39, 9], [30, 9]]},
        {"label": "caravan", "polygon": LEFT},  # a thing that is not scored
    ]
    annotations = visible_instances(objects)
    assert [(a["category_id"], a["iscrowd"]) for a in annotations] == [(2, 1)]


@pytest.mark.parametrize("item", [{"label": "license plate"}, {"label": "person", "deleted": 1}])
def test_licence_plates_and_deleted_objects_hide_nothing(item):
    annotations = visible_instances([{"label": "car", "polygon": LEFT}, {**item, "polygon": RIGHT}])
    assert [a["category_id"] for a in annotations] == [2]
    assert annotations[0]["bbox"] == pytest.approx([0, 0, 10, 10])
