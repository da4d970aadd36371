"""Data sets: importing this registers their names and reads none of their files."""

from . import (  # noqa: F401
    register_ade20k,
    register_cityscapes,
    register_coco_panoptic_annos_semseg,
    register_coco_stuff_10k,
    register_mapillary_vistas,
    register_shapes,
)
