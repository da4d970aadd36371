"""Semantic labels of COCO, made from panoptic ones."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "datasets" / "prepare_coco_semantic_annos_from_panoptic_annos.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_coco", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pixels_get_the_position_of_their_class(script, tmp_path, monkeypatch):
    # Ids as in the PNG: 1 + 256 + 65536 = 65793 is a person (class 0), 7 is "rug-merged" (id 200, class 132).
    pixels = np.array([[[1, 1, 1], [7, 0, 0]], [[0, 0, 0], [1, 1, 1]]], np.uint8)
    segments = [{"id": 65793, "category_id": 1}, {"id": 7, "category_id": 200}]
    content = {"annotations": [{"file_name": "a.png", "image_id": 1, "segments_info": segments}]}
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (coco / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
        (coco / f"panoptic_{split}").mkdir()
        Image.fromarray(pixels).save(coco / f"panoptic_{split}" / "a.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    assert script.main() == 0
    made = coco / "panoptic_semseg_train2017" / "a.png"
    assert np.array(Image.open(made)).tolist() == [[0, 132], [255, 0]]
    made.unlink()
    assert script.main() == 0 and made.exists()
    assert not list(coco.rglob("*.partial"))


def test_missing_files_are_named(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert script.main() == 1
    assert "panoptic_val2017.json does not exist" in capsys.readouterr().err


def test_a_segment_without_entry_is_refused(script):
    with pytest.raises(KeyError):
        script.semantic_map(np.array([[5]]), [], {})
