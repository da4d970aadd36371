"""Check Mapillary Vistas v1.2, and make its instances in COCO's format: mapillary_vistas_instance_{train,val}.json.

    python datasets/prepare_mapillary_vistas.py [--check] [--jobs N] [--datasets FOLDER]

Training and scoring with PQ and mIoU need nothing but the download. The json is for mask AP (TEST.INSTANCE_ON).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _runner import Item, Record, Step, labels_within, main, need, pair, read_image, same_size
from _segments import check_panoptic, image_record, instance, instances_step
from panopticapi.utils import rgb2id

from mask2former.data.datasets.register_mapillary_vistas import MAPILLARY_VISTAS_CATEGORIES, UNLABELED

# The panoptic json counts classes from 1.
THINGS = [{"id": row["id"] + 1, "name": row["name"]} for row in MAPILLARY_VISTAS_CATEGORIES if row["isthing"]]
THING_IDS = {row["id"] for row in THINGS}


def read_segments(item: Item) -> np.ndarray:
    """(H, W) segment ids; ValueError unless image, labels, panoptic PNG and json agree."""
    files = item.inputs
    labels = read_image(files["labels"])
    if labels.ndim != 2:
        raise ValueError(f"{files['labels']} has {labels.shape[2]} channels, expected one: take labels of release 1.2.")
    same_size(labels, files["labels"], files["image"])
    labels_within(labels, files["labels"], range(UNLABELED + 1))
    ids = rgb2id(read_image(files["panoptic"], "RGB"))
    same_size(ids, files["panoptic"], files["image"])
    check_panoptic(ids, item.segments, files["panoptic"], range(1, UNLABELED + 1))
    for segment in item.segments:
        label = int(np.bincount(labels[ids == segment["id"]]).argmax())
        if label != segment["category_id"] - 1:
            raise ValueError(
                f"{files['panoptic']}: segment {segment['id']} has category_id {segment['category_id']}, but "
                f"{files['labels']} mostly says {label} there, expected {segment['category_id'] - 1}."
            )
    return ids


def convert(item: Item) -> Record:
    ids = read_segments(item)
    return {
        "image": image_record(item, ids.shape),
        "annotations": [
            instance(ids == segment["id"], segment["category_id"], segment.get("iscrowd", 0))
            for segment in item.segments
            if segment["category_id"] in THING_IDS
        ],
    }


def plan(root: Path) -> list[Step]:
    vistas = root / "mapillary_vistas"
    steps = []
    for split, name in (("train", "training"), ("val", "validation")):
        folder = vistas / name
        listed = folder / "panoptic" / "panoptic_2018.json"
        need(folder / "images", folder / "labels", listed)
        pairs, problems = pair(folder / "images", folder / "labels", (".jpg", ".png"))
        segments = {Path(a["file_name"]).stem: a for a in json.loads(listed.read_text())["annotations"]}
        items = []
        for stem, image, labels in pairs:
            if stem not in segments:
                problems.append(f"{listed} does not list {image}: download it again.")
                continue
            anno = segments[stem]
            files = {"image": image, "labels": labels, "panoptic": folder / "panoptic" / anno["file_name"]}
            items.append(Item(anno["image_id"], files, segments=anno["segments_info"]))
        target = vistas / f"mapillary_vistas_instance_{split}.json"
        steps.append(instances_step(f"Mapillary Vistas, {name}", items, convert, target, THINGS, problems))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
