"""Registers COCO 2017 panoptic with semantic labels: coco_2017_{train,val}_panoptic_with_sem_seg.

Semantic labels (coco/panoptic_semseg_{train,val}2017) number all 133 classes, so that one panoptic model is scored with
PQ, AP and mIoU. Importing this reads nothing.
"""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import coco_panoptic
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES


def load_coco_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, semseg_dir: str, meta: dict[str, Any]
) -> list[dict]:
    """Panoptic segments in COCO's format, and beside each PNG of them one of the same name with semantic labels.

    Args:
        json_file: the annotations.
        image_dir: folder of the images.
        gt_dir: folder of the panoptic PNG files.
        semseg_dir: folder of the semantic PNG files.
        meta: has thing_dataset_id_to_contiguous_id and stuff_dataset_id_to_contiguous_id.

    Returns:
        Dataset dicts as of detectron2's load_coco_panoptic_json, with sem_seg_file_name.
    """
    if not os.path.isdir(semseg_dir):
        raise FileNotFoundError(
            f"The folder of semantic labels {semseg_dir!r} does not exist (looked at from {os.getcwd()!r}). For COCO, "
            "make it with `python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py`; DETECTRON2_DATASETS "
            "names the folder that holds all data sets (default: ./datasets)."
        )
    records = coco_panoptic.load_coco_panoptic_json(json_file, image_dir, gt_dir, meta)
    for record in records:
        name = os.path.basename(record["pan_seg_file_name"])
        record["sem_seg_file_name"] = os.path.join(semseg_dir, name)
    return records


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
    for split in ("train", "val"):
        _use_thing_names_only(f"coco_2017_{split}_panoptic")
        files = {
            "image_root": os.path.join(root, f"coco/{split}2017"),
            "panoptic_root": os.path.join(root, f"coco/panoptic_{split}2017"),
            "panoptic_json": os.path.join(root, f"coco/annotations/panoptic_{split}2017.json"),
            "sem_seg_root": os.path.join(root, f"coco/panoptic_semseg_{split}2017"),
        }
        name = f"coco_2017_{split}_panoptic_with_sem_seg"
        DatasetCatalog.register(name, lambda files=files: _load(files))
        MetadataCatalog.get(name).set(
            json_file=os.path.join(root, f"coco/annotations/instances_{split}2017.json"),
            evaluator_type="coco_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
            **files,
            **get_metadata(),
        )


def _load(files: dict[str, str]) -> list[dict]:
    return load_coco_panoptic_json(
        files["panoptic_json"], files["image_root"], files["panoptic_root"], files["sem_seg_root"], get_metadata()
    )


def _use_thing_names_only(name: str) -> None:
    """detectron2 lists all 133 classes as things of its panoptic COCO; drawing and AP of instances need the 80."""
    meta = MetadataCatalog.get(name)
    for key in ("thing_classes", "thing_colors"):
        if hasattr(meta, key):
            delattr(meta, key)
        setattr(meta, key, get_metadata()[key])


register_all_coco_panoptic_annos_sem_seg(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
