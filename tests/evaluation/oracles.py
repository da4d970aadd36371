"""The same scores from independent programs: pycocotools, cityscapesscripts, or plain loops over pixels.

Each takes a folder written by `scenes.write`, the scenes and their predictions, and returns {metric: value}, of which
the evaluators must have the same.
"""

import contextlib
import importlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import CLASSES, LABEL_IDS, NAMES, THINGS, class_map, paint, rle, split

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class BoundaryEval(COCOeval):
    """pycocotools with the smaller of mask and boundary IoU; crowds keep the mask's."""

    def computeIoU(self, image, category):
        ious = super().computeIoU(image, category)
        if len(ious) == 0:
            return ious
        found = sorted(self._dts[image, category], key=lambda entry: -entry["score"])[: self.params.maxDets[-1]]
        for i, d in enumerate(found):
            for j, g in enumerate(self._gts[image, category]):
                if not g["iscrowd"]:
                    a, b = (band(mask_util.decode(x["segmentation"]).astype(bool)) for x in (d, g))
                    ious[i, j] = min(ious[i, j], (a & b).sum() / max((a | b).sum(), 1))
        return ious


def band(mask):
    """The pixels of a mask within 2% of the image's diagonal (in 8-neighbour steps) of its outside."""
    steps = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = np.pad(mask, steps)
    height, width = mask.shape
    core = np.ones_like(mask)
    for y in range(2 * steps + 1):
        for x in range(2 * steps + 1):
            core &= padded[y : y + height, x : x + width]
    return mask & ~core


def coco(folder, scenes, predictions, evaluation=COCOeval):
    results = [
        {"image_id": scene.number, "category_id": LABEL_IDS[s.label], "score": s.score, "segmentation": rle(s.mask)}
        for scene, segments in zip(scenes, predictions)
        for s in split(segments)[1]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(f"{folder}/instances.json")
        run = evaluation(truth, truth.loadRes(results), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    scores = dict(zip(METRICS, run.stats))
    for i, category in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, i, 0, -1]
        scores[f"AP-{truth.cats[category]['name']}"] = (
            precision[precision > -1].mean() if (precision > -1).any() else -1
        )
    return {name: 100 * value if value >= 0 else float("nan") for name, value in scores.items()}


def boundary(folder, scenes, predictions):
    return coco(folder, scenes, predictions, BoundaryEval)


def semantic(folder, scenes, predictions):
    """Class by class, mask by mask."""
    hits, unions, truths = np.zeros((3, len(CLASSES)))
    for scene, segments in zip(scenes, predictions):
        true, predicted = class_map(scene.segments, 255), class_map(segments, 0)
        for c in CLASSES:
            a, b = true == c, (predicted == c) & (true != 255)
            hits[c] += (a & b).sum()
            unions[c] += (a | b).sum()
            truths[c] += a.sum()
    seen = truths > 0
    iou, accuracy = hits[seen] / unions[seen], hits[seen] / truths[seen]
    scores = {"mIoU": iou.mean(), "fwIoU": (iou * truths[seen]).sum() / truths.sum()}
    scores |= {"mACC": accuracy.mean(), "pACC": hits.sum() / truths.sum()}
    scores |= {f"IoU-{NAMES[c]}": value for c, value in zip(np.flatnonzero(seen), iou)}
    return {name: 100 * value for name, value in scores.items()}


def cityscapes_pq(folder, pairs, categories):
    """PQ, SQ and RQ with cityscapesscripts; `pairs` are entries of ground truth and prediction."""
    script = importlib.import_module("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    with contextlib.redirect_stdout(io.StringIO()):
        stat = script.pq_compute_single_core(0, pairs, f"{folder}/panoptic", f"{folder}/predicted", categories)
    return stat


def panoptic(folder, scenes, predictions):
    truth = json.loads(Path(folder, "panoptic.json").read_text())
    categories = {row["id"]: row for row in truth["categories"]}
    Path(folder, "predicted").mkdir(exist_ok=True)
    pairs = []
    for scene, segments, annotation in zip(scenes, predictions, truth["annotations"]):
        ids = paint(segments)
        Image.fromarray(id2rgb(ids)).save(f"{folder}/predicted/{scene.name}.png")
        present = [i for i in np.unique(ids).tolist() if i]
        infos = [{"id": i, "category_id": LABEL_IDS[segments[i - 1].label]} for i in present]
        pairs.append((annotation, {**annotation, "segments_info": infos}))
    stat = cityscapes_pq(folder, pairs, categories)
    scores = {}
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        mean = stat.pq_average(categories, isthing=isthing)[0]
        scores |= {f"{name.upper()}{suffix}": 100 * mean[name] for name in ("pq", "sq", "rq")}
    return scores


def semantic_pq(folder, scenes, predictions):
    """Every class a segment, on both sides, for cityscapesscripts."""
    Path(folder, "predicted").mkdir(exist_ok=True)
    Path(folder, "panoptic_of_classes").mkdir(exist_ok=True)
    categories = {c: {"isthing": 0} for c in CLASSES}
    pairs = []
    for scene, segments in zip(scenes, predictions):
        halves = []
        for part, labels in (
            ("panoptic_of_classes", class_map(scene.segments, -1)),
            ("predicted", class_map(segments, 0)),
        ):
            Image.fromarray(id2rgb(labels + 1)).save(f"{folder}/{part}/{scene.name}.png")
            infos = [
                {"id": c + 1, "category_id": c, "area": int((labels == c).sum()), "iscrowd": 0}
                for c in np.unique(labels).tolist()
                if c >= 0
            ]
            halves.append({"image_id": scene.number, "file_name": f"{scene.name}.png", "segments_info": infos})
        pairs.append((halves[0], halves[1]))
    script = importlib.import_module("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    with contextlib.redirect_stdout(io.StringIO()):
        stat = script.pq_compute_single_core(
            0, pairs, f"{folder}/panoptic_of_classes", f"{folder}/predicted", categories
        )
    mean, per_class = stat.pq_average(categories, isthing=None)
    scores = {name.upper(): 100 * mean[name] for name in ("pq", "sq", "rq")}
    return scores | {f"PQ-{NAMES[c]}": 100 * per_class[c]["pq"] for c in CLASSES}


@contextlib.contextmanager
def runnable_cityscapes(script):
    """cityscapesscripts as it was before numpy 2.4, quiet, without files of its own; for a while."""
    missing = not hasattr(np, "in1d")
    if missing:
        np.in1d = lambda a, b, **options: np.isin(np.ravel(a), b, **options)
    write, script.writeDict2JSON = script.writeDict2JSON, lambda *args: None
    try:
        yield SimpleNamespace(
            **{**vars(script.args), "quiet": True, "JSONOutput": False, "gtInstancesFile": "/nowhere"}
        )
    finally:
        script.writeDict2JSON = write
        if missing:
            del np.in1d


def cityscapes_instance(folder, scenes, predictions):
    """cityscapesscripts as its users run it: on folders of PNGs."""
    script = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    out = os.path.abspath(f"{folder}/instances_predicted")
    os.makedirs(out, exist_ok=True)
    texts, truths = [], []
    for scene, segments in zip(scenes, predictions):
        lines = []
        for i, s in enumerate(split(segments)[1]):
            Image.fromarray(s.mask.astype(np.uint8) * 255).save(f"{out}/{scene.name}_{i}.png")
            lines.append(f"{scene.name}_{i}.png {LABEL_IDS[s.label]} {s.score!r}\n")
        texts.append(f"{out}/{scene.name}_pred.txt")
        Path(texts[-1]).write_text("".join(lines))
        truths.append(f"{folder}/gt/town/{scene.name}_gtFine_instanceIds.png")
    with runnable_cityscapes(script) as args:
        args.predictionPath = out
        averages = script.evaluateImgLists(texts, truths, args)["averages"]
    scores = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
    scores |= {f"AP-{NAMES[c]}": averages["classes"][NAMES[c]]["ap"] for c in THINGS}
    scores |= {f"AP50-{NAMES[c]}": averages["classes"][NAMES[c]]["ap50%"] for c in THINGS}
    return {name: 100 * float(value) for name, value in scores.items()}


def cityscapes_semantic(folder, scenes, predictions):
    script = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    files = []
    for scene, segments in zip(scenes, predictions):
        files.append(f"{folder}/{scene.name}_pred.png")
        labels = np.array(LABEL_IDS)[class_map(segments, 0)]
        Image.fromarray(labels.astype(np.uint8)).save(files[-1])
    truths = [f"{folder}/gt/town/{scene.name}_gtFine_labelIds.png" for scene in scenes]
    with runnable_cityscapes(script) as args:
        result = script.evaluateImgLists(files, truths, args)
    scores = {
        "IoU": result["averageScoreClasses"],
        "iIoU": result["averageScoreInstClasses"],
        "IoU_sup": result["averageScoreCategories"],
        "iIoU_sup": result["averageScoreInstCategories"],
    }
    scores |= {f"IoU-{NAMES[c]}": result["classScores"][NAMES[c]] for c in CLASSES}
    scores |= {f"iIoU-{NAMES[c]}": result["classInstScores"][NAMES[c]] for c in CLASSES}
    return {name: 100 * float(value) for name, value in scores.items()}
