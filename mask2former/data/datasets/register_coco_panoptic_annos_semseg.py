"""Registers COCO 2017 panoptic with semantic labels: coco_2017_{train,val}_panoptic_with_sem_seg.

Semantic labels (coco/panoptic_semseg_{train,val}2017) number all 133 classes, so that one panoptic model is scored with
PQ, AP and mIoU. Importing this reads nothing.
"""

import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ._common import datasets_root, load_panoptic, register


def get_metadata() -> dict[str, Any]:
    """80 things by position; all 133 classes as "stuff", because semantic segmentation treats them alike."""
    things = [row for row in COCO_CATEGORIES if row["isthing"]]
    return {
        "thing_classes": [row["name"] for row in things],
        "thing_colors": [row["color"] for row in things],
        "thing_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(things)},
        "stuff_classes": [row["name"] for row in COCO_CATEGORIES],
        "stuff_colors": [row["color"] for row in COCO_CATEGORIES],
        "stuff_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(COCO_CATEGORIES)},
    }


def register_all_coco_panoptic_annos_sem_seg(root: str) -> None:
    """Register both splits as found in the folder `root`/coco."""
    coco = os.path.join(root, "coco")
    for split in ("train", "val"):
        _say_what_is_missing(f"coco_2017_{split}", "image_root", "json_file")
        _say_what_is_missing(f"coco_2017_{split}_panoptic", "image_root", "panoptic_root", "panoptic_json")
        _use_thing_names_only(f"coco_2017_{split}_panoptic")
        images, panoptic, semantic = (
            os.path.join(coco, f"{part}{split}2017") for part in ("", "panoptic_", "panoptic_semseg_")
        )
        panoptic_json = os.path.join(coco, "annotations", f"panoptic_{split}2017.json")
        name = f"coco_2017_{split}_panoptic_with_sem_seg"
        register(
            name,
            partial(load_panoptic, name, panoptic_json, images, panoptic, semantic, get_metadata()),
            [images, panoptic, panoptic_json, semantic],
            "Make semantic labels with `python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py`.",
            image_root=images,
            panoptic_root=panoptic,
            panoptic_json=panoptic_json,
            sem_seg_root=semantic,
            json_file=os.path.join(coco, "annotations", f"instances_{split}2017.json"),
            evaluator_type="coco_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
            **get_metadata(),
        )


def _say_what_is_missing(name: str, *keys: str) -> None:
    """Let detectron2's own name of a data set check the files that its metadata names before it reads them."""
    meta = MetadataCatalog.get(name)
    register(name, DatasetCatalog[name], [meta.get(key) for key in keys])


def _use_thing_names_only(name: str) -> None:
    """detectron2 lists all 133 classes as things of its panoptic COCO; drawing and AP of instances need the 80."""
    meta = MetadataCatalog.get(name)
    for key in ("thing_classes", "thing_colors"):
        if hasattr(meta, key):
            delattr(meta, key)
        setattr(meta, key, get_metadata()[key])


register_all_coco_panoptic_annos_sem_seg(datasets_root())
