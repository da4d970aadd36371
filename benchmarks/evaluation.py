"""Evaluation against the usual programs: mask AP, PQ, mIoU, and the encoding of masks. Scores are checked to be equal.

python benchmarks/evaluation.py --threads 1 --json evaluation.json
python benchmarks/evaluation.py --images 50 --repeats 1              # quicker

| row | ours | against |
| mask AP, from results | `_evaluate_predictions_on_coco`, what COCOEvaluator calls | pycocotools' COCOeval |
| mask AP, from masks | COCOEvaluator: process every image, evaluate | pycocotools' encode, then its COCOeval |
| encoding masks | COCOEvaluator's `encode_masks` | `pycocotools.mask.encode`, one mask at a time |
| PQ, from PNGs | panopticapi's `pq_compute_single_core` | cityscapesscripts' function of the same name |
| mIoU, from label maps | SemSegEvaluator: process every image, evaluate | numpy's bincount over pairs of labels |
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as city
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco, instances_to_coco_json
from detectron2.evaluation.rle import encode_masks
from detectron2.structures import Boxes, Instances
from panopticapi import evaluation as panoptic
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 480, 640
CLASSES, DETECTIONS = 80, 100
LARGE, LABELS = (1024, 2048), 150
NAME = "benchmark_evaluation"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Sides = dict[str, Callable[[], Any]]


def blobs(size: tuple[int, int], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Masks with wavy outlines, small to large."""
    ys, xs = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(count):
        y, x = rng.random(2) * size
        radius, angle = np.hypot(ys - y, (xs - x) * rng.uniform(0.5, 1.5)), np.arctan2(ys - y, xs - x)
        outline = 1 + sum(np.sin((k + 2) * angle + rng.uniform(0, 6)) / (k + 4) for k in range(4))
        ragged = rng.normal(0, 0.004, size)
        masks.append(radius < np.exp(rng.uniform(2, 5)) * size[0] / 480 * (outline + ragged))
    return [mask for mask in masks if mask.any()]


def shifted(mask: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.roll(mask, tuple(rng.integers(-most, most + 1, 2)), (0, 1))


def instances(images: int, folder: Path) -> list[Instances]:
    """Register 2 to 12 objects in each image; -> predictions: half of them near an object, half anywhere."""
    rng = np.random.default_rng(0)
    pool = blobs((HEIGHT, WIDTH), 150, rng)
    annotations, predictions = [], []
    for image in range(images):
        truths = [
            (shifted(pool[rng.integers(len(pool))], 150, rng), rng.integers(CLASSES))
            for _ in range(rng.integers(2, 13))
        ]
        for mask, label in truths:
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            facts = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "iscrowd": 0}
            shape = {"area": int(mask_util.area(rle)), "bbox": mask_util.toBbox(rle).tolist()}
            rle["counts"] = rle["counts"].decode()
            annotations.append({**facts, **shape, "segmentation": rle})
        masks, labels = [], []
        for _ in range(DETECTIONS):
            mask, label = truths[rng.integers(len(truths))]
            near = rng.random() < 0.5
            masks.append(shifted(mask, 8, rng) if near else pool[rng.integers(len(pool))])
            labels.append(label if near and rng.random() < 0.8 else rng.integers(CLASSES))
        found = Instances((HEIGHT, WIDTH), pred_masks=torch.from_numpy(np.stack(masks)))
        found.pred_boxes, found.pred_classes = Boxes(torch.zeros(DETECTIONS, 4)), torch.tensor(np.array(labels))
        found.scores = torch.from_numpy(rng.random(DETECTIONS).astype(np.float32))
        predictions.append(found)
    infos = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(images)]
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"info": {}, "images": infos, "annotations": annotations, "categories": categories}))
    MetadataCatalog.get(NAME).set(
        json_file=str(file),
        thing_classes=[str(label) for label in range(CLASSES)],
        thing_dataset_id_to_contiguous_id={label: label for label in range(CLASSES)},
    )
    return predictions


def average_precision(images: int, folder: Path) -> dict[str, Sides]:
    predictions = instances(images, folder)
    results = [entry for image, found in enumerate(predictions) for entry in instances_to_coco_json(found, image)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get(NAME).json_file)
    evaluator = COCOEvaluator(NAME, distributed=False)

    def pycocotools(entries: list[dict[str, Any]]) -> np.ndarray:
        # As detectron2 does: with boxes, COCO would take a mask's size from them.
        plain = [{key: entry[key] for key in entry.keys() - {"bbox"}} for entry in entries]
        with contextlib.redirect_stdout(io.StringIO()):
            score = COCOeval(truth, truth.loadRes(plain), "segm")
            score.evaluate()
            score.accumulate()
            score.summarize()
        return score.stats[:6]

    def encoded(found: Instances, image: int) -> list[dict[str, Any]]:
        columns = found.scores.tolist(), found.pred_classes.tolist(), plain_encode(found.pred_masks)
        names = ("image_id", "score", "category_id", "segmentation")
        return [dict(zip(names, (image, *values))) for values in zip(*columns)]

    def evaluate() -> np.ndarray:
        evaluator.reset()
        for image, found in enumerate(predictions):
            evaluator.process([{"image_id": image}], [{"instances": found}])
        scores = evaluator.evaluate()["segm"]
        return np.array([scores[name] for name in METRICS]) / 100

    return {
        "mask AP, from results": {
            "pycocotools": lambda: pycocotools(results),
            "ours": lambda: _evaluate_predictions_on_coco(truth, results, "segm").stats[:6],
        },
        "mask AP, from masks": {
            "pycocotools": lambda: pycocotools([e for i, found in enumerate(predictions) for e in encoded(found, i)]),
            "ours": evaluate,
        },
        "encoding masks": {
            "pycocotools": lambda: [plain_encode(found.pred_masks) for found in predictions],
            "ours": lambda: [encode_masks(found.pred_masks) for found in predictions],
        },
    }


def plain_encode(masks: torch.Tensor) -> list[dict[str, Any]]:
    rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks.numpy()]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


def panoptic_quality(images: int, folder: Path) -> dict[str, Sides]:
    """Panoptic PNGs of Cityscapes' size, 40 segments each; the prediction is moved."""
    rng = np.random.default_rng(0)
    masks = blobs(LARGE, 40, rng)
    for name in ("truth", "found"):
        (folder / name).mkdir()
    pairs = []
    for image in range(images):
        labels = rng.integers(1, 20, len(masks) + 1)
        ids = {"truth": np.ones(LARGE, dtype=np.int64), "found": np.ones(LARGE, dtype=np.int64)}
        for number, mask in enumerate(masks):
            place = shifted(mask, 500, rng)
            ids["truth"][place] = 300 * number + 2
            ids["found"][shifted(place, 6, rng)] = 200 * number + 2
        annotations = []
        for name, step in (("truth", 300), ("found", 200)):
            if name == "truth":
                ids[name][: 20 + image] = 0  # void
            Image.fromarray(id2rgb(ids[name])).save(folder / name / f"{image}.png")
            segments = [
                {"id": i, "category_id": int(labels[(i - 2) // step]), "area": area, "iscrowd": 0, "isthing": 1}
                for i, area in zip(*(column.tolist() for column in np.unique(ids[name], return_counts=True)))
                if i
            ]
            if name == "found":
                segments[0]["category_id"] = 1 + segments[0]["category_id"] % 19
            annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
        pairs.append(tuple(annotations))
    categories = {label: {"id": label, "isthing": 1} for label in range(1, 20)}

    def quality(program: Any) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            stat = program.pq_compute_single_core(0, pairs, str(folder / "truth"), str(folder / "found"), categories)
        mean, per_class = stat.pq_average(categories, isthing=None)
        return [value for table in (mean, *per_class.values()) for value in table.values()]

    files = [(folder / name / f"{image}.png") for image in range(images) for name in ("truth", "found")]
    loaded = [(panoptic.read_ids(a), panoptic.read_ids(b)) for a, b in zip(files[::2], files[1::2])]
    assert loaded
    return {
        "PQ, from PNGs": {
            "cityscapesscripts": lambda: quality(city),
            "ours": lambda: quality(panoptic),
        }
    }


def semantic(images: int, folder: Path) -> dict[str, Sides]:
    """Label maps of 150 classes in both; the ground truth's PNGs are read beforehand, for both sides alike."""
    rng = np.random.default_rng(0)
    masks = blobs(LARGE, 60, rng)
    truths, predictions, records = {}, [], []
    for image in range(images):
        true, found = np.zeros(LARGE, np.uint8), np.zeros(LARGE, np.int64)
        for mask in masks:
            place, label = shifted(mask, 500, rng), rng.integers(LABELS)
            true[place] = label
            found[shifted(place, 8, rng)] = label if rng.random() < 0.8 else rng.integers(LABELS)
        true[: 10 + image] = 255
        truths[f"{image}.png"] = true
        predictions.append(torch.from_numpy(found))
        records.append({"file_name": f"{image}.jpg", "sem_seg_file_name": f"{image}.png"})
    DatasetCatalog.register(f"{NAME}_semantic", lambda: records)
    names = [str(label) for label in range(LABELS)]
    MetadataCatalog.get(f"{NAME}_semantic").set(stuff_classes=names, ignore_label=255)
    load = lambda name, dtype=None: truths[name]
    evaluator = SemSegEvaluator(f"{NAME}_semantic", distributed=False, sem_seg_loading_fn=load)

    def ours() -> list[float]:
        evaluator.reset()
        for record, found in zip(records, predictions):
            evaluator.process([record], [{"sem_seg": found}])
        scores = evaluator.evaluate()["sem_seg"]
        return [scores["mIoU"], *(scores[f"IoU-{name}"] for name in names)]

    def plain() -> list[float]:
        matrix = np.zeros((LABELS + 1, LABELS + 1), dtype=np.int64)
        for record, found in zip(records, predictions):
            true = truths[record["sem_seg_file_name"]].astype(np.int64)
            true[true == 255] = LABELS
            pairs = np.bincount((LABELS + 1) * found.numpy().reshape(-1) + true.reshape(-1), minlength=matrix.size)
            matrix += pairs.reshape(matrix.shape)
        matrix = matrix[:-1, :-1]
        true, union = matrix.sum(0), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        iou = [100 * matrix[k, k] / union[k] if true[k] else np.nan for k in range(LABELS)]
        return [float(np.nanmean(iou)), *map(float, iou)]

    return {"mIoU, from label maps": {"numpy": plain, "ours": ours}}


def row(what: str, sides: Sides, images: int, repeats: int) -> dict[str, Any]:
    """Measure both sides in turn; their answers must be equal to 1e-6."""
    answers = [side() for side in sides.values()]
    if isinstance(answers[0][0], list):
        assert answers[0] == answers[1], f"{what}: the encodings differ"
        equal = "same text"
    else:
        worst = float(np.nanmax(np.abs(np.subtract(*answers))))
        assert np.array_equal(*map(np.isnan, answers)) and worst <= 1e-6, f"{what}: the scores differ by {worst}"
        equal = f"{worst:.0e}"
    seconds = common.alternate(sides, repeats)
    (other, theirs), (_, mine) = ((name, time["cpu"]) for name, time in seconds.items())
    columns = {"images": images, "against": other, "theirs ms/image": 1e3 * theirs / images}
    return {"what": what, **columns, "ours ms/image": 1e3 * mine / images, "ratio": theirs / mine, "difference": equal}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--images", type=int, default=200, help="of 640x480; a tenth of it of 1024x2048")
    parser.add_argument("--only", nargs="+", default=["ap", "pq", "miou"], choices=["ap", "pq", "miou"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.disable(logging.CRITICAL)
    makers = {"ap": average_precision, "pq": panoptic_quality, "miou": semantic}
    rows = []
    for name in args.only:
        images = args.images if name == "ap" else max(args.images // 10, 1)
        with tempfile.TemporaryDirectory() as folder:
            for what, sides in makers[name](images, Path(folder)).items():
                rows.append(row(what, sides, images, args.repeats))
    common.report("Evaluation: CPU time, medians", rows, args.json)


if __name__ == "__main__":
    main()
