"""The scripts in tools/: what they print, and what they say when something is wrong."""

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from PIL import Image
from pycocotools import mask as mask_util
from torch import nn

from mask2former import add_maskformer2_config, analysis
from mask2former.modeling.ops import deform_attn

ROOT = Path(__file__).parents[1]
COCO = ROOT / "configs/coco/panoptic-segmentation"
SCRIPTS = (
    "analyze_model",
    "evaluate_coco_boundary_ap",
    "evaluate_pq_for_semantic_segmentation",
    "visualize_data",
)


def run(script, *arguments):
    """-> what the script prints; a SystemExit with a message passes through."""
    output, argv = io.StringIO(), sys.argv
    sys.argv = [f"tools/{script}.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(ROOT / "tools" / f"{script}.py"), run_name="__main__")
    finally:
        sys.argv = argv
    return output.getvalue()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script, capsys):
    with pytest.raises(SystemExit) as stop:
        run(script, "--help")
    assert stop.value.code == 0


# ---- analyze_model


PUBLISHED = {
    "maskformer2_R50_bs16_50ep": (44, 226),
    "maskformer2_R101_bs16_50ep": (63, 293),
    "swin/maskformer2_swin_tiny_bs16_50ep": (47, 232),
    "swin/maskformer2_swin_small_bs16_50ep": (69, 313),
    "swin/maskformer2_swin_base_384_bs16_50ep": (107, 466),
    "swin/maskformer2_swin_large_IN21k_384_bs16_100ep": (216, 868),
}


SLOW = ("R101", "small", "base")


@pytest.mark.parametrize(
    ("config", "published"),
    [
        pytest.param(*row, marks=[pytest.mark.slow] if any(name in row[0] for name in SLOW) else [])
        for row in PUBLISHED.items()
    ],
)
def test_parameters_and_flops_are_the_published_ones(config, published):
    text = run("analyze_model", "--config-file", COCO / f"{config}.yaml", "--depth", 1, "--tasks", "parameter", "flop")
    parameters = float(re.search(r"([\d.]+) M parameters, in", text).group(1))
    flops = float(re.search(r"([\d.]+) G as published", text).group(1))
    assert parameters == pytest.approx(published[0], rel=0.02)
    assert flops == pytest.approx(published[1], rel=0.02)
    assert "assumed" in text or "mean over" in text  # where the sizes come from


def meta_model(*options):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/shapes/panoptic.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", *options])
    return build_model(cfg), cfg


def test_the_published_count_differs_by_full_size_masks_and_sampling_only():
    model, cfg = meta_model()
    cost = analysis.network_cost(model, (128, 160))
    levels = [(4, 5), (8, 10), (16, 20)]  # of the three masked layers
    full = 3 * 32 * 40 - sum(h * w for h, w in levels)
    expected = cost.flops - cost.sampling + 25 * 64 * full
    assert analysis.published_flops(cfg, cost) == pytest.approx(expected, rel=1e-12)
    # one encoder layer: every pixel of the three levels, 3 levels of 4 points, 64 channels, 5 operations
    assert cost.sampling == sum(h * w for h, w in levels) * 12 * 64 * 5
    assert cost.flops == pytest.approx(sum(cost.flops_of[part] for part in ("backbone", "sem_seg_head")))


def test_images_are_padded_as_in_use():
    model, _ = meta_model()
    assert analysis.network_cost(model, (100, 129)).size == (128, 160)


def test_a_model_with_memory_is_refused():
    with pytest.raises(ValueError, match=r"\['cpu'\].*MODEL.DEVICE 'meta'"):
        analysis.network_cost(nn.Linear(2, 2), (32, 32))


class Head(nn.Module):
    """One attention, or one deformable attention through our operator, on a given feature."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.scale = kind, nn.Parameter(torch.zeros(1))

    def forward(self, image):
        if self.kind == "attention":
            q, k = image.new_zeros(2, 4, 7, 8), image.new_zeros(2, 4, 11, 8)
            return nn.functional.scaled_dot_product_attention(q, k, k)
        value, points = image.new_zeros(1, 20, 4, 8), image.new_zeros(1, 7, 4, 1, 3, 2)
        return deform_attn._sample(value, [4, 5], points, points[..., 0])


@pytest.mark.parametrize(
    ("kind", "flops"), [("attention", 2 * (2 * 4 * 7 * 11 * 8)), ("deformable", 7 * 4 * 3 * 8 * 5)]
)
def test_attention_and_deformable_attention_are_counted_by_hand(kind, flops):
    model = nn.Module()
    model.backbone, model.sem_seg_head, model.size_divisibility = nn.Identity(), Head(kind).to("meta"), 0
    assert analysis.network_cost(model, (32, 32)).flops == flops


def test_structure_and_activations():
    arguments = ("--config-file", ROOT / "configs/shapes/panoptic.yaml", "--size", 128, 128)
    text = run("analyze_model", *arguments, "--tasks", "structure", "activation")
    assert "MultiScaleMaskedTransformerDecoder(" in text
    assert float(re.search(r"([\d.]+) M activations", text).group(1)) > 1


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match=r"no_such\.yaml"):
        run("analyze_model", "--config-file", "no_such.yaml")


# ---- boundary AP


def coco_files(folder, results):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:60] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    truth = {
        "images": [{"id": 1, "height": 60, "width": 80}],
        "categories": [{"id": 3, "name": "kite"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 1600, "bbox": [20, 10, 40, 40]}
            | {"segmentation": rle}
        ],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    entry = {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": rle}
    (folder / "results.json").write_text(json.dumps([{**entry, **change} for change in results]))
    return "--gt-json-file", folder / "truth.json", "--dt-json-file", folder / "results.json"


def test_boundary_ap_of_perfect_masks_is_100(tmp_path):
    text = run("evaluate_coco_boundary_ap", *coco_files(tmp_path, [{}]))
    assert re.search(r"^AP +100\.000$", text, re.M)
    assert re.search(r"^AP-kite +100\.000$", text, re.M)


@pytest.mark.parametrize(
    ("results", "message"), [([], "no results"), ([{"segmentation": None}], ""), (None, "No such file")]
)
def test_boundary_ap_says_what_is_wrong(tmp_path, results, message):
    files = coco_files(tmp_path, results or [])
    if results is None:
        files[3].unlink()
    elif results:
        files[3].write_text(json.dumps([{"image_id": 1, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}]))
        message = "1 of the 1 results .*no segmentation"
    with pytest.raises(SystemExit, match=message):
        run("evaluate_coco_boundary_ap", *files)


# ---- PQ of semantic predictions


def test_pq_of_semantic_predictions_worked_by_hand():
    from panopticapi.evaluation import PQStat

    from mask2former.evaluation.semantic_pq import pq_of_labels

    def counts(predicted, true):
        stat = PQStat()
        pq_of_labels(stat, np.array([predicted]), np.array([true]), 3)
        return {c: (s.tp, s.fp, s.fn, s.iou) for c, s in stat.pq_per_cat.items() if s.tp + s.fp + s.fn}

    assert counts([0, 0, 0, 1], [0, 0, 0, 0]) == {0: (1, 0, 0, 0.75), 1: (0, 1, 0, 0)}
    assert counts([0, 0, 1, 1], [0, 0, 0, 0]) == {0: (0, 1, 1, 0), 1: (0, 1, 0, 0)}  # half is not more than half
    assert counts([0, 0, 2, 2], [0, 0, -1, 255]) == {0: (1, 0, 0, 1.0)}  # a segment on void is not judged
    assert counts([0, 0, 0, 0], [0, 0, -1, -1]) == {0: (1, 0, 0, 1.0)}  # nor is what lies on void in a match


def test_pq_of_a_file_that_is_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing.json"):
        run("evaluate_pq_for_semantic_segmentation", "--json-file", tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('[{"image_id": 1}]')
    with pytest.raises(SystemExit, match=r"no sem_seg_predictions.json"):
        run("evaluate_pq_for_semantic_segmentation", "--json-file", tmp_path / "other.json")


# ---- visualize_data


def test_pictures_of_what_the_mapper_feeds(tmp_path, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    pixels = np.full((60, 80, 3), 90, np.uint8)
    labels = np.full((60, 80), 255, np.uint8)
    labels[20:40, 20:60] = 1
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    DatasetCatalog.register("tools_drawn", lambda: [{**record, "height": 60, "width": 80}] * 3)
    MetadataCatalog.get("tools_drawn").set(
        stuff_classes=["sky", "sea"], stuff_colors=[(0, 0, 255), (255, 0, 0)], ignore_label=255
    )
    options = ["DATASETS.TRAIN", "('tools_drawn',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "INPUT.SIZE_DIVISIBILITY", -1]
    options += ["INPUT.CROP.ENABLED", False, "INPUT.COLOR_AUG_SSD", False, "INPUT.MIN_SIZE_TRAIN", "(60,)"]
    base = ("--config-file", ROOT / "configs/shapes/semantic.yaml", "--output-dir", tmp_path / "out")
    text = run("visualize_data", *base, "-n", 2, "--versions", 2, *options)
    assert "4 pictures" in text
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{i:06d}_{v}_image.png" for i in (0, 2) for v in (0, 1)]
    picture = np.asarray(Image.open(tmp_path / "out" / names[0])).astype(int)
    assert picture.shape == (60, 160, 3)
    assert (picture[:, :80] == 90).all()  # the image as it is
    right = picture[:, 80:]
    assert (right[:10] == 90).all()  # no class, no colour
    assert right[24, 22, 0] > right[24, 22, 2] + 20  # "sea" is red here


def test_pictures_need_a_data_set_that_is_there(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no_such_dataset"):
        run(
            "visualize_data",
            *("--config-file", ROOT / "configs/shapes/semantic.yaml", "--output-dir", tmp_path),
            *("DATASETS.TRAIN", "('no_such_dataset',)"),
        )
