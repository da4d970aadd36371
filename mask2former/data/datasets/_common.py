"""What the registrations share: class tables, a loader that says what is missing, and two ways to read labels."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg


def datasets_root() -> str:
    """The folder that holds all data sets: DETECTRON2_DATASETS, or "datasets"."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def class_table(name: str) -> list[dict[str, Any]]:
    """The classes of a data set as published with it: id, name and, where they have them, isthing and color."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))


def register(name: str, load: Callable[[], list[dict]], needs: Sequence[str], make: str = "", **metadata: Any) -> None:
    """Make `name` stand for a data set; nothing is read before its images are asked for.

    Some detectron2 registers the same name: its loader is replaced, so that images, targets and messages are the same
    on either; what it says in the metadata stays.

    Args:
        name: as in DATASETS.TRAIN.
        load: gives the dataset dicts.
        needs: files and folders without which `load` cannot work.
        make: how to get what is missing, one sentence.
        metadata: what MetadataCatalog is to say about it.
    """

    def load_if_there() -> list[dict]:
        missing = [path for path in needs if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(missing_data(name, missing, make))
        return load()

    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, load_if_there)
    known = MetadataCatalog.get(name)
    known.set(**{key: value for key, value in metadata.items() if not hasattr(known, key)})


def missing_data(name: str, missing: Sequence[str], make: str = "") -> str:
    """The message for a data set that is not where it should be."""
    root = os.getenv("DETECTRON2_DATASETS")
    where = f"is {root!r}" if root else "is not set, which means './datasets'"
    paths = ", ".join(os.path.abspath(path) for path in missing)
    return (
        f"Dataset '{name}' needs what does not exist: {paths}. DETECTRON2_DATASETS {where}: it "
        f"names the folder that holds all data sets, laid out as datasets/README.md shows. {make}".strip()
    )


def load_labels(name: str, gt_root: str, image_root: str, gt_ext: str = "png") -> list[dict]:
    """Dataset dicts of images and label maps of the same name in two folders.

    Raises:
        ValueError: an image has no label map of its name, or the other way round.
    """
    records = load_sem_seg(gt_root, image_root, gt_ext=gt_ext, image_ext="jpg")
    for record in records:
        if Path(record["file_name"]).stem != Path(record["sem_seg_file_name"]).stem:
            raise ValueError(
                f"Dataset '{name}': {record['file_name']} and {record['sem_seg_file_name']} do not belong together. "
                f"Each image in {image_root} needs a .{gt_ext} of its name in {gt_root}: run the dataset's "
                "datasets/prepare_*.py with --check."
            )
    return records


def load_panoptic(
    name: str, panoptic_json: str, image_root: str, panoptic_root: str, sem_seg_root: str, meta: dict[str, Any]
) -> list[dict]:
    """Panoptic segments in COCO's format, with a semantic label map of the same name beside each PNG.

    Args:
        meta: has thing_dataset_id_to_contiguous_id and stuff_dataset_id_to_contiguous_id.

    Returns:
        Dicts with file_name, image_id (as the json has it), pan_seg_file_name, sem_seg_file_name, segments_info
        (contiguous category_id, isthing).

    Raises:
        ValueError: not json, or without any image.
        KeyError: a segment's category is not in `meta`.
    """
    try:
        annotations = json.loads(Path(panoptic_json).read_text())["annotations"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{panoptic_json} is not valid json, perhaps an incomplete download: {error}") from error
    if not annotations:
        raise ValueError(f"Dataset '{name}': {panoptic_json} lists no images.")
    things, stuff = meta["thing_dataset_id_to_contiguous_id"], meta["stuff_dataset_id_to_contiguous_id"]
    records = []
    for anno in annotations:
        segments = []
        for segment in anno["segments_info"]:
            category = segment["category_id"]
            if category not in things and category not in stuff:
                raise KeyError(
                    f"{panoptic_json}: segment {segment['id']} of image {anno['image_id']} has category_id {category}, "
                    f"which is no class of '{name}'."
                )
            ids = things if category in things else stuff
            segments.append({**segment, "category_id": ids[category], "isthing": category in things})
        png = anno["file_name"]
        records.append(
            {
                "file_name": os.path.join(image_root, f"{Path(png).stem}.jpg"),
                "image_id": anno["image_id"],
                "pan_seg_file_name": os.path.join(panoptic_root, png),
                "sem_seg_file_name": os.path.join(sem_seg_root, png),
                "segments_info": segments,
            }
        )
    return records


def id_map(rows: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Id in the data set to position in the table."""
    return {row["id"]: position for position, row in enumerate(rows)}


def column(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows]
