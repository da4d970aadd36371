"""Registers COCO-Stuff 10k, 171 classes: coco_2017_{train,test}_stuff_10k_sem_seg. Importing this reads no data."""

import os
from functools import partial

from ._common import class_table, column, datasets_root, id_map, load_labels, register

COCO_STUFF_10K_CATEGORIES = class_table("coco_stuff_10k")


def register_all_coco_stuff_10k(root: str) -> None:
    """Register both splits as found in `root`/coco/coco_stuff_10k."""
    for split in ("train", "test"):
        folder = os.path.join(root, "coco", "coco_stuff_10k")
        images, labels = (os.path.join(folder, f"{part}_detectron2", split) for part in ("images", "annotations"))
        name = f"coco_2017_{split}_stuff_10k_sem_seg"
        register(
            name,
            partial(load_labels, name, labels, images),
            [images, labels],
            "Make them with `python datasets/prepare_coco_stuff_10k.py`.",
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=255,
            stuff_classes=column(COCO_STUFF_10K_CATEGORIES, "name"),
            stuff_dataset_id_to_contiguous_id=id_map(COCO_STUFF_10K_CATEGORIES),
        )


register_all_coco_stuff_10k(datasets_root())
