"""Classes, ids and colours of the built-in data sets, as published with them."""

import json
from pathlib import Path
from typing import Any

COCO_CATEGORIES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("coco_categories.json").read_text(encoding="utf-8")
)
"""The 133 panoptic classes of COCO: 80 things, then 53 stuff; id, name, isthing, color."""


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Metadata of "coco", "coco_panoptic_standard" or "coco_panoptic_separated"; KeyError for other names."""
    if dataset_name == "coco":
        return _things()
    if dataset_name == "coco_panoptic_standard":
        return _panoptic_standard()
    if dataset_name == "coco_panoptic_separated":
        return _panoptic_separated()
    raise KeyError(f"No built-in metadata for dataset {dataset_name}")


def _things() -> dict[str, Any]:
    rows = [row for row in COCO_CATEGORIES if row["isthing"]]
    return {
        "thing_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(rows)},
        "thing_classes": [row["name"] for row in rows],
        "thing_colors": [row["color"] for row in rows],
    }


def _panoptic_standard() -> dict[str, Any]:
    """One numbering, 0 to 132, for things and stuff; both lists of names are whole, so that it indexes either."""
    names = [row["name"] for row in COCO_CATEGORIES]
    colors = [row["color"] for row in COCO_CATEGORIES]
    ids = {row["id"]: index for index, row in enumerate(COCO_CATEGORIES)}
    thing_ids = {row["id"] for row in COCO_CATEGORIES if row["isthing"]}
    return {
        "thing_dataset_id_to_contiguous_id": {id_: index for id_, index in ids.items() if id_ in thing_ids},
        "stuff_dataset_id_to_contiguous_id": {id_: index for id_, index in ids.items() if id_ not in thing_ids},
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": list(names),
        "stuff_colors": list(colors),
    }


def _panoptic_separated() -> dict[str, Any]:
    """Two numberings: 80 things; and 54 stuff classes, where 0 stands for any thing."""
    stuff = [{"id": 0, "name": "things", "color": [82, 18, 128]}]
    stuff += [row for row in COCO_CATEGORIES if not row["isthing"]]
    return {
        **_things(),
        "stuff_dataset_id_to_contiguous_id": {row["id"]: index for index, row in enumerate(stuff)},
        "stuff_classes": [row["name"] for row in stuff],
        "stuff_colors": [row["color"] for row in stuff],
    }
