"""Files in COCO's formats and label folders, to dataset dicts and back."""

import hashlib
import json

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
    register_coco_panoptic,
    register_coco_panoptic_separated,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json, merge_to_panoptic
from detectron2.structures import BoxMode
from PIL import Image

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="messages of embedded/")


@pytest.fixture(autouse=True)
def _clean_catalogues():
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before):
        for name in set(catalog.list()) - names:
            catalog.remove(name)


SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]


def annotation(number, image_id=1, category_id=3, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1, 1, 3, 3],
        "area": 9,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        **more,
    }


def coco_file(tmp_path, annotations, **more):
    content = {
        "info": {},
        "images": [
            {"id": 2, "file_name": "two.jpg", "height": 8, "width": 6},
            {"id": 1, "file_name": "one.jpg", "height": 5, "width": 7},
        ],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
        "annotations": annotations,
        **more,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


# ---- instances


def test_a_coco_file_becomes_dataset_dicts(tmp_path):
    file = coco_file(tmp_path, [annotation(1), annotation(2, 2, 7, iscrowd=1, score=0.5)])
    one, two = load_coco_json(file, "images", "datasets_test", extra_annotation_keys=["score"])
    assert {key: one[key] for key in one if key != "annotations"} == {
        "file_name": "images/one.jpg",
        "height": 5,
        "width": 7,
        "image_id": 1,
    }
    assert one["annotations"] == [
        {
            "iscrowd": 0,
            "bbox": [1, 1, 3, 3],
            "category_id": 0,
            "segmentation": [SQUARE],
            "bbox_mode": BoxMode.XYWH_ABS,
        }
    ]
    assert two["annotations"][0]["category_id"] == 1 and two["annotations"][0]["score"] == 0.5
    meta = MetadataCatalog.get("datasets_test")
    assert meta.thing_classes == ["three", "seven"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_without_a_name_category_ids_stay(tmp_path):
    one, two = load_coco_json(coco_file(tmp_path, [annotation(1, category_id=7)]), "")
    assert one["annotations"][0]["category_id"] == 7 and two["annotations"] == []


def test_a_file_without_annotations_lists_images(tmp_path):
    path = coco_file(tmp_path, [])
    content = json.loads((tmp_path / "instances.json").read_text())
    del content["annotations"]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert [record["annotations"] for record in load_coco_json(path, "")] == [[], []]


def test_polygons_that_are_none_are_left_out(tmp_path):
    broken = [
        annotation(1, segmentation=[[1, 1, 2, 2]]),
        annotation(2, segmentation=[[1, 1, 2, 2, 3, 3, 4], SQUARE]),
        annotation(3, segmentation=[]),
    ]
    one, _ = load_coco_json(coco_file(tmp_path, broken), "")
    assert [anno.get("segmentation") for anno in one["annotations"]] == [[SQUARE], None]


def test_uncompressed_rle_is_compressed(tmp_path):
    # Columns of a 5 x 7 image: 6 empty pixels, then 3 inside, 26 empty.
    rle = {"size": [5, 7], "counts": [6, 3, 26]}
    one, _ = load_coco_json(coco_file(tmp_path, [annotation(1, segmentation=rle, iscrowd=1)]), "")
    mask = mask_util.decode(one["annotations"][0]["segmentation"])
    assert np.argwhere(mask).tolist() == [[1, 1], [2, 1], [3, 1]]


def test_keypoints_move_to_pixel_centres(tmp_path):
    one, _ = load_coco_json(coco_file(tmp_path, [annotation(1, keypoints=[3, 4, 2, 0, 0, 0])]), "")
    assert one["annotations"][0]["keypoints"] == [3.5, 4.5, 2, 0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("annotations", "error", "message"),
    [
        ([annotation(1), annotation(1)], AssertionError, "not unique"),
        ([annotation(1, ignore=1)], AssertionError, "ignore"),
        ([annotation(1, bbox=[])], ValueError, "bbox"),
        ([annotation(41, category_id=9)], KeyError, "category_id 9|annotation 41|9"),
    ],
)
def test_a_broken_annotation_is_refused(tmp_path, annotations, error, message):
    with pytest.raises(error, match=message):
        load_coco_json(coco_file(tmp_path, annotations), "", "datasets_test")


@embedded_only
def test_an_unknown_category_is_reported_with_file_and_annotation(tmp_path):
    file = coco_file(tmp_path, [annotation(41, category_id=9)])
    with pytest.raises(KeyError, match=r"category_id 9 of annotation 41 of image 1 in .*instances.json.*\[3, 7\]"):
        load_coco_json(file, "", "datasets_test")


@embedded_only
@pytest.mark.parametrize("name", ["coco_2017_val", "coco_2017_val_panoptic", "coco_2017_val_panoptic_stuffonly"])
def test_missing_data_says_where_it_was_looked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)coco.*does not exist.*DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


def test_classes_that_differ_from_the_file_are_refused(tmp_path):
    register_coco_instances("datasets_test", {"thing_classes": ["seven", "three"]}, coco_file(tmp_path, []), "images")
    with pytest.raises((ValueError, AssertionError), match=r"datasets_test"):
        DatasetCatalog.get("datasets_test")


@embedded_only
def test_an_incomplete_file_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"half\.json is not valid json"):
        load_coco_json(str(tmp_path / "half.json"), "")


def test_registering_reads_nothing_and_loading_sets_the_classes(tmp_path):
    file = coco_file(tmp_path, [annotation(1)])
    register_coco_instances("datasets_test", {"color": "red"}, file, "images")
    meta = MetadataCatalog.get("datasets_test")
    assert (meta.json_file, meta.image_root, meta.evaluator_type, meta.color) == (file, "images", "coco", "red")
    assert not hasattr(meta, "thing_classes")
    assert len(DatasetCatalog.get("datasets_test")) == 2
    assert meta.thing_classes == ["three", "seven"]


def test_a_data_set_survives_the_way_to_coco_and_back(tmp_path):
    rle = {"size": [5, 7], "counts": [6, 3, 26]}
    file = coco_file(tmp_path, [annotation(1), annotation(2, 2, 7, segmentation=rle, iscrowd=1)])
    register_coco_instances("datasets_test", {}, file, "images")
    loaded = DatasetCatalog.get("datasets_test")

    content = convert_to_coco_dict("datasets_test")
    assert content["categories"] == [{"id": 3, "name": "three"}, {"id": 7, "name": "seven"}]
    first, second = content["annotations"]
    assert (first["id"], first["category_id"], first["area"], first["bbox"]) == (1, 3, 9.0, [1, 1, 3, 3])
    assert (second["id"], second["category_id"], second["area"], second["iscrowd"]) == (2, 7, 3.0, 1)

    written = tmp_path / "made" / "coco.json"
    convert_to_coco_json("datasets_test", str(written))
    again = load_coco_json(str(written), "")
    for old, new in zip(loaded, again):
        assert [anno["bbox"] for anno in new["annotations"]] == [anno["bbox"] for anno in old["annotations"]]
    assert again[0]["annotations"][0]["segmentation"] == [SQUARE]
    assert mask_util.decode(again[1]["annotations"][0]["segmentation"]).sum() == 3


def test_a_written_file_is_kept_unless_told_otherwise(tmp_path):
    register_coco_instances("datasets_test", {}, coco_file(tmp_path, []), "images")
    DatasetCatalog.get("datasets_test")
    written = tmp_path / "coco.json"
    written.write_text("old")
    convert_to_coco_json("datasets_test", str(written))
    assert written.read_text() == "old"
    convert_to_coco_json("datasets_test", str(written), allow_cached=False)
    assert "annotations" not in json.loads(written.read_text())
    assert not list(tmp_path.glob("*.tmp"))


# ---- label images


def label_folders(tmp_path, images, labels):
    for folder, names in (("images", images), ("labels", labels)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    return str(tmp_path / "labels"), str(tmp_path / "images")


def test_images_and_labels_are_paired_by_name(tmp_path):
    labels, images = label_folders(tmp_path, ["b.jpg", "a.jpg", "note.txt"], ["a.png", "b.png"])
    assert load_sem_seg(labels, images) == [
        {"file_name": f"{images}/{stem}.jpg", "sem_seg_file_name": f"{labels}/{stem}.png"} for stem in "ab"
    ]


def test_what_has_no_partner_is_left_out(tmp_path):
    labels, images = label_folders(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["c.png", "a.png"])
    assert [record["file_name"][-5] for record in load_sem_seg(labels, images)] == ["a", "c"]


def test_no_labels_is_an_error(tmp_path):
    labels, images = label_folders(tmp_path, ["a.jpg"], [])
    with pytest.raises(AssertionError):
        load_sem_seg(labels, images)


# ---- panoptic

PANOPTIC_META = {
    "thing_dataset_id_to_contiguous_id": {3: 0},
    "stuff_dataset_id_to_contiguous_id": {9: 1},
    "thing_classes": ["thing", "stuff"],
    "stuff_classes": ["thing", "stuff"],
}


def panoptic_files(tmp_path):
    segments = [
        {"id": 70000, "category_id": 3, "iscrowd": 0, "area": 4},
        {"id": 5, "category_id": 9, "iscrowd": 0, "area": 8},
    ]
    annotations = [{"image_id": 12, "file_name": "000012.png", "segments_info": segments}]
    for folder, name in (("images", "000012.jpg"), ("panoptic", "000012.png"), ("stuff", "000012.png")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 3)).save(tmp_path / folder / name)
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return str(path), str(tmp_path / "images"), str(tmp_path / "panoptic")


def test_panoptic_segments_get_contiguous_classes(tmp_path):
    file, images, panoptic = panoptic_files(tmp_path)
    (record,) = load_coco_panoptic_json(file, images, panoptic, PANOPTIC_META)
    assert record["file_name"] == f"{images}/000012.jpg" and record["pan_seg_file_name"] == f"{panoptic}/000012.png"
    assert record["image_id"] == 12
    assert [(s["id"], s["category_id"], s["isthing"]) for s in record["segments_info"]] == [
        (70000, 0, True),
        (5, 1, False),
    ]


def test_a_panoptic_data_set_is_registered_with_what_evaluators_need(tmp_path):
    file, images, panoptic = panoptic_files(tmp_path)
    register_coco_panoptic("datasets_test", PANOPTIC_META, images, panoptic, file, "instances.json")
    meta = MetadataCatalog.get("datasets_test")
    assert meta.evaluator_type == "coco_panoptic_seg"
    assert (meta.ignore_label, meta.label_divisor, meta.json_file) == (255, 1000, "instances.json")
    assert (meta.image_root, meta.panoptic_root, meta.panoptic_json) == (images, panoptic, file)
    assert DatasetCatalog.get("datasets_test")[0]["segments_info"][0]["category_id"] == 0


def test_separated_data_has_instances_and_label_images(tmp_path):
    file, images, panoptic = panoptic_files(tmp_path)
    instances = tmp_path / "instances.json"
    content = {
        "images": [{"id": 12, "file_name": "000012.jpg", "height": 3, "width": 4}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [annotation(1, 12)],
    }
    instances.write_text(json.dumps(content))
    meta = {"thing_classes": ["thing"], "thing_dataset_id_to_contiguous_id": {3: 0}}
    register_coco_panoptic_separated(
        "datasets_test", meta, images, panoptic, file, str(tmp_path / "stuff"), str(instances)
    )
    (record,) = DatasetCatalog.get("datasets_test_separated")
    assert record["sem_seg_file_name"] == str(tmp_path / "stuff" / "000012.png")
    assert record["annotations"][0]["category_id"] == 0 and record["height"] == 3
    assert "annotations" not in DatasetCatalog.get("datasets_test_stuffonly")[0]
    assert MetadataCatalog.get("datasets_test_stuffonly").evaluator_type == "sem_seg"


def test_merging_joins_on_the_file_name():
    merged = merge_to_panoptic([{"file_name": "b", "n": 1}], [{"file_name": "a", "s": 0}, {"file_name": "b", "s": 1}])
    assert merged == [{"file_name": "b", "n": 1, "s": 1}]


# ---- the built-in table and names


def test_the_class_table_is_the_published_one():
    rows = "\n".join(f"{row['id']}\t{row['name']}" for row in COCO_CATEGORIES)
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "bea341301deb0016"
    assert [row["isthing"] for row in COCO_CATEGORIES] == [1] * 80 + [0] * 53
    assert COCO_CATEGORIES[0]["color"] == [220, 20, 60]


def test_coco_is_registered_under_its_names():
    names = {"coco_2017_test", "coco_2017_test-dev", "coco_2014_minival", "coco_2014_valminusminival"}
    for split in ("train", "val"):
        names |= {f"coco_2014_{split}", f"coco_2017_{split}"}
    for split in ("train", "val", "val_100"):
        names |= {f"coco_2017_{split}_panoptic{suffix}" for suffix in ("", "_separated", "_stuffonly")}
    assert names <= set(DatasetCatalog.list())


def test_metadata_of_coco():
    instances = MetadataCatalog.get("coco_2017_val")
    assert len(instances.thing_classes) == len(instances.thing_colors) == 80
    assert instances.thing_dataset_id_to_contiguous_id[90] == 79  # toothbrush
    assert instances.json_file.endswith("coco/annotations/instances_val2017.json")

    panoptic = MetadataCatalog.get("coco_2017_val_100_panoptic")
    assert len(panoptic.thing_classes) == len(panoptic.stuff_classes) == len(panoptic.stuff_colors) == 133
    assert sorted(panoptic.thing_dataset_id_to_contiguous_id.values()) == list(range(80))
    assert sorted(panoptic.stuff_dataset_id_to_contiguous_id.values()) == list(range(80, 133))
    assert (panoptic.evaluator_type, panoptic.label_divisor) == ("coco_panoptic_seg", 1000)

    separated = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    assert len(separated.thing_classes) == 80 and len(separated.stuff_classes) == 54
    assert separated.stuff_classes[0] == "things"
    assert separated.stuff_dataset_id_to_contiguous_id[0] == 0
    assert separated.stuff_dataset_id_to_contiguous_id[200] == 53
    assert separated.sem_seg_root.endswith("coco/panoptic_stuff_val2017")
    assert not hasattr(separated, "label_divisor")
