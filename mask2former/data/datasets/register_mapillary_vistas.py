"""Registers Mapillary Vistas v1.2: mapillary_vistas_{sem_seg,panoptic}_{train,val}. Importing this reads no data.

The data set has 66 classes; the last, "Unlabeled", is what the 65 others are ignored by.
"""

import os
from functools import partial
from typing import Any

from ._common import class_table, column, datasets_root, load_labels, load_panoptic, register

MAPILLARY_VISTAS_CATEGORIES = class_table("mapillary_vistas")
"""Position: value in the label images; the panoptic json counts from 1."""

UNLABELED = 65


def semantic_metadata() -> dict[str, Any]:
    rows = MAPILLARY_VISTAS_CATEGORIES[:UNLABELED]
    return {
        "stuff_classes": column(rows, "name"),
        "stuff_colors": column(rows, "color"),
        "ignore_label": UNLABELED,
    }


def panoptic_metadata() -> dict[str, Any]:
    """Names and colours of all 65 classes as things and as stuff, so that a class of the model indexes either."""
    rows = MAPILLARY_VISTAS_CATEGORIES[:UNLABELED]
    return {
        "thing_classes": column(rows, "name"),
        "thing_colors": column(rows, "color"),
        "thing_dataset_id_to_contiguous_id": {row["id"] + 1: row["id"] for row in rows if row["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {row["id"] + 1: row["id"] for row in rows},
        **semantic_metadata(),
    }


def register_all_mapillary_vistas(root: str) -> None:
    """Register both splits as found in `root`/mapillary_vistas."""
    for split, folder in (("train", "training"), ("val", "validation")):
        vistas = os.path.join(root, "mapillary_vistas")
        images, labels, panoptic = (os.path.join(vistas, folder, part) for part in ("images", "labels", "panoptic"))
        name = f"mapillary_vistas_sem_seg_{split}"
        register(
            name,
            partial(load_labels, name, labels, images),
            [images, labels],
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            **semantic_metadata(),
        )
        name = f"mapillary_vistas_panoptic_{split}"
        panoptic_json = os.path.join(panoptic, "panoptic_2018.json")
        meta = panoptic_metadata()
        register(
            name,
            partial(load_panoptic, name, panoptic_json, images, panoptic, labels, meta),
            [images, panoptic, panoptic_json, labels],
            image_root=images,
            panoptic_root=panoptic,
            panoptic_json=panoptic_json,
            sem_seg_root=labels,
            # Read only when TEST.INSTANCE_ON asks for AP.
            json_file=os.path.join(vistas, f"mapillary_vistas_instance_{split}.json"),
            evaluator_type="mapillary_vistas_panoptic_seg",
            label_divisor=1000,
            **meta,
        )


register_all_mapillary_vistas(datasets_root())
