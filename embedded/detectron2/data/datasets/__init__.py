"""Loading and registering data sets; importing this registers the built-in names and reads nothing."""

from detectron2._unsupported import missing

from . import builtin as _builtin  # noqa: F401
from .coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated

__all__ = [
    "convert_to_coco_json",
    "load_coco_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]

__getattr__ = missing(__name__)
