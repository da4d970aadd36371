"""Registers ADE20K: 150 classes semantic and panoptic, 100 classes instance, and the full 847 classes semantic.

ade20k_{sem_seg,panoptic,instance,full_sem_seg}_{train,val}; importing this reads no data.
"""

import os
from functools import partial
from typing import Any

from detectron2.data.datasets import load_coco_json

from ._common import class_table, column, datasets_root, id_map, load_labels, load_panoptic, register

ADE20K_150_CATEGORIES = class_table("ade20k_150")
ADE20K_INSTANCE_CATEGORIES = class_table("ade20k_instance")
"""The 100 things, by ascending id; some names differ from those of the 150 classes."""
ADE20K_FULL_CATEGORIES = class_table("ade20k_full")
"""Position: class of the model; id: number in the released label images."""

SPLITS = {"train": "training", "val": "validation"}


def panoptic_metadata() -> dict[str, Any]:
    """All 150 classes as "stuff", because semantic segmentation treats them alike; 100 of them are things.

    A thing's class in the model is its position among the 150, so the ids of things are scattered.
    """
    things = [row for row in ADE20K_150_CATEGORIES if row["isthing"]]
    positions = id_map(ADE20K_150_CATEGORIES)
    return {
        "thing_classes": column(things, "name"),
        "thing_colors": column(things, "color"),
        "thing_dataset_id_to_contiguous_id": {row["id"]: positions[row["id"]] for row in things},
        **semantic_metadata(),
        "stuff_dataset_id_to_contiguous_id": positions,
    }


def semantic_metadata() -> dict[str, Any]:
    return {
        "stuff_classes": column(ADE20K_150_CATEGORIES, "name"),
        "stuff_colors": column(ADE20K_150_CATEGORIES, "color"),
    }


def instance_metadata() -> dict[str, Any]:
    return {
        "thing_classes": column(ADE20K_INSTANCE_CATEGORIES, "name"),
        "thing_dataset_id_to_contiguous_id": id_map(ADE20K_INSTANCE_CATEGORIES),
    }


def register_all_ade20k(root: str) -> None:
    """Register every form of ADE20K as found in `root`/ADEChallengeData2016 and `root`/ADE20K_2021_17_01."""
    for split, folder in SPLITS.items():
        _register_challenge(os.path.join(root, "ADEChallengeData2016"), split, folder)
        _register_full(os.path.join(root, "ADE20K_2021_17_01"), split, folder)


def _register_challenge(ade: str, split: str, folder: str) -> None:
    images = os.path.join(ade, "images", folder)
    labels = os.path.join(ade, "annotations_detectron2", folder)
    instances_json = os.path.join(ade, f"ade20k_instance_{split}.json")
    panoptic = os.path.join(ade, f"ade20k_panoptic_{split}")
    name = f"ade20k_sem_seg_{split}"
    register(
        name,
        partial(load_labels, name, labels, images),
        [images, labels],
        "Make label images with `python datasets/prepare_ade20k_sem_seg.py`.",
        image_root=images,
        sem_seg_root=labels,
        evaluator_type="sem_seg",
        ignore_label=255,
        **semantic_metadata(),
    )
    name = f"ade20k_instance_{split}"
    register(
        name,
        partial(load_coco_json, instances_json, images, name),
        [images, instances_json],
        "Make the json with `python datasets/prepare_ade20k_ins_seg.py`.",
        image_root=images,
        json_file=instances_json,
        evaluator_type="coco",
        **instance_metadata(),
    )
    name = f"ade20k_panoptic_{split}"
    meta = panoptic_metadata()
    register(
        name,
        partial(load_panoptic, name, f"{panoptic}.json", images, panoptic, labels, meta),
        [images, panoptic, f"{panoptic}.json", labels],
        "Make the files with `python datasets/prepare_ade20k_sem_seg.py` and prepare_ade20k_pan_seg.py.",
        evaluator_type="ade20k_panoptic_seg",
        image_root=images,
        json_file=instances_json,
        sem_seg_root=labels,
        ignore_label=255,
        panoptic_root=panoptic,
        panoptic_json=f"{panoptic}.json",
        label_divisor=1000,
        **meta,
    )


def _register_full(ade: str, split: str, folder: str) -> None:
    images, labels = (os.path.join(ade, part, folder) for part in ("images_detectron2", "annotations_detectron2"))
    name = f"ade20k_full_sem_seg_{split}"
    register(
        name,
        partial(load_labels, name, labels, images, gt_ext="tif"),
        [images, labels],
        "Make them with `python datasets/prepare_ade20k_full_sem_seg.py`.",
        image_root=images,
        sem_seg_root=labels,
        evaluator_type="sem_seg",
        ignore_label=65535,  # 16 bit: 847 classes do not fit into 8
        stuff_classes=column(ADE20K_FULL_CATEGORIES, "name"),
    )


register_all_ade20k(datasets_root())
