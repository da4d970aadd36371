"""Panoptic Quality (Kirillov et al., 2019, section 4), with the rules COCO added for void and crowd regions.

A predicted and a true segment of one category match when their IoU is above 0.5, which at most one pair can be.
Per category: SQ = mean IoU of the matches, RQ = TP / (TP + FP/2 + FN/2), PQ = SQ RQ. Then the mean over categories.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from panopticapi.utils import MAX_ID

VOID = 0
_ID_BITS = 24  # ids come from three bytes of colour

Annotation = Mapping[str, Any]
Categories = Mapping[int, Mapping[str, Any]]

logger = logging.getLogger(__name__)


class PQStatCat:
    """Matches, misses and the sum of the matches' IoU, of one category."""

    def __init__(self) -> None:
        self.iou = 0.0
        self.tp = 0
        self.fp = 0
        self.fn = 0

    def __iadd__(self, other: "PQStatCat") -> "PQStatCat":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def quality(self) -> dict[str, float]:
        """{"pq", "sq", "rq"}, all 0 without a match."""
        size = self.tp + 0.5 * (self.fp + self.fn)
        if self.tp == 0:
            return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
        return {"pq": self.iou / size, "sq": self.iou / self.tp, "rq": self.tp / size}


class PQStat:
    """What PQ is computed from: one `PQStatCat` per category id. Add those of several images with `+=`."""

    def __init__(self) -> None:
        self.pq_per_cat: defaultdict[int, PQStatCat] = defaultdict(PQStatCat)

    def __getitem__(self, category: int) -> PQStatCat:
        return self.pq_per_cat[category]

    def __iadd__(self, other: "PQStat") -> "PQStat":
        for category, stat in other.pq_per_cat.items():
            self.pq_per_cat[category] += stat
        return self

    def pq_average(
        self, categories: Categories, isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Mean over the categories that occur, in ground truth or as false positives.

        Args:
            isthing: only things (True), only stuff (False), or all (None).

        Returns:
            {"pq", "sq", "rq", "n"}, where n counts the categories that occur and the rest is NaN if none does;
            and {"pq", "sq", "rq"} for each category id.
        """
        chosen = [key for key, info in categories.items() if isthing is None or bool(info["isthing"]) == isthing]
        per_class = {key: self[key].quality() for key in chosen}
        seen = [per_class[key] for key in chosen if self[key].tp + self[key].fp + self[key].fn]
        mean = {name: _mean([quality[name] for quality in seen]) for name in ("pq", "sq", "rq")}
        return {**mean, "n": len(seen)}, per_class


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def count_pairs(gt_ids: np.ndarray, pred_ids: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Count the pixels of each (ground truth id, predicted id) that occurs.

    Segments are connected, so most pixels equal the one before: only the starts of runs are packed into one integer and
    sorted, which makes this many times faster than sorting pixels.

    Args:
        gt_ids, pred_ids: (H, W) ids in 0..2^24 - 1.

    Yields:
        ground truth id, predicted id, number of pixels.
    """
    true, predicted = gt_ids.ravel(), pred_ids.ravel()
    differs = np.zeros(-(-true.size // 8) * 8, dtype=bool)  # from the pixel before
    for ids in (true, predicted):
        differs[1 : true.size] |= ids[1:] != ids[:-1]
    differs[: min(true.size, 1)] = True
    filled = np.flatnonzero(differs.view(np.uint64) != 0)  # eight at once: few are set
    starts = (8 * filled[:, None] + np.arange(8))[differs.reshape(-1, 8)[filled]]
    lengths = np.diff(starts, append=true.size)
    packed = true[starts].astype(np.int64) << _ID_BITS | predicted[starts]
    pairs, which = np.unique(packed, return_inverse=True)
    pixels = np.bincount(which, weights=lengths, minlength=len(pairs))
    for pair, count in zip(pairs.tolist(), pixels.tolist()):
        yield pair >> _ID_BITS, pair & ((1 << _ID_BITS) - 1), int(count)


def pq_of_image(
    gt_ids: np.ndarray,
    pred_ids: np.ndarray,
    gt_ann: Annotation,
    pred_ann: Annotation,
    categories: Categories,
) -> PQStat:
    """Compare one image's segments.

    Args:
        gt_ids, pred_ids: (H, W) segment ids, 0 where there is no segment.
        gt_ann, pred_ann: the image's entries of the two JSON files: "segments_info" with "id", "category_id" and, for
            ground truth, "area" and "iscrowd". (True areas are the ones in the JSON, predicted ones are counted.)

    Raises:
        KeyError: a predicted segment is only in the PNG or only in the JSON, or has a category that is not known.
        ValueError: the two have different sizes.
    """
    name = pred_ann.get("file_name", gt_ann.get("image_id"))
    if gt_ids.shape != pred_ids.shape:
        raise ValueError(f"image {name}: the prediction is {pred_ids.shape}, the ground truth {gt_ids.shape}")
    gt_segments = {segment["id"]: segment for segment in gt_ann["segments_info"]}
    pred_category = {segment["id"]: segment["category_id"] for segment in pred_ann["segments_info"]}
    overlap: dict[tuple[int, int], int] = {}
    pred_area: defaultdict[int, int] = defaultdict(int)
    for gt_id, pred_id, pixels in count_pairs(gt_ids, pred_ids):
        overlap[gt_id, pred_id] = pixels
        pred_area[pred_id] += pixels
    pred_area.pop(VOID, None)
    _check_prediction(name, pred_category, pred_area.keys(), categories)

    stat = PQStat()
    matched: set[tuple[str, int]] = set()
    for (gt_id, pred_id), intersection in overlap.items():
        true = gt_segments.get(gt_id)
        if true is None or true.get("iscrowd", 0) == 1 or pred_category.get(pred_id) != true["category_id"]:
            continue
        unlabelled = overlap.get((VOID, pred_id), 0)
        union = pred_area[pred_id] + true["area"] - intersection - unlabelled
        if 2 * intersection > union:
            stat[true["category_id"]].tp += 1
            stat[true["category_id"]].iou += intersection / union
            matched |= {("gt", gt_id), ("pred", pred_id)}

    crowd_of: dict[int, int] = {}  # category -> its crowd region; COCO has one for each image and category
    for gt_id, true in gt_segments.items():
        if true.get("iscrowd", 0) == 1:
            crowd_of[true["category_id"]] = gt_id
        elif ("gt", gt_id) not in matched:
            stat[true["category_id"]].fn += 1
    for pred_id, category in pred_category.items():
        if ("pred", pred_id) in matched:
            continue
        ignored = overlap.get((VOID, pred_id), 0)
        if category in crowd_of:
            ignored += overlap.get((crowd_of[category], pred_id), 0)
        if 2 * ignored <= pred_area[pred_id]:
            stat[category].fp += 1
    return stat


def _check_prediction(name: Any, pred_category: Mapping[int, int], in_png: Any, categories: Categories) -> None:
    """KeyError where ids of PNG and JSON differ or a category is unknown."""
    for message, wrong in (
        ("in the PNG but not in the JSON: segments", set(in_png) - pred_category.keys()),
        ("in the JSON but not in the PNG: segments", pred_category.keys() - set(in_png)),
        ("predicted but not known: categories", set(pred_category.values()) - categories.keys()),
    ):
        if wrong:
            raise KeyError(f"image {name}: {message} {sorted(wrong)}")


def read_ids(path: str | Path) -> np.ndarray:
    """Read a panoptic PNG as (H, W) int32 ids."""
    with Image.open(path) as image:
        pixels = image if image.mode == "RGB" else image.convert("RGB")
        # Pillow keeps colours in four bytes: read as one number they are the id, above it a byte without meaning.
        ids = np.frombuffer(pixels.tobytes("raw", "RGBX"), dtype="<i4") & MAX_ID
    return ids.reshape(image.height, image.width)


def pq_compute_single_core(
    proc_id: int,
    annotation_set: Sequence[tuple[Annotation, Annotation]],
    gt_folder: str | Path,
    pred_folder: str | Path,
    categories: Categories,
) -> PQStat:
    """Sum up (ground truth, prediction) pairs of annotations, one image at a time."""
    total = PQStat()
    for gt_ann, pred_ann in annotation_set:
        gt_ids = read_ids(Path(gt_folder) / gt_ann["file_name"])
        pred_ids = read_ids(Path(pred_folder) / pred_ann["file_name"])
        total += pq_of_image(gt_ids, pred_ids, gt_ann, pred_ann, categories)
    logger.debug("worker %d: %d images done", proc_id, len(annotation_set))
    return total


def pq_compute_multi_core(
    matched_annotations_list: Sequence[tuple[Annotation, Annotation]],
    gt_folder: str | Path,
    pred_folder: str | Path,
    categories: Categories,
) -> PQStat:
    """The same on all CPU cores. Threads will do: reading PNGs and counting leave Python's lock alone."""
    workers = os.cpu_count() or 1
    total = PQStat()
    with ThreadPoolExecutor(workers) as pool:
        shares = [matched_annotations_list[start::workers] for start in range(workers)]
        jobs = [
            pool.submit(pq_compute_single_core, number, share, gt_folder, pred_folder, categories)
            for number, share in enumerate(shares)
        ]
        for job in jobs:
            total += job.result()
    return total


def summarize(stat: PQStat, categories: Categories) -> dict[str, Any]:
    """{"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {id: {"pq", "sq", "rq"}}}."""
    everything, per_class = stat.pq_average(categories, isthing=None)
    things, _ = stat.pq_average(categories, isthing=True)
    stuff, _ = stat.pq_average(categories, isthing=False)
    return {"All": everything, "Things": things, "Stuff": stuff, "per_class": per_class}


def pq_compute(
    gt_json_file: str | Path,
    pred_json_file: str | Path,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Panoptic Quality of a file of predictions, in COCO's panoptic format.

    Args:
        gt_folder, pred_folder: where the PNGs are; by default the JSON's path without ".json".

    Returns:
        see `summarize`; values in 0..1.

    Raises:
        ValueError: an image of the ground truth has no prediction.
        KeyError: see `pq_of_image`.
    """
    gt_json, pred_json = (json.loads(Path(file).read_text()) for file in (gt_json_file, pred_json_file))
    gt_dir, pred_dir = (
        Path(folder) if folder is not None else Path(str(file).removesuffix(".json"))
        for folder, file in ((gt_folder, gt_json_file), (pred_folder, pred_json_file))
    )
    categories = {category["id"]: category for category in gt_json["categories"]}
    predictions = {ann["image_id"]: ann for ann in pred_json["annotations"]}
    missing = [ann["image_id"] for ann in gt_json["annotations"] if ann["image_id"] not in predictions]
    if missing:
        raise ValueError(f"{len(missing)} images have no prediction: {missing[:10]}; predict every image of the set")
    pairs = [(ann, predictions[ann["image_id"]]) for ann in gt_json["annotations"]]
    return summarize(pq_compute_multi_core(pairs, gt_dir, pred_dir, categories), categories)
