"""Registers Cityscapes with fine annotations; importing this reads no data.

cityscapes_fine_{instance_seg,sem_seg}_{train,val,test} and cityscapes_fine_panoptic_{train,val}.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from detectron2.structures import BoxMode
from shapely.geometry.base import BaseGeometry

from ._common import class_table, column, datasets_root, register

CITYSCAPES_CATEGORIES = class_table("cityscapes")
"""The 19 classes that are scored; the position is what Cityscapes calls trainId."""

_THINGS = {row["name"]: index for index, row in enumerate(r for r in CITYSCAPES_CATEGORIES if r["isthing"])}
_IMAGE, _POLYGONS = "_leftImg8bit.png", "_gtFine_polygons.json"
# Drawn over others, but of no class at all: Cityscapes gives them negative ids.
_NOT_DRAWN = ("license plate",)


def _files(image_dir: str, gt_dir: str) -> Iterator[tuple[str, str]]:
    """Each image of every city, and what the names of its annotations start with."""
    for image in sorted(Path(image_dir).glob(f"*/*{_IMAGE}")):
        stem = image.name.removesuffix(_IMAGE)
        yield str(image), os.path.join(gt_dir, image.parent.name, stem)


def _records(name: str, image_dir: str, gt_dir: str, endings: dict[str, str]) -> list[dict]:
    """Dicts with file_name and a file per entry of `endings`, all of which must be there."""
    records = []
    for image, start in _files(image_dir, gt_dir):
        record = {"file_name": image, **{key: start + ending for key, ending in endings.items()}}
        missing = [path for path in record.values() if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"Dataset '{name}': {image} has no {missing[0]}. Make label images with "
                "`python datasets/prepare_cityscapes.py`, or download gtFine again."
            )
        records.append(record)
    if not records:
        raise FileNotFoundError(f"Dataset '{name}': no */*{_IMAGE} in {os.path.abspath(image_dir)}.")
    return records


def load_cityscapes_semantic(name: str, image_dir: str, gt_dir: str) -> list[dict]:
    """Dicts with file_name, sem_seg_file_name, height, width."""
    endings = {"sem_seg_file_name": "_gtFine_labelTrainIds.png", "polygons": _POLYGONS}
    records = _records(name, image_dir, gt_dir, endings)
    for record in records:
        annotation = json.loads(Path(record.pop("polygons")).read_text())
        record.update(height=annotation["imgHeight"], width=annotation["imgWidth"])
    return records


def load_cityscapes_instances(name: str, image_dir: str, gt_dir: str) -> list[dict]:
    """Dicts with file_name, image_id, height, width, annotations (visible polygons; groups are crowds)."""
    records = _records(name, image_dir, gt_dir, {"polygons": _POLYGONS})
    for record in records:
        annotation = json.loads(Path(record.pop("polygons")).read_text())
        record.update(
            image_id=os.path.basename(record["file_name"]),
            height=annotation["imgHeight"],
            width=annotation["imgWidth"],
            annotations=visible_instances(annotation["objects"]),
        )
    return records


def visible_instances(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is seen of each thing: its outline without everything drawn after it.

    Args:
        objects: label and polygon (points x, y) each, in the order in which they are drawn.

    Returns:
        Annotations with contiguous category_id, iscrowd, bbox (XYXY), segmentation (polygons), nearest first.
    """
    covered: BaseGeometry = shapely.Polygon()
    annotations = []
    for item in reversed(objects):
        if item.get("deleted") or item["label"] in _NOT_DRAWN:
            continue
        # A point names a pixel: half a pixel further is its middle, and half a pixel around it its extent.
        outline = shapely.Polygon(np.asarray(item["polygon"], float) + 0.5).buffer(0.5, quad_segs=4)
        visible = outline.difference(covered)
        covered = covered.union(outline)
        group = item["label"] not in _THINGS and item["label"].endswith("group")
        label = item["label"].removesuffix("group") if group else item["label"]
        if label not in _THINGS or visible.is_empty:
            continue
        parts = [part for part in shapely.get_parts(visible) if isinstance(part, shapely.Polygon)]
        annotations.append(
            {
                "category_id": _THINGS[label],
                "iscrowd": int(group),
                "bbox": list(visible.bounds),
                "bbox_mode": BoxMode.XYXY_ABS,
                "segmentation": [np.asarray(part.exterior.coords).ravel().tolist() for part in parts],
            }
        )
    return annotations


def load_cityscapes_panoptic(name: str, image_dir: str, gt_dir: str, panoptic: str) -> list[dict]:
    """Dicts with file_name, image_id, sem_seg_file_name, pan_seg_file_name, segments_info."""
    positions = {row["id"]: position for position, row in enumerate(CITYSCAPES_CATEGORIES)}
    annotations = {anno["image_id"]: anno for anno in json.loads(Path(f"{panoptic}.json").read_text())["annotations"]}
    records = _records(name, image_dir, gt_dir, {"sem_seg_file_name": "_gtFine_labelTrainIds.png"})
    for record in records:
        image_id = os.path.basename(record["file_name"]).removesuffix(_IMAGE)
        if image_id not in annotations:
            raise ValueError(
                f"Dataset '{name}': {panoptic}.json does not list {image_id}. Delete it and run "
                "`python datasets/prepare_cityscapes.py` again."
            )
        anno = annotations[image_id]
        record.update(
            image_id=image_id,
            pan_seg_file_name=os.path.join(panoptic, anno["file_name"]),
            segments_info=[{**s, "category_id": positions[s["category_id"]]} for s in anno["segments_info"]],
        )
    return records


def panoptic_metadata() -> dict[str, Any]:
    """Names and colours of all 19 classes as things and as stuff, so that a class of the model indexes either."""
    rows = CITYSCAPES_CATEGORIES
    names, colors = column(rows, "name"), column(rows, "color")
    return {
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": list(names),
        "stuff_colors": list(colors),
        "thing_dataset_id_to_contiguous_id": {r["id"]: n for n, r in enumerate(rows) if r["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {r["id"]: n for n, r in enumerate(rows) if not r["isthing"]},
    }


def register_all_cityscapes(root: str) -> None:
    """Register all tasks and splits as found in `root`/cityscapes."""
    make = "Make what gtFine does not come with by `python datasets/prepare_cityscapes.py`."
    classes = {"thing_classes": list(_THINGS), "stuff_classes": column(CITYSCAPES_CATEGORIES, "name")}
    for split in ("train", "val", "test"):
        images, truth = (os.path.join(root, "cityscapes", part, split) for part in ("leftImg8bit", "gtFine"))
        folders = {"image_dir": images, "gt_dir": truth}
        name = f"cityscapes_fine_instance_seg_{split}"
        load = partial(load_cityscapes_instances, name, images, truth)
        register(name, load, [images, truth], make, evaluator_type="cityscapes_instance", **folders, **classes)
        name = f"cityscapes_fine_sem_seg_{split}"
        load = partial(load_cityscapes_semantic, name, images, truth)
        meta = {"evaluator_type": "cityscapes_sem_seg", "ignore_label": 255, **folders, **classes}
        register(name, load, [images, truth], make, **meta)
        if split == "test":
            continue
        name = f"cityscapes_fine_panoptic_{split}"
        panoptic = os.path.join(root, "cityscapes", "gtFine", f"cityscapes_panoptic_{split}")
        register(
            name,
            partial(load_cityscapes_panoptic, name, images, truth, panoptic),
            [images, truth, panoptic, f"{panoptic}.json"],
            make,
            image_root=images,
            gt_dir=truth,
            panoptic_root=panoptic,
            panoptic_json=f"{panoptic}.json",
            evaluator_type="cityscapes_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
            **panoptic_metadata(),
        )


register_all_cityscapes(datasets_root())
