"""The synthetic data set: made by its script, read back through the registered names."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.datasets import register_shapes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "datasets" / "prepare_shapes.py"


@pytest.fixture(scope="module")
def prepare_shapes():
    spec = importlib.util.spec_from_file_location("prepare_shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def settings(seed=0, train=24):
    return {"format": 1, "train": train, "val": 6, "size": 96, "seed": seed}


@pytest.fixture(scope="module")
def shapes(prepare_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert prepare_shapes.make(folder, settings())
    return folder


@pytest.fixture
def copied(shapes, tmp_path):
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def register():
    """Registers the names for another folder, and the usual one again afterwards."""

    def at(root):
        for name in [name for name in DatasetCatalog.list() if name.startswith("shapes_")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_shapes.register_all_shapes(str(root))

    yield at
    at(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


# ---- making


def test_a_seed_decides_every_byte(prepare_shapes, shapes, tmp_path):
    prepare_shapes.make(tmp_path / "same", settings())
    assert content_of(tmp_path / "same") == content_of(shapes)
    prepare_shapes.make(tmp_path / "other", settings(seed=1))
    image = Path("train/images/000001.jpg")
    assert (tmp_path / "other" / image).read_bytes() != (shapes / image).read_bytes()


def test_the_formats_agree(prepare_shapes, shapes):
    assert prepare_shapes.check(shapes) == []


@pytest.mark.parametrize("part", ["semantic", "panoptic"])
def test_the_check_finds_one_wrong_pixel(prepare_shapes, copied, part):
    path = copied / "train" / part / "000003.png"
    pixels = np.array(Image.open(path))
    pixels[5, 5] = pixels[5, 5] + 1
    Image.fromarray(pixels).save(path)
    problems = prepare_shapes.check(copied)
    assert problems and all("train/000003.png" in problem for problem in problems)


def test_the_check_finds_a_wrong_instance(prepare_shapes, copied):
    path = copied / "val" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = content["annotations"][0]["category_id"] % 8 + 1
    path.write_text(json.dumps(content))
    assert len(prepare_shapes.check(copied)) == 1


def test_what_is_there_is_not_made_again(prepare_shapes, copied):
    before = (copied / "settings.json").stat().st_mtime_ns
    assert not prepare_shapes.make(copied, settings())
    assert (copied / "settings.json").stat().st_mtime_ns == before
    assert prepare_shapes.make(copied, settings(train=2))
    assert len(list((copied / "train" / "images").iterdir())) == 2


def test_a_broken_off_run_leaves_nothing_under_the_name(prepare_shapes, tmp_path, monkeypatch):
    write_split = prepare_shapes.write_split

    def killed(folder, split, *more):
        if split == "val":
            raise KeyboardInterrupt
        write_split(folder, split, *more)

    monkeypatch.setattr(prepare_shapes, "write_split", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes.make(tmp_path / "shapes", settings(train=1))
    assert not (tmp_path / "shapes").exists()
    monkeypatch.undo()
    assert prepare_shapes.make(tmp_path / "shapes", settings(train=1))
    assert os.listdir(tmp_path) == ["shapes"]


def test_a_folder_of_others_is_not_touched(prepare_shapes, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not make it"):
        prepare_shapes.make(tmp_path, settings())
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_uncompressed_rle_by_hand(prepare_shapes):
    mask = np.array([[0, 1], [0, 1], [1, 0]], bool)
    assert prepare_shapes.uncompressed_rle(mask) == {"size": [3, 2], "counts": [2, 3, 1]}
    assert prepare_shapes.uncompressed_rle(~mask) == {"size": [3, 2], "counts": [0, 2, 3, 1]}
    assert (prepare_shapes.decode({"size": [3, 2], "counts": [2, 3, 1]}, 3, 2) == mask).all()


# ---- what is in it


def test_all_forms_of_annotation_occur(prepare_shapes):
    """In 60 scenes: polygons, either RLE, crowds, images without things, void, large and small ids."""
    kinds, large_ids, empty, void, classes = [], 0, 0, 0, set()
    for number in range(60):
        rng = np.random.default_rng([0, 0, number])
        scene = prepare_shapes.make_scene(rng, 128)
        ids = prepare_shapes.segment_ids(rng, len(scene.segments))
        instances, segments, _, semantic = prepare_shapes.describe(scene, number, ids)
        for anno in instances:
            segmentation = anno["segmentation"]
            kinds.append("polygon" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__)
            assert (kinds[-1] == "list") == bool(anno["iscrowd"])
            assert anno["area"] >= 24
        large_ids += any(id_ > 65535 for id_ in ids)
        empty += not instances
        void += bool((semantic == 255).any())
        classes |= {segment["category_id"] for segment in segments}
    assert kinds.count("polygon") > len(kinds) / 3 and kinds.count("str") > kinds.count("list") > 0
    assert 10 < large_ids < 50 and 0 < empty < 15 and 5 < void < 50
    assert classes == {*range(1, 9), *range(11, 16)}


# ---- reading through the registered names


def test_the_registered_names_read_what_was_made(shapes, register):
    register(shapes.parent)
    names = [f"shapes_{split}_{form}" for split in ("train", "val") for form in ("instance", "panoptic", "semantic")]
    data = {name: (DatasetCatalog.get(name), MetadataCatalog.get(name).as_dict()) for name in names}
    for split, count in (("train", 24), ("val", 6)):
        for form, evaluator in (("instance", "coco"), ("panoptic", "coco_panoptic_seg"), ("semantic", "sem_seg")):
            records, meta = data[f"shapes_{split}_{form}"]
            assert len(records) == count and meta["evaluator_type"] == evaluator
            assert Path(records[0]["file_name"]) == shapes / split / "images" / "000001.jpg"

    instances = data["shapes_val_instance"][0]
    panoptic, meta = data["shapes_val_panoptic"]
    assert len(meta["thing_classes"]) == 8 and len(meta["stuff_classes"]) == len(meta["stuff_colors"]) == 13
    assert meta["stuff_dataset_id_to_contiguous_id"][15] == 12 and meta["label_divisor"] == 1000
    for record, twin in zip(panoptic, instances):
        things = [segment["category_id"] for segment in record["segments_info"] if segment["isthing"]]
        assert things == [anno["category_id"] for anno in twin["annotations"]]
        semantic = np.array(Image.open(record["sem_seg_file_name"]))
        present = {segment["category_id"] for segment in record["segments_info"]}
        assert set(np.unique(semantic).tolist()) - {255} == present
        for anno in twin["annotations"]:
            if isinstance(anno["segmentation"], list):
                rle = mask_util.merge(mask_util.frPyObjects(anno["segmentation"], twin["height"], twin["width"]))
                assert (semantic[mask_util.decode(rle) > 0] == anno["category_id"]).all()


def test_missing_data_says_how_to_make_it(tmp_path, register):
    register(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python datasets/prepare_shapes.py") as error:
        DatasetCatalog.get("shapes_val_panoptic")
    assert str(tmp_path) in str(error.value)


def test_the_command_line(prepare_shapes, tmp_path, capsys):
    def script(*arguments):
        return prepare_shapes.main(["--output", str(tmp_path / "shapes"), *arguments])

    assert script("--check") == 1
    assert script("--train", "2", "--val", "1", "--size", "64") == 0
    assert "2 training and 1 validation images" in capsys.readouterr().out
    assert script("--check") == 0
    assert "agree" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script("--train", "0")
    (tmp_path / "file").touch()
    assert prepare_shapes.main(["--output", str(tmp_path / "file" / "shapes")]) == 1
    assert "Cannot make" in capsys.readouterr().err


def test_coco_with_semantic_labels_is_registered():
    meta = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert len(meta.thing_classes) == 80 and len(meta.stuff_classes) == 133
    assert meta.thing_dataset_id_to_contiguous_id[90] == 79
    assert meta.stuff_dataset_id_to_contiguous_id[1] == 0 and meta.stuff_dataset_id_to_contiguous_id[200] == 132
    assert meta.sem_seg_root.endswith("coco/panoptic_semseg_val2017")
    assert len(MetadataCatalog.get("coco_2017_val_panoptic").thing_classes) == 80
