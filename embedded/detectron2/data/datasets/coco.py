"""Data sets in COCO's instance format, and folders of label images; both ways between json and dataset dicts."""

import datetime
import json
import logging
import os
from collections import Counter, defaultdict
from pathlib import PurePath
from typing import Any

import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager, atomic_file

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)

_MIN_POLYGON = 6  # numbers: three points


# ---- reading


def explain_missing(path: str, dataset_name: str | None = None) -> FileNotFoundError:
    """The error for a file or folder of a data set that is not there: what, where, and how to change it."""
    what = f"Dataset '{dataset_name}'" if dataset_name else "The data set"
    root = os.environ.get("DETECTRON2_DATASETS")
    where = f"DETECTRON2_DATASETS is {root!r}" if root else "DETECTRON2_DATASETS is not set, which means './datasets'"
    return FileNotFoundError(
        f"{what} needs {path!r}, which does not exist (looked at from {os.getcwd()!r}). {where}: "
        "set it to the folder that holds the data sets, or check the path given when registering."
    )


def read_json(path: str, dataset_name: str | None = None) -> dict[str, Any]:
    """The content of a json file; FileNotFoundError or ValueError that name the file and the data set."""
    if not PathManager.exists(path):
        raise explain_missing(path, dataset_name)
    with PathManager.open(path, "r") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid json, so perhaps an incomplete download: {error}") from error


def load_coco_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys: list[str] | None = None
) -> list[dict]:
    """Load instances from a file in COCO's format.

    Args:
        json_file: the annotations.
        image_root: folder that the file names of images are relative to.
        dataset_name: if given, its metadata gets the class names, and category ids become 0 .. K-1 in the order of
            the ids in the file; else they stay as they are.
        extra_annotation_keys: entries of an annotation to keep besides the usual ones.

    Returns:
        One dataset dict per image, by ascending image id: file_name, height, width, image_id, annotations.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or not json, or a box is empty.
        KeyError: an annotation has a category that the file does not list.
        AssertionError: two annotations with one id, or "ignore" used.
    """
    content = read_json(json_file, dataset_name)
    id_map = None if dataset_name is None else _set_classes(dataset_name, content["categories"], json_file)
    annotations = content.get("annotations", [])
    if "minival" not in json_file:  # the published minival files do repeat ids
        repeated = [id_ for id_, count in Counter(anno["id"] for anno in annotations).items() if count > 1]
        assert not repeated, f"Annotation ids in '{json_file}' are not unique: {repeated[:5]} occur more than once."

    by_image: dict[Any, list[dict]] = defaultdict(list)
    for anno in annotations:
        by_image[anno["image_id"]].append(anno)

    kept_keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records, num_bad = [], 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        source = by_image.pop(image["id"], [])
        instances = [_instance(anno, image, kept_keys, id_map, json_file) for anno in source]
        usable = [instance for instance in instances if instance is not None]
        num_bad += len(source) - len(usable)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": usable,
            }
        )
    logger.info(f"Loaded {len(records)} images in COCO format from {json_file}")
    if by_image:
        strays = sum(map(len, by_image.values()))
        logger.warning(f"{json_file} has {strays} annotations of images that it does not list; they are not used.")
    if num_bad:
        logger.warning(
            f"Left out {num_bad} instances of {json_file} without a valid polygon (an even count of numbers, at least "
            f"{_MIN_POLYGON})."
        )
    return records


def _set_classes(dataset_name: str, categories: list[dict], json_file: str) -> dict[int, int]:
    """Put the class names into the metadata; returns category id in the file to contiguous id."""
    rows = sorted(categories, key=lambda row: row["id"])
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(f"The categories of {json_file} have repeated ids: {ids}.")
    if ids != list(range(1, len(ids) + 1)) and "coco" not in dataset_name:
        logger.warning(
            f"Category ids of '{dataset_name}' are not 1 to {len(ids)}; each gets its position in ascending order."
        )
    meta = MetadataCatalog.get(dataset_name)
    names = [row["name"] for row in rows]
    if list(meta.get("thing_classes", names)) != names:
        raise ValueError(
            f"{json_file} has the classes {names}, but '{dataset_name}' was registered with {meta.thing_classes}. "
            "Leave thing_classes out when registering: they are read from the file."
        )
    if not hasattr(meta, "thing_classes"):
        meta.thing_classes = names
    meta.thing_dataset_id_to_contiguous_id = {id_: index for index, id_ in enumerate(ids)}
    return meta.thing_dataset_id_to_contiguous_id


def _instance(
    anno: dict, image: dict, kept_keys: list[str], id_map: dict[int, int] | None, json_file: str
) -> dict | None:
    """One annotation as the dataset dict holds it; None if it has polygons, but no valid one."""
    where = f"annotation {anno.get('id')} of image {image['id']} in {json_file}"
    assert anno.get("ignore", 0) == 0, f"'ignore' is not supported; found in {where}. Use 'iscrowd'."
    if anno.get("bbox") == []:
        raise ValueError(f"The bbox is empty in {where}; expected [x, y, width, height].")
    instance = {key: anno[key] for key in kept_keys if key in anno}
    instance["bbox_mode"] = BoxMode.XYWH_ABS

    segmentation = anno.get("segmentation")
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        instance["segmentation"] = segmentation
    elif segmentation:
        polygons = [poly for poly in segmentation if len(poly) % 2 == 0 and len(poly) >= _MIN_POLYGON]
        if not polygons:
            return None
        instance["segmentation"] = polygons

    if "keypoints" in instance:
        # From the index of a pixel to the coordinate of its centre; every third number is the visibility.
        instance["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(instance["keypoints"])]
    if id_map is not None:
        category = anno["category_id"]
        if category not in id_map:
            raise KeyError(f"category_id {category} of {where} is not among the file's categories {list(id_map)}.")
        instance["category_id"] = id_map[category]
    return instance


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict]:
    """Pair the images of one folder with the label images of another, by name.

    Args:
        gt_root: folder of label images, one grey value per class; not searched recursively.
        image_root: folder of images.
        gt_ext: how label files end.
        image_ext: how image files end.

    Returns:
        Dataset dicts {file_name, sem_seg_file_name}, sorted by name.
    """
    labels = _files_by_stem(gt_root, gt_ext)
    images = _files_by_stem(image_root, image_ext)
    assert labels, f"No label images (*.{gt_ext}) found in {gt_root}."
    if len(labels) != len(images):
        common = sorted(labels.keys() & images.keys())
        logger.warning(
            f"{image_root} has {len(images)} images, {gt_root} {len(labels)} labels; using the {len(common)} in both."
        )
        assert common, f"No name in {image_root} (*.{image_ext}) equals one in {gt_root} (*.{gt_ext})."
        pairs = [(images[stem], labels[stem]) for stem in common]
    else:
        if labels.keys() != images.keys():
            logger.warning(f"Names in {image_root} and {gt_root} differ; pairing them in alphabetical order.")
        pairs = list(zip(images.values(), labels.values()))
    logger.info(f"Loaded {len(pairs)} images with semantic segmentation from {image_root}")
    return [{"file_name": image, "sem_seg_file_name": label} for image, label in pairs]


def _files_by_stem(folder: str, extension: str) -> dict[str, str]:
    if not PathManager.isdir(folder):
        raise explain_missing(folder)
    names = sorted(
        (name for name in PathManager.ls(folder) if name.endswith(extension)), key=lambda n: PurePath(n).stem
    )
    return {PurePath(name).stem: os.path.join(folder, name) for name in names}


# ---- registering


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Make `name` stand for instances in COCO's format. Nothing is read before the data is asked for.

    Args:
        name: as in DATASETS.TRAIN.
        metadata: more to know about it; {} is fine, class names come from the file.
        json_file: the annotations.
        image_root: folder of the images.
    """
    assert isinstance(name, str), f"The name must be a string, not {name!r}."
    assert isinstance(json_file, (str, os.PathLike)), f"json_file must be a path, not {json_file!r}."
    assert isinstance(image_root, (str, os.PathLike)), f"image_root must be a path, not {image_root!r}."
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if name not in DatasetCatalog:  # a notebook cell that runs twice is not an error
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


# ---- writing


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set as the content of a COCO json file, with its original category ids.

    Returns:
        info, images, categories, licenses; and annotations, if there are any.
    """
    meta = MetadataCatalog.get(dataset_name)
    original_id = {v: k for k, v in meta.get("thing_dataset_id_to_contiguous_id", {}).items()}
    categories = [
        {"id": original_id.get(index, index), "name": class_name}
        for index, class_name in enumerate(meta.get("thing_classes", []))
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = record.get("image_id", position)
        size = {"width": int(record["width"]), "height": int(record["height"])}
        images.append({"id": image_id, **size, "file_name": str(record["file_name"])})
        for instance in record.get("annotations", []):
            category = instance["category_id"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(original_id.get(category, category)),
                    **_coco_annotation(instance),
                }
            )
    info = {
        "date_created": str(datetime.datetime.now()),
        "description": f"COCO json file made from the dataset '{dataset_name}'.",
    }
    content = {"info": info, "images": images, "categories": categories, "licenses": None}
    if annotations:
        content["annotations"] = annotations
    return content


def _coco_annotation(instance: dict) -> dict[str, Any]:
    """Box, area, crowd flag, segmentation and keypoints of one instance, as COCO writes them."""
    box = BoxMode.convert([float(v) for v in instance["bbox"]], instance["bbox_mode"], BoxMode.XYWH_ABS)
    result: dict[str, Any] = {"bbox": [round(float(v), 3) for v in box], "iscrowd": int(instance.get("iscrowd", 0))}
    segmentation = instance.get("segmentation")
    if segmentation is None:
        result["area"] = float(box[2] * box[3])
    elif isinstance(segmentation, list):
        result["area"] = float(PolygonMasks([segmentation]).area()[0])
        result["segmentation"] = [[float(v) for v in polygon] for polygon in segmentation]
    elif isinstance(segmentation, dict):
        counts = segmentation["counts"]
        result["area"] = float(mask_util.area(segmentation))
        result["segmentation"] = {**segmentation, "counts": counts.decode() if isinstance(counts, bytes) else counts}
    else:
        raise TypeError(f"A segmentation must be polygons or RLE, not {type(segmentation)}.")
    if "keypoints" in instance:
        keypoints = [float(v) if i % 3 == 2 else float(v) - 0.5 for i, v in enumerate(instance["keypoints"])]
        result["keypoints"] = keypoints
        result["num_keypoints"] = sum(visibility > 0 for visibility in keypoints[2::3])
    return result


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a COCO json file.

    Args:
        dataset_name: registered name.
        output_file: where to write; never left half-written.
        allow_cached: leave a file alone that is there already.
    """
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning(f"Using '{output_file}', which is there already. Delete it if the dataset has changed.")
            return
        content = convert_to_coco_dict(dataset_name)
        with atomic_file(output_file) as file:
            file.write(json.dumps(content).encode())
        logger.info(f"Wrote '{dataset_name}' in COCO format to {output_file}")
