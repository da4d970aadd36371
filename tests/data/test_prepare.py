"""The preparation scripts: what they write, worked by hand; resuming; what --check finds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from panopticapi.utils import rgb2id
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "miniatures"))
import fixtures
from miniatures import ROOT, script_module

runner = script_module("_runner")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def pixels_of(path):
    return np.array(Image.open(path))


def run(name, root, *more):
    return script_module(name).run(["--datasets", str(root), "--jobs", "1", *more])


@pytest.fixture
def built(tmp_path):
    def build(dataset, *scripts):
        fixtures.BUILDERS[dataset](tmp_path, 2)
        for script in scripts:
            assert run(script, tmp_path) == 0
        return tmp_path

    return build


# ---- what is written


def test_ade20k_labels_count_from_zero(tmp_path):
    ade = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        write(ade / "images" / split / "a.jpg", np.zeros((1, 3, 3)))
        write(ade / "annotations" / split / "a.png", [[0, 1, 150]])
    assert run("prepare_ade20k_sem_seg", tmp_path) == 0
    assert pixels_of(ade / "annotations_detectron2/training/a.png").tolist() == [[255, 0, 149]]


def test_ade20k_instances_and_segments_by_hand(tmp_path):
    """A wall with a bed (class 1 of the 100, id 7) and half of its label missing, and a flag (100, id 149) over it."""
    ade = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        write(ade / "images" / split / "a.jpg", np.zeros((2, 3, 3)))
        write(ade / "annotations" / split / "a.png", [[1, 1, 8], [1, 0, 8]])
        bed, flag, none = (1, 2, 9), (100, 5, 9), (0, 0, 0)
        write(ade / "annotations_instance" / split / "a.png", [[none, flag, bed], [none, none, bed]])
    assert run("prepare_ade20k_ins_seg", tmp_path) == 0
    content = json.loads((ade / "ade20k_instance_val.json").read_text())
    assert content["images"] == [{"id": "a", "file_name": "a.jpg", "height": 2, "width": 3}]
    assert [row["id"] for row in content["categories"]][::99] == [7, 149]
    bed, flag = content["annotations"]
    assert (bed["id"], bed["category_id"], bed["area"], bed["bbox"]) == (1, 7, 2, [2, 0, 1, 2])
    assert (flag["id"], flag["category_id"], flag["area"], flag["bbox"]) == (2, 149, 1, [1, 0, 1, 1])
    assert mask_util.decode(bed["segmentation"]).tolist() == [[0, 0, 1], [0, 0, 1]]

    assert run("prepare_ade20k_pan_seg", tmp_path) == 0
    ids = rgb2id(pixels_of(ade / "ade20k_panoptic_val/a.png"))
    content = json.loads((ade / "ade20k_panoptic_val.json").read_text())
    category = {s["id"]: (s["category_id"], s["area"]) for s in content["annotations"][0]["segments_info"]}
    wall, bed, flag, void = (0, 2), (7, 2), (149, 1), None
    assert [[category.get(id_) for id_ in line] for line in ids.tolist()] == [[wall, flag, bed], [wall, void, bed]]
    assert ids[0, 0] == 120 + 256 * 120 + 65536 * 120  # stuff has the colour of its class
    assert content["annotations"][0]["image_id"] == "a"


def test_two_stuff_classes_of_one_colour_stay_apart(built):
    root = built("ADE20K", "prepare_ade20k_pan_seg")
    content = json.loads((root / "ADEChallengeData2016/ade20k_panoptic_train.json").read_text())
    for annotation in content["annotations"]:
        categories = [segment["category_id"] for segment in annotation["segments_info"]]
        assert sorted(categories) == [6, 7, 7, 48, 149, 149]


def test_the_full_ade20k_has_16_bit_labels(built):
    root = built("ADE20K full", "prepare_ade20k_full_sem_seg")
    folder = root / "ADE20K_2021_17_01"
    labels = pixels_of(folder / "annotations_detectron2/training/ADE_train_00000001.tif")
    # wall, road, "adding machine", bed; 65535 for a number of no class
    assert labels.dtype == np.uint16 and set(np.unique(labels)) == {0, 4, 7, 846, 65535}
    assert (folder / "images_detectron2/training/ADE_train_00000001.jpg").exists()


def test_coco_pixels_get_the_position_of_their_class(tmp_path):
    # Ids as in the PNG: 1 + 256 + 65536 = 65793 is a person (class 0), 7 is "rug-merged" (id 200, class 132).
    segments = [{"id": 65793, "category_id": 1, "area": 2}, {"id": 7, "category_id": 200, "area": 1}]
    content = {"annotations": [{"file_name": "a.png", "image_id": 1, "segments_info": segments}]}
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (coco / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
        write(coco / f"panoptic_{split}/a.png", [[[1, 1, 1], [7, 0, 0]], [[0, 0, 0], [1, 1, 1]]])
        write(coco / split / "a.jpg", np.zeros((2, 2, 3)))
    assert run("prepare_coco_semantic_annos_from_panoptic_annos", tmp_path) == 0
    assert pixels_of(coco / "panoptic_semseg_train2017/a.png").tolist() == [[0, 132], [255, 0]]


def test_coco_stuff_labels_are_positions_in_the_table(built):
    root = built("COCO-Stuff 10k", "prepare_coco_stuff_10k")
    folder = root / "coco/coco_stuff_10k/annotations_detectron2/test"
    # person, toothbrush (90: the 80th thing), grass (124), sky-other (157); ids after 91 lose the 11 missing ones
    assert set(np.unique(pixels_of(next(folder.glob("*.png"))))) == {0, 79, 112, 145, 255}


def test_cityscapes_segments_are_those_of_cityscapesscripts(built, tmp_path_factory):
    convert = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs").convert2panoptic
    root = built("Cityscapes", "prepare_cityscapes")
    truth, expected = root / "cityscapes/gtFine", tmp_path_factory.mktemp("expected")
    convert(str(truth), str(expected), setNames=["train", "val"])
    for split in ("train", "val"):
        ours, theirs = (json.loads((f / f"cityscapes_panoptic_{split}.json").read_text()) for f in (truth, expected))
        assert ours["annotations"] == theirs["annotations"] and ours["categories"] == theirs["categories"]
        assert ours["images"] == theirs["images"]
        for annotation in ours["annotations"]:
            name = f"cityscapes_panoptic_{split}/{annotation['file_name']}"
            assert (pixels_of(truth / name) == pixels_of(expected / name)).all()


def test_cityscapes_train_ids_are_those_of_the_label_ids(built):
    id2label = pytest.importorskip("cityscapesscripts.helpers.labels").id2label
    root = built("Cityscapes", "prepare_cityscapes")
    for path in (root / "cityscapes/gtFine").rglob("*_labelTrainIds.png"):
        labels = pixels_of(path.with_name(path.name.replace("TrainIds", "Ids")))
        expected = np.vectorize(lambda id_: id2label[id_].trainId)(labels)
        assert (pixels_of(path) == expected).all() and len(np.unique(expected)) == 5


def test_mapillary_instances_keep_the_numbers_of_the_panoptic_json(built):
    root = built("Mapillary Vistas", "prepare_mapillary_vistas")
    content = json.loads((root / "mapillary_vistas/mapillary_vistas_instance_val.json").read_text())
    assert len(content["categories"]) == 37
    names = {row["id"]: row["name"] for row in content["categories"]}
    assert sorted(names[anno["category_id"]] for anno in content["annotations"]) == ["Car"] * 4 + ["Person"] * 4


# ---- the runner


def test_a_broken_off_run_goes_on(built, monkeypatch, capsys):
    """The second image fails; the next run makes only what is missing, and the same files as an unbroken one."""
    root = built("ADE20K")
    script = script_module("prepare_ade20k_pan_seg")
    convert, done, failed = script.convert, [], []

    def fails_once(item):
        if not failed and item.name.endswith("2"):
            failed.append(item.name)
            raise ValueError(f"{item.name} is broken")
        done.append(item.name)
        return convert(item)

    monkeypatch.setattr(script, "convert", fails_once)
    assert run("prepare_ade20k_pan_seg", root) == 1
    assert "ADE_train_00000002 is broken" in capsys.readouterr().err
    ade = root / "ADEChallengeData2016"
    assert not (ade / "ade20k_panoptic_train.json").exists()
    first = (ade / "ade20k_panoptic_train/ADE_train_00000001.png").stat().st_mtime_ns
    assert run("prepare_ade20k_pan_seg", root) == 0
    assert (ade / "ade20k_panoptic_train/ADE_train_00000001.png").stat().st_mtime_ns == first
    assert done.count("ADE_train_00000001") == done.count("ADE_train_00000002") == 1
    assert run("prepare_ade20k_pan_seg", root, "--check") == 0
    assert not [*root.rglob("*.partial"), *root.rglob("*.writing")]


def test_a_line_cut_off_in_the_journal_is_made_again(tmp_path):
    journal = tmp_path / "journal"
    journal.write_text('["a", {"n": 1}]\n["b", {"n"')
    assert runner.read_journal(journal) == {"a": {"n": 1}}


def test_several_processes_make_the_same_files(built):
    root = built("ADE20K", "prepare_ade20k_pan_seg")
    made = {path: path.read_bytes() for path in root.rglob("ade20k_panoptic*") if path.is_file()}
    made |= {path: path.read_bytes() for path in root.rglob("ade20k_panoptic*/*.png")}
    for path in made:
        path.unlink()
    command = [sys.executable, str(ROOT / "datasets/prepare_ade20k_pan_seg.py"), "--jobs", "2"]
    env = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    subprocess.run(command, check=True, env=env, capture_output=True)
    assert len(made) == 6 and {path: path.read_bytes() for path in made} == made


def test_missing_folders_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    for scripts in fixtures.SCRIPTS.values():
        for script in scripts:
            assert run(script, tmp_path) == 1
            message = capsys.readouterr().err
            assert str(tmp_path) in message and "DETECTRON2_DATASETS is '/elsewhere'" in message


# ---- what is found wrong, when made and by --check


def spoil_png(path):
    path.write_bytes(path.read_bytes()[:60])


def smaller(path):
    write(path, pixels_of(path)[:-1])


def one_pixel(value):
    def change(path):
        pixels = pixels_of(path)
        pixels[3, 3] = value
        Image.fromarray(pixels).save(path)

    return change


def remove(path):
    path.unlink()


def wrong_area(path):
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["area"] += 1
    path.write_text(json.dumps(content))


SEMANTIC, PANOPTIC = "prepare_ade20k_sem_seg", "prepare_ade20k_pan_seg"
INSTANCES, VISTAS, CITY = "prepare_ade20k_ins_seg", "prepare_mapillary_vistas", "prepare_cityscapes"
COCO = "prepare_coco_semantic_annos_from_panoptic_annos"
ADE_LABELS = "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
ADE_INSTANCES = "ADEChallengeData2016/annotations_instance/training/ADE_train_00000001.png"
VISTAS_FOLDER, VISTAS_STEM = "mapillary_vistas/training", "train_001_AbCdEfGhIjKlMn"
CITY_START = "cityscapes/gtFine/train/aachen/aachen_000001_000019_gtFine"
NOT_IN_JSON = "in the PNG but not in the json"
BAD = [
    ("ADE20K", SEMANTIC, ADE_LABELS, spoil_png, "cannot be read"),
    ("ADE20K", SEMANTIC, ADE_LABELS, smaller, "is 128x95, but .* is 128x96"),
    ("ADE20K", SEMANTIC, ADE_LABELS, one_pixel(151), r"has the values \[151\], expected 0 to 150"),
    ("ADE20K", SEMANTIC, ADE_LABELS, remove, "has no .*ADE_train_00000001.png"),
    ("ADE20K", INSTANCES, ADE_INSTANCES, one_pixel((101, 200, 0)), r"instance 200 has the classes \[101\]"),
    ("ADE20K", PANOPTIC, ADE_INSTANCES, smaller, "must be of one size"),
    ("COCO", COCO, "coco/panoptic_train2017/000000000001.png", one_pixel((9, 9, 9)), r"\[592137\] are in the PNG but"),
    ("COCO", COCO, "coco/annotations/panoptic_val2017.json", wrong_area, "pixels, but its area in the json is"),
    ("COCO", COCO, "coco/panoptic_train2017/000000000001.png", spoil_png, "cannot be read"),
    ("COCO", COCO, "coco/train2017/000000000001.jpg", remove, "cannot be read"),
    ("Mapillary Vistas", VISTAS, f"{VISTAS_FOLDER}/labels/{VISTAS_STEM}.png", one_pixel(66), r"values \[66\]"),
    ("Mapillary Vistas", VISTAS, f"{VISTAS_FOLDER}/panoptic/{VISTAS_STEM}.png", one_pixel((1, 2, 3)), NOT_IN_JSON),
    ("Mapillary Vistas", VISTAS, f"{VISTAS_FOLDER}/images/{VISTAS_STEM}.jpg", remove, "has no .*jpg"),
    ("Cityscapes", CITY, f"{CITY_START}_instanceIds.png", one_pixel(999), r"has the values \[999\]"),
    ("Cityscapes", CITY, f"{CITY_START}_polygons.json", lambda p: p.write_text('{"imgHeight": 96,'), "not valid json"),
]


@pytest.mark.parametrize("when", ["made", "checked"])
@pytest.mark.parametrize("dataset, script, file, spoil, message", BAD)
def test_bad_downloads_are_named(built, capsys, dataset, script, file, spoil, message, when):
    root = built(dataset, *([script] if when == "checked" else []))
    spoil(root / file)
    assert run(script, root, *(["--check"] if when == "checked" else [])) == 1
    error = capsys.readouterr().err
    assert Path(file).stem.split("_gtFine")[0] in error
    assert re.search(message, error), error


MADE = [
    ("ADE20K", SEMANTIC, "ADEChallengeData2016/annotations_detectron2/validation/ADE_val_00000101.png"),
    ("ADE20K", PANOPTIC, "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000101.png"),
    ("COCO", COCO, "coco/panoptic_semseg_val2017/000000000101.png"),
    ("Cityscapes", CITY, "cityscapes/gtFine/cityscapes_panoptic_val/lindau_000101_000019_gtFine_panoptic.png"),
    ("Cityscapes", CITY, "cityscapes/gtFine/val/lindau/lindau_000101_000019_gtFine_labelTrainIds.png"),
]


@pytest.mark.parametrize("spoil", [one_pixel(77), remove, spoil_png], ids=["pixel", "removed", "cut off"])
@pytest.mark.parametrize("dataset, script, file", MADE)
def test_the_check_finds_what_happened_to_its_output(built, capsys, dataset, script, file, spoil):
    root = built(dataset, script)
    spoil(root / file)
    assert run(script, root, "--check") == 1
    assert Path(file).name in capsys.readouterr().err


def test_the_check_compares_the_json_with_the_files(built, capsys):
    root = built("ADE20K", INSTANCES)
    path = root / "ADEChallengeData2016/ade20k_instance_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 149
    path.write_text(json.dumps(content))
    assert run(INSTANCES, root, "--check") == 1
    assert "the json does not hold its instances" in capsys.readouterr().err
    path.write_text('{"images": [')
    assert run(INSTANCES, root, "--check") == 1
    assert "cannot be read" in capsys.readouterr().err
    path.unlink()
    assert run(INSTANCES, root, "--check") == 1
    assert "ade20k_instance_val.json is missing" in capsys.readouterr().err
