"""Data sets in COCO's panoptic format: a json of segments, and a PNG per image with the id of each pixel."""

import os
from typing import Any

from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import explain_missing, load_coco_json, load_sem_seg, read_json

__all__ = [
    "load_coco_panoptic_json",
    "merge_to_panoptic",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]


def load_coco_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, meta: dict[str, Any], dataset_name: str | None = None
) -> list[dict]:
    """Load panoptic segments.

    Args:
        json_file: the annotations.
        image_dir: folder of the images, which are named as the PNG files, but .jpg.
        gt_dir: folder of the PNG files.
        meta: has thing_dataset_id_to_contiguous_id and stuff_dataset_id_to_contiguous_id.
        dataset_name: for messages only.

    Returns:
        One dataset dict per image, in the order of the file: file_name, image_id, pan_seg_file_name, segments_info
        (with contiguous category ids and "isthing").
    """
    for folder in (image_dir, gt_dir):
        if not PathManager.isdir(folder):
            raise explain_missing(folder, dataset_name)
    records = []
    for anno in read_json(json_file, dataset_name)["annotations"]:
        image_name = os.path.splitext(anno["file_name"])[0] + ".jpg"
        where = f"image {anno['image_id']} in {json_file}"
        records.append(
            {
                "file_name": os.path.join(image_dir, image_name),
                "image_id": int(anno["image_id"]),
                "pan_seg_file_name": os.path.join(gt_dir, anno["file_name"]),
                "segments_info": [_with_contiguous_id(segment, meta, where) for segment in anno["segments_info"]],
            }
        )
    assert records, f"No images found in {json_file}!"
    for key in ("file_name", "pan_seg_file_name"):
        assert PathManager.isfile(records[0][key]), f"{records[0][key]} is listed in {json_file}, but does not exist."
    return records


def _with_contiguous_id(segment: dict, meta: dict[str, Any], where: str) -> dict:
    category = segment["category_id"]
    things, stuff = meta["thing_dataset_id_to_contiguous_id"], meta["stuff_dataset_id_to_contiguous_id"]
    if category in things:
        return {**segment, "category_id": things[category], "isthing": True}
    if category in stuff:
        return {**segment, "category_id": stuff[category], "isthing": False}
    raise KeyError(f"Segment {segment.get('id')} of {where} has category_id {category}, which the metadata lacks.")


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Make `name` stand for panoptic segments in COCO's format. Nothing is read before the data is asked for.

    Args:
        name: as in DATASETS.TRAIN.
        metadata: the two id maps, and names and colours of thing and stuff classes.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files.
        panoptic_json: the annotations.
        instances_json: annotations of the same images in the instance format, for mask AP.
    """
    DatasetCatalog.register(
        name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata, name)
    )
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **metadata,
    )


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register instances and stuff apart from each other, as Panoptic FPN learns them.

    Makes `<name>_separated` (instances, and label images where 0 is any thing) and `<name>_stuffonly` (only the label
    images). The arguments are those of register_coco_panoptic, and `sem_seg_root`, the folder of label images.
    """
    separated, stuff_only = f"{name}_separated", f"{name}_stuffonly"

    def load_separated() -> list[dict]:
        instances = load_coco_json(instances_json, image_root, separated)
        return merge_to_panoptic(instances, load_sem_seg(sem_seg_root, image_root))

    DatasetCatalog.register(separated, load_separated)
    MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        **metadata,
    )
    DatasetCatalog.register(stuff_only, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root, image_root=image_root, evaluator_type="sem_seg", ignore_label=255, **metadata
    )


def merge_to_panoptic(detection_dicts: list[dict], sem_seg_dicts: list[dict]) -> list[dict]:
    """Add the label image to the dataset dict of each image, joined by file_name.

    Returns:
        New dicts, as many as `detection_dicts`; KeyError for an image without a label image.
    """
    labels = {record["file_name"]: record for record in sem_seg_dicts}
    assert labels, "No semantic labels to merge with."
    return [{**record, **labels[record["file_name"]]} for record in detection_dicts]
