"""Make semantic labels of COCO from its panoptic ones: coco/panoptic_semseg_{train,val}2017.

    python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py [--check] [--jobs N] [--datasets FOLDER]

A pixel becomes the position of its class in COCO's list of 133; 255 where nothing is labelled. They are needed to score
panoptic models with mIoU, not for training.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _runner import Item, Step, label_step, main, need, read_image, same_size
from _segments import check_panoptic
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import rgb2id

IGNORE = 255
POSITION = {row["id"]: position for position, row in enumerate(COCO_CATEGORIES)}


def semantic_map(item: Item) -> np.ndarray:
    """(H, W) uint8; ValueError where PNG, json and image do not belong together."""
    source, segments = item.inputs["panoptic"], item.segments
    ids = rgb2id(read_image(source, "RGB"))
    same_size(ids, source, item.inputs["image"])
    check_panoptic(ids, segments, source, POSITION)
    class_of = {0: IGNORE, **{segment["id"]: POSITION[segment["category_id"]] for segment in segments}}
    present, inverse = np.unique(ids, return_inverse=True)
    return np.array([class_of[id_] for id_ in present.tolist()], np.uint8)[inverse.reshape(ids.shape)]


def plan(root: Path) -> list[Step]:
    coco = root / "coco"
    steps = []
    for split in ("val2017", "train2017"):
        panoptic_json, panoptic, images = (
            coco / "annotations" / f"panoptic_{split}.json",
            coco / f"panoptic_{split}",
            coco / split,
        )
        need(panoptic_json, panoptic, images)
        items = [
            Item(
                anno["file_name"],
                {"panoptic": panoptic / anno["file_name"], "image": images / f"{Path(anno['file_name']).stem}.jpg"},
                coco / f"panoptic_semseg_{split}" / anno["file_name"],
                anno["segments_info"],
            )
            for anno in json.loads(panoptic_json.read_text())["annotations"]
        ]
        steps.append(label_step(f"COCO semantic, {split}", items, semantic_map))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
