"""Registers COCO under its usual names. Files are looked for under DETECTRON2_DATASETS (default: datasets)."""

import os

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated

# name: (folder of images, annotations), under coco/
_COCO_INSTANCES = {
    "coco_2014_train": ("train2014", "instances_train2014.json"),
    "coco_2014_val": ("val2014", "instances_val2014.json"),
    "coco_2014_minival": ("val2014", "instances_minival2014.json"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "coco_2017_train": ("train2017", "instances_train2017.json"),
    "coco_2017_val": ("val2017", "instances_val2017.json"),
    "coco_2017_test": ("test2017", "image_info_test2017.json"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100.json"),
}

# name: (folder of images, what the names of panoptic files end in)
_COCO_PANOPTIC = {
    "coco_2017_train_panoptic": ("train2017", "train2017"),
    "coco_2017_val_panoptic": ("val2017", "val2017"),
    "coco_2017_val_100_panoptic": ("val2017", "val2017_100"),
}


def register_all_coco(root: str) -> None:
    """Register COCO 2014 and 2017, instances and panoptic, as found in the folder `root`/coco."""
    coco = os.path.join(root, "coco")
    annotations = os.path.join(coco, "annotations")
    for name, (images, json_file) in _COCO_INSTANCES.items():
        register_coco_instances(
            name, _get_builtin_metadata("coco"), os.path.join(annotations, json_file), os.path.join(coco, images)
        )
    for name, (images, split) in _COCO_PANOPTIC.items():
        files = {
            "image_root": os.path.join(coco, images),
            "panoptic_root": os.path.join(coco, f"panoptic_{split}"),
            "panoptic_json": os.path.join(annotations, f"panoptic_{split}.json"),
            "instances_json": os.path.join(annotations, f"instances_{split}.json"),
        }
        register_coco_panoptic(name, _get_builtin_metadata("coco_panoptic_standard"), **files)
        register_coco_panoptic_separated(
            name,
            _get_builtin_metadata("coco_panoptic_separated"),
            sem_seg_root=os.path.join(coco, f"panoptic_stuff_{split}"),
            **files,
        )


register_all_coco(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
