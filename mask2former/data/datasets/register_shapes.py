"""Registers the synthetic data set "shapes" in its three forms: shapes_{train,val}_{instance,panoptic,semantic}.

`python datasets/prepare_shapes.py` makes the files; importing this reads none. Like COCO with semantic labels, the
panoptic form carries everything: one model trained on it is scored with PQ, AP and mIoU.
"""

import os
from functools import partial
from typing import Any

from detectron2.data.datasets import load_coco_json

from ._common import datasets_root, load_labels, load_panoptic, register

MAKE = "Make it with `python datasets/prepare_shapes.py` (some seconds)."

SHAPES_CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "ball", "isthing": 1, "color": [230, 60, 60]},
    {"id": 2, "name": "crate", "isthing": 1, "color": [150, 95, 40]},
    {"id": 3, "name": "star", "isthing": 1, "color": [250, 215, 40]},
    {"id": 4, "name": "leaf", "isthing": 1, "color": [120, 220, 60]},
    {"id": 5, "name": "ring", "isthing": 1, "color": [220, 60, 220]},
    {"id": 6, "name": "kite", "isthing": 1, "color": [255, 140, 160]},
    {"id": 7, "name": "fish", "isthing": 1, "color": [255, 130, 20]},
    {"id": 8, "name": "cross", "isthing": 1, "color": [235, 235, 235]},
    # As in COCO, there is a gap between the ids of things and of stuff.
    {"id": 11, "name": "sky", "isthing": 0, "color": [130, 190, 245]},
    {"id": 12, "name": "grass", "isthing": 0, "color": [40, 120, 40]},
    {"id": 13, "name": "sand", "isthing": 0, "color": [215, 190, 130]},
    {"id": 14, "name": "water", "isthing": 0, "color": [20, 70, 150]},
    {"id": 15, "name": "brick", "isthing": 0, "color": [130, 60, 50]},
]
"""Things, then stuff; the position in this list is the class in the model and in the semantic PNG."""

_THINGS = [row for row in SHAPES_CATEGORIES if row["isthing"]]


def _thing_metadata() -> dict[str, Any]:
    return {
        "thing_classes": [row["name"] for row in _THINGS],
        "thing_colors": [row["color"] for row in _THINGS],
        "thing_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(_THINGS)},
    }


def _semantic_metadata() -> dict[str, Any]:
    """All classes as "stuff": for semantic segmentation things are classes like the others."""
    return {
        "stuff_classes": [row["name"] for row in SHAPES_CATEGORIES],
        "stuff_colors": [row["color"] for row in SHAPES_CATEGORIES],
        "stuff_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(SHAPES_CATEGORIES)},
        "ignore_label": 255,
    }


def register_all_shapes(root: str) -> None:
    """Register the training and validation images as found in the folder `root`/shapes."""
    meta = {**_thing_metadata(), **_semantic_metadata()}
    for split in ("train", "val"):
        folder = os.path.join(root, "shapes", split)
        images, panoptic, semantic = (os.path.join(folder, part) for part in ("images", "panoptic", "semantic"))
        instances_json, panoptic_json = (os.path.join(folder, f"{part}.json") for part in ("instances", "panoptic"))
        name = f"shapes_{split}_instance"
        register(
            name,
            partial(load_coco_json, instances_json, images, name),
            [folder],
            MAKE,
            evaluator_type="coco",
            json_file=instances_json,
            image_root=images,
            **_thing_metadata(),
        )
        name = f"shapes_{split}_panoptic"
        register(
            name,
            partial(load_panoptic, name, panoptic_json, images, panoptic, semantic, meta),
            [folder],
            MAKE,
            evaluator_type="coco_panoptic_seg",
            json_file=instances_json,
            image_root=images,
            panoptic_json=panoptic_json,
            panoptic_root=panoptic,
            sem_seg_root=semantic,
            label_divisor=1000,
            **meta,
        )
        name = f"shapes_{split}_semantic"
        register(
            name,
            partial(load_labels, name, semantic, images),
            [folder],
            MAKE,
            evaluator_type="sem_seg",
            image_root=images,
            sem_seg_root=semantic,
            **_semantic_metadata(),
        )


register_all_shapes(datasets_root())
