"""The published implementation's recorded answers, met with the same weights (`golden/fill.py`).

Logits and masks agree within 1e-5 of their largest value (float32 rounding through the whole model is about 2e-6);
classes, maps, segments and areas are equal, but for pixels at a tie.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4  # a probability differs by as much as a logit does, and logits reach 40

_spec = importlib.util.spec_from_file_location("fill", GOLDEN / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


@pytest.fixture(scope="module", params=["coco_panoptic_r50", "coco_instance_swin_tiny", "ade20k_semantic_r50"])
def answers(request):
    """The recorded arrays; our raw outputs; our results."""
    recorded = dict(np.load(GOLDEN / f"{request.param}.npz"))
    meta = json.loads(str(recorded["meta"]))
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / meta["config"]))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = meta["object_mask_threshold"]
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = meta["overlap_threshold"]
    model = fill.fill_(build_model(cfg)).eval()
    raw = []
    model.sem_seg_head.register_forward_hook(lambda module, args, output: raw.append(output))
    height, width = meta["output_hw"]
    with torch.no_grad():
        result = model([{"image": torch.from_numpy(recorded["image"]), "height": height, "width": width}])[0]
    return recorded, raw[0], result


def _relative_difference(ours, recorded):
    return float(np.abs(ours.numpy() - recorded).max() / np.abs(recorded).max())


def _resized_masks(recorded, raw):
    """Logits of all queries at the size of the results, in the published order: (Q, H, W)."""
    meta = json.loads(str(recorded["meta"]))
    masks = F.interpolate(raw["pred_masks"], scale_factor=4, mode="bilinear", align_corners=False)
    height, width = meta["image_hw"]
    return F.interpolate(masks[..., :height, :width], meta["output_hw"], mode="bilinear", align_corners=False)[0]


def test_the_image_is_the_recorded_one(answers):
    recorded, _, _ = answers
    meta = json.loads(str(recorded["meta"]))
    assert (fill.image(*meta["image_hw"], meta["image_seed"]).numpy() == recorded["image"]).all()


def test_logits_of_the_last_and_of_earlier_layers(answers):
    recorded, raw, _ = answers
    assert _relative_difference(raw["pred_logits"][0], recorded["pred_logits"]) < TOLERANCE
    assert _relative_difference(raw["pred_masks"][0], recorded["pred_masks"]) < TOLERANCE
    assert len(raw["aux_outputs"]) == 9
    for layer in (0, 4):
        ours = raw["aux_outputs"][layer]["pred_logits"][0]
        assert _relative_difference(ours, recorded[f"aux{layer}_logits"]) < TOLERANCE


def test_semantic_scores(answers):
    recorded, _, result = answers
    if "sem_seg_argmax" not in recorded:
        assert "sem_seg" not in result
        return
    scores = result["sem_seg"]
    assert (scores.argmax(0).numpy() == recorded["sem_seg_argmax"]).all()
    assert _relative_difference(scores.max(0).values, recorded["sem_seg_max"]) < TOLERANCE
    assert _relative_difference(scores[:, ::8, ::8], recorded["sem_seg_stride8"]) < TOLERANCE


def test_panoptic_map_and_segments(answers):
    recorded, raw, result = answers
    if "panoptic_seg" not in recorded:
        assert "panoptic_seg" not in result
        return
    ids, segments = result["panoptic_seg"]
    probabilities, classes = raw["pred_logits"][0].softmax(-1).max(-1)
    meta = json.loads(str(recorded["meta"]))
    kept = (probabilities > meta["object_mask_threshold"]) & (classes < raw["pred_logits"].shape[-1] - 1)
    candidates = probabilities[kept, None, None] * _resized_masks(recorded, raw)[kept].sigmoid()  # (kept, H, W)
    first, second = candidates.topk(2, dim=0).values.numpy()
    different = ids.numpy() != recorded["panoptic_seg"]
    assert (first - second)[different].max(initial=0) < SCORE_TOLERANCE and different.mean() < 1e-3
    published = [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in segments]
    assert published == json.loads(str(recorded["segments_info"]))


def test_instances(answers):
    recorded, raw, result = answers
    if "inst_scores" not in recorded:
        assert "instances" not in result
        return
    instances = result["instances"]
    order = instances.scores.argsort(descending=True)  # the record is sorted
    assert instances.pred_classes[order].tolist() == recorded["inst_classes"].tolist()
    masks = instances.pred_masks[order]
    difference = np.abs(masks.sum((1, 2)).numpy() - recorded["inst_areas"])
    # A pixel may only come or go where its logit is 0 but for the rounding seen in this very run.
    logits = _resized_masks(recorded, raw)
    rounding = float(np.abs(raw["pred_masks"][0].numpy() - recorded["pred_masks"]).max())
    query = [int(((logits > 0) ^ mask).sum((1, 2)).argmin()) for mask in masks]
    ties = (logits[query].abs() <= rounding).sum((1, 2)).numpy()
    assert (difference <= ties).all() and difference.sum() < 10, difference  # of over a million
    # A score is a mean over the mask, which a pixel that comes or goes (at probability one half) moves a little.
    tolerance = SCORE_TOLERANCE + difference / np.maximum(recorded["inst_areas"], 1)
    assert (np.abs(instances.scores[order].numpy() - recorded["inst_scores"]) < tolerance).all()
