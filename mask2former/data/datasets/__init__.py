"""Data sets: importing this registers their names and reads nothing."""

from . import register_coco_panoptic_annos_semseg, register_shapes  # noqa: F401
