"""Panoptic Quality of semantic predictions: every class of an image is one segment, and nothing is a thing.

It shows how much of PQ recognising classes gives alone. H W size of an image.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import PQStat
from PIL import Image


def pq_of_labels(stat: PQStat, predicted: np.ndarray, true: np.ndarray, num_classes: int) -> None:
    """Add one image to `stat`.

    Args:
        predicted, true: (H, W) class of each pixel; anything outside 0 ... num_classes - 1 is void.

    Raises:
        ValueError: the two have different sizes.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"the prediction is {predicted.shape}, the ground truth {true.shape}")
    predicted, true = (
        np.where((labels >= 0) & (labels < num_classes), labels, num_classes).astype(np.int64)
        for labels in (predicted, true)
    )
    size = num_classes + 1
    pairs = np.bincount((true * size + predicted).ravel(), minlength=size**2).reshape(size, size)  # [true, predicted]
    true_area, predicted_area, on_void = pairs.sum(1), pairs.sum(0), pairs[num_classes]
    for label in range(num_classes):
        common = int(pairs[label, label])
        union = int(true_area[label] + predicted_area[label] - common - on_void[label])
        if common and 2 * common > union:
            stat[label].tp += 1
            stat[label].iou += common / union
            continue
        stat[label].fn += bool(true_area[label])
        # A segment that lies mostly on void is not judged.
        stat[label].fp += bool(predicted_area[label] and 2 * on_void[label] <= predicted_area[label])


def evaluate_semantic_pq(dataset_name: str, json_file: str | Path) -> dict[str, Any]:
    """Score the file that detectron2's SemSegEvaluator writes.

    Args:
        dataset_name: registered with sem_seg_file_name; its metadata has stuff_classes and ignore_label.
        json_file: sem_seg_predictions.json.

    Returns:
        {"PQ", "SQ", "RQ", "n", "PQ-<class>"...}: percent, and the number of classes that occur.

    Raises:
        ValueError: an image has no prediction, or a class is unknown.
    """
    metadata = MetadataCatalog.get(dataset_name)
    names = list(metadata.stuff_classes)
    predictions = _by_image(json.loads(Path(json_file).read_text()), json_file)
    images = DatasetCatalog.get(dataset_name)
    if missing := [r["file_name"] for r in images if r["file_name"] not in predictions]:
        raise ValueError(f"{json_file} lacks {len(missing)} of the {len(images)} images: {missing[:3]}")
    stat = PQStat()
    for record in images:
        with Image.open(record["sem_seg_file_name"]) as image:
            true = np.array(image, dtype=np.int64)
        true[true == metadata.ignore_label] = -1
        entries = predictions[record["file_name"]]
        pq_of_labels(stat, _label_map(entries, _to_class(metadata), true.shape, json_file), true, len(names))
    mean, per_class = stat.pq_average({i: {"isthing": 0} for i in range(len(names))}, isthing=None)
    scores = {key.upper(): 100 * mean[key] for key in ("pq", "sq", "rq")}
    return {**scores, "n": mean["n"], **{f"PQ-{name}": 100 * per_class[i]["pq"] for i, name in enumerate(names)}}


def _by_image(entries: list[dict[str, Any]], source: str | Path) -> dict[str, list[dict[str, Any]]]:
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if not {"file_name", "category_id", "segmentation"} <= entry.keys():
            raise ValueError(f"{source} is no sem_seg_predictions.json: an entry has only {sorted(entry)}")
        by_image[entry["file_name"]].append(entry)
    return by_image


def _to_class(metadata: Any) -> Mapping[int, int]:
    """The data set's ids to classes; they are the same where the metadata does not say."""
    identity = {i: i for i in range(len(metadata.stuff_classes))}
    return getattr(metadata, "stuff_dataset_id_to_contiguous_id", identity)


def _label_map(
    entries: Iterable[dict[str, Any]], to_class: Mapping[int, int], size: tuple[int, ...], source: str | Path
) -> np.ndarray:
    """(H, W) classes of one image from its masks, -1 where there is none."""
    labels = np.full(size, -1, dtype=np.int64)
    for entry in entries:
        mask = mask_util.decode(entry["segmentation"]).astype(bool)
        if mask.shape != size or entry["category_id"] not in to_class:
            raise ValueError(
                f"{source}, {entry['file_name']}: a mask of {mask.shape} with category_id {entry['category_id']}; "
                f"expected {tuple(size)} and one of {list(to_class)[:10]} ..."
            )
        labels[mask] = to_class[entry["category_id"]]
    return labels
