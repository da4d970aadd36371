"""Instances and panoptic segments in COCO's json formats, for the prepare_*.py scripts."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from _runner import Convert, Item, Record, Step, save_image
from panopticapi.utils import id2rgb


def extent(mask: np.ndarray) -> dict[str, Any]:
    """Area and box (x, y, width, height) of the True pixels of an (H, W) mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"area": int(np.count_nonzero(mask)), "bbox": [int(value) for value in box]}


def instance(mask: np.ndarray, category_id: int, is_crowd: int = 0) -> Record:
    """An annotation with the mask as RLE; id and image_id come later."""
    return {"category_id": category_id, "iscrowd": is_crowd, **extent(mask), "segmentation": run_lengths(mask)}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of an (H, W) mask, for a json file."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def image_record(item: Item, shape: tuple[int, ...], file_name: str | None = None) -> Record:
    """An entry of a json's "images"; the name is the file's own where none is given."""
    return {
        "id": item.name,
        "file_name": file_name or item.inputs["image"].name,
        "height": shape[0],
        "width": shape[1],
    }


def instances_step(
    title: str,
    items: Sequence[Item],
    convert: Convert,
    json_file: Path,
    categories: Sequence[dict],
    problems: Sequence[str],
) -> Step:
    """A step of records {"image": ..., "annotations": [...]}, which go into COCO's instance file."""
    assemble = partial(instances_json, categories=categories)
    return Step(
        title, items, convert, partial(check_instances, convert), json_file, assemble, instance_records, problems
    )


def check_instances(convert: Convert, item: Item, record: Record | None) -> None:
    if convert(item) != record:
        image = item.inputs["image"]
        raise ValueError(f"{image}: the json does not hold its instances. Delete the json and run this again.")


def instances_json(records: Sequence[Record], categories: Sequence[dict]) -> dict:
    """COCO's instance file of records {"image": ..., "annotations": [...]}; annotations are numbered from 1."""
    annotations = []
    for record in records:
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": record["image"]["id"], **annotation})
    return {"images": [r["image"] for r in records], "annotations": annotations, "categories": list(categories)}


def instance_records(content: dict) -> dict[str, Record]:
    """The inverse: image id to record."""
    records = {image["id"]: {"image": image, "annotations": []} for image in content["images"]}
    for annotation in content["annotations"]:
        kept = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
        records[annotation["image_id"]]["annotations"].append(kept)
    return records


def write_panoptic(item: Item, ids: np.ndarray, segments: Sequence[dict], file_name: str | None = None) -> Record:
    """Write the PNG of the (H, W) ids; returns the record for COCO's panoptic file, see `image_record`."""
    save_image(id2rgb(ids), item.output)
    annotation = {"image_id": item.name, "file_name": item.output.name, "segments_info": segments}
    return {"image": image_record(item, ids.shape, file_name), "annotation": annotation}


def panoptic_json(records: Sequence[Record], categories: Sequence[dict]) -> dict:
    """COCO's panoptic file of records {"image": ..., "annotation": {...}}."""
    return {
        "images": [record["image"] for record in records],
        "annotations": [record["annotation"] for record in records],
        "categories": list(categories),
    }


def panoptic_records(content: dict) -> dict[str, Record]:
    """The inverse: image id to record."""
    annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    return {image["id"]: {"image": image, "annotation": annotations[image["id"]]} for image in content["images"]}


def check_panoptic(ids: np.ndarray, segments: Sequence[dict], png: Path, categories: Collection[int]) -> None:
    """ValueError unless the (H, W) ids of a PNG and the json's segments are the same, with the same areas."""
    counts = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True))))
    counts.pop(0, None)
    remedy = "PNG and json do not belong together: make or download both again."
    listed = {segment["id"]: segment for segment in segments}
    for where, wrong in (
        ("in the PNG but not in the json", counts.keys() - listed.keys()),
        ("in the json but not in the PNG", listed.keys() - counts.keys()),
    ):
        if wrong:
            raise ValueError(f"{png}: segment ids {sorted(wrong)[:5]} are {where}. {remedy}")
    for id_, segment in listed.items():
        area = segment["area"]
        if area != counts[id_]:
            raise ValueError(
                f"{png}: segment {id_} has {counts[id_]} pixels, but its area in the json is {area}. {remedy}"
            )
        if segment["category_id"] not in categories:
            raise ValueError(
                f"{png}: segment {id_} has category_id {segment['category_id']}, which is no class. {remedy}"
            )
